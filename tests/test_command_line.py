"""The command line: quick to answer, one clear sentence and exit code 2 for what the user can mend."""

import os
import subprocess
import sys
import time

import pytest

from workbench.commands.watch import sparkline
from workbench.config import load_config
from workbench.runs.store import prepare_run


def workbench(tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "WORKBENCH_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "demo/giuded"), "did you mean 'demo/guided'?"),
        (("train", "demo/plain", "training.stepz=3"), "did you mean 'steps'?"),
        (("train", "demo/guided", "objective.gidance_scale=3"), "did you mean 'guidance_scale'?"),
        (("train", "demo/plain", "objective.name=denoize"), "did you mean 'denoise'?"),
        (("train", "demo/plain", "training.steps=many"), "training.steps must be int; got 'many'"),
        (("train", "demo/plain", "steps"), "an override looks like training.steps=500"),
        (("train", "demo/guided"), "the teacher 'demo/teacher' has not been trained"),
        (("train", "demo/guided", "objective.teacher=nowhere"), "is not a run folder or the name of a run"),
        (("train", "no-such-file.yaml"), "there is no configuration file"),
        (("evaluate", "nothing"), "is not a run folder or the name of a run"),
        (("stop", "nothing"), "is not a run folder or the name of a run"),
        (("runs", "--sort", "stepp"), "did you mean 'step'?"),
        (("train", "demo/plain", "--after", "nothing"), "is not a run folder or the name of a run"),
        (("train", "demo/plain", "data.name=digits", "codec.name=identity", "backbone.patch=5"), "patch 5"),
        (
            ("train", "demo/plain", "data.name=digits", "codec.name=identity", "objective.name=vae_align",
             "objective.layer=13", "backbone.patch=8"),
            "objective.layer 13 is outside 1..12",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_code_2(tmp_path, arguments, sentence):
    done = workbench(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_lists(tmp_path):
    assert "no runs in" in workbench(tmp_path, "runs").stdout
    assert "demo/guided" in workbench(tmp_path, "presets").stdout.split()


def fastest(arguments: list[str]) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def test_heavy_packages_are_imported_where_they_are_used():
    code = "import sys, workbench.__main__; print([m for m in ('torch', 'umap', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert fastest(["-c", "import workbench"]) < 0.3
    assert fastest(["-m", "workbench", "--help"]) < 0.7


def test_a_queue_is_listed_and_a_batch_script_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    assert f"the queue {tmp_path / 'queue'} is empty" in workbench(tmp_path, "queue").stdout
    script = workbench(tmp_path, "train", "demo/plain", "--processes=2", "--nodes=2", "--print-slurm").stdout
    assert script.startswith("#!/bin/bash\n") and "WORKBENCH_PROCESSES=4\n" in script


def test_runs_are_listed_sorted_filtered_and_watched(tmp_path):
    names = {}
    for seed, state in ((0, "stopped"), (1, "failed")):
        run = prepare_run(load_config("demo/plain", [f"training.seed={seed}"]), tmp_path / "runs")
        run.append("metrics.jsonl", {"step": 5 - seed, "loss": 0.5, "seconds": 3.0})
        run.write_status(state, 5 - seed, steps=700, error="no space left" if seed else None)
        names[seed] = run.name
    lines = workbench(tmp_path, "runs", "--sort", "step").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.strip().startswith("demo")] == [names[1], names[0]]
    assert names[0] not in workbench(tmp_path, "runs", "--filter", "failed denoise").stdout
    picture = workbench(tmp_path, "watch", *names.values(), "--once").stdout
    assert "step 5 of 700" in picture and "no space left" in picture and names[1] in picture


def test_a_sparkline_shows_lowest_and_highest():
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█" and sparkline([3.0, float("nan")], 9) == "▁"
    assert sparkline([], 9) == ""
