"""The command line: quick to answer, one clear sentence and exit code 2 for what the user can mend."""

import os
import subprocess
import sys
import time

import pytest


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
