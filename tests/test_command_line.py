"""The command line: quick to answer, one clear sentence and exit code 2 for what the user can mend."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from workbench.__main__ import COMMANDS, main, sentence_of
from workbench.cli import runs as runs_command
from workbench.cli.arguments import check_arguments
from workbench.cli.terminal import Console
from workbench.cli.watch import sparkline
from workbench.config import load_config, presets
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
        (("trian", "demo/plain"), "the command 'trian' is not known; did you mean `train`?"),
        (("vae", "trian"), "the command 'vae' is not known; did you mean `vae-train`?"),
        (("zzzz",), "the command 'zzzz' is not known; `workbench --help` lists the commands"),
        (("train", "nothing-like-it"), "preset 'nothing-like-it' is not known. `workbench presets` lists them\n"),
        (("train", "demo/plain", "--after", ""), "the value after --after is empty; is a shell variable not set?"),
        (("train", "demo/plain", "--after="), "the value after --after is empty"),
        (("train", ""), "the value after train is empty"),
        (("train", "demo/plain", "data.path="), "the value of data.path is empty"),
        (("evaluate", " "), "the value after evaluate is empty"),
        (("evaluate", "x", "--reference", ""), "the value after --reference is empty"),
        (("evaluate", "x", "--detector", ""), "the value after --detector is empty"),
        (("train", "demo/plain", "--devices", "0"), "--devices is for --detach, --queue and --after"),
        (("train", "demo/plain", "--detach", "--devices", "-1"), "--devices must be at least 0 and at most 1,023; got"),
        (("train", "demo/plain", "--queue", "--devices", "9" * 20), "--devices must be at least 0 and at most 1,023;"),
        (("train", "demo/plain", "--hours", "5"), "--hours is for --print-slurm"),
        (("train", "demo/plain", "--print-slurm", "--hours", "0"), "--hours must be at least 1 and at most 8,760;"),
        (("train", "demo/plain", "--nodes", "2"), "--nodes is for --print-launch and --print-slurm"),
        (("train", "demo/plain", "--processes", "0"), "--processes must be at least 1 and at most 4,096; got 0"),
        (("train", "demo/plain", "--dry-run", "--detach"), "--dry-run trains nothing, so --detach has no effect"),
        (("train", "demo/plain", "--print-slurm", "--dry-run"), "--print-slurm and --dry-run exclude each other"),
        (("encode", "demo/plain", "--processes", "-3"), "--processes must be at least 1"),
        (("encode", "demo/plain", "data.limit=33", "--device", "abc"), "--device 'abc' is not known; examples are"),
        (("encode", "demo/plain", "data.limit=33", "--device", "meta"), "--device 'meta' is not known"),
        (("import", "gone.pt"), "there is no file gone.pt"),
        (("unpack", "gone.zip"), "there is no file gone.zip"),
        (("evaluate", "--samples", "gone.npz"), "there is no file gone.npz"),
        (("sweep", "gone.yaml"), "there is no file gone.yaml"),
        (("report", "laptop", "--workers", "0"), "--workers must be at least 1"),
        (("demo", "--seed", "-1"), "--seed must be at least 0"),
        (("page", "nothing", "x.html"), "is not a run folder or the name of a run"),
        (("lesson", "gone.md"), "gone.md does not exist"),
        (("export", "nothing", "x.pt", "--family", "sit"), "is not a run folder or the name of a run"),
        (("compare", "nothing", "either"), "is not a run folder or the name of a run"),
        (("watch", "nothing"), "is not a run folder or the name of a run"),
        (("evaluate", "nothing"), "is not a run folder or the name of a run"),
        (("stop", "nothing"), "is not a run folder or the name of a run"),
        (("runs", "--sort", "stepp"), "did you mean 'step'?"),
        (("train", "demo/plain", "--after", "nothing"), "is not a run folder or the name of a run"),
        (("train", "demo/plain", "data.name=digits", "vae.name=identity", "backbone.patch=5"), "patch 5"),
        (("train", "demo/plain", "data.name=scenes"), "data.name=scenes has scenes of 32 or 64 pixels"),
        (("train", "demo/plain", "data.name=scenes", "data.size=32"), "kl-f4-scenes-64 are for colour"),
        (("train", "demo/plain", "data.name=digits", "data.masks=/gone"), "no file or folder data.masks /gone"),
        (("vae", "train", "x", "training.steps=3"), "training is not an option of an autoencoder's training"),
        (("vae", "train", "x", "data.nme=digits"), "did you mean 'name'?"),
        (("vae", "train", "x", "data.path=/gone"), "there is no file or folder data.path /gone"),
        (("vae", "train", "x", "--factor", "3"), "an autoencoder's factor is one of 2, 4, 8, 16; got 3"),
        (("vae", "train", "x", "--steps", "0"), "--steps must be at least 1"),
        (("vae", "train", "x", "data.limit=9", "--batch", "10"), "a batch of 10 is more than the 9 training images"),
        (("vae", "train", "x", "--start", "gone"), "vae.name 'gone' is not known"),
        (
            ("train", "demo/plain", "data.name=digits", "vae.name=identity", "objective.name=vae_align",
             "objective.layer=13", "backbone.patch=8"),
            "objective.layer 13 is outside 1..12",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_code_2(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    said = capsys.readouterr()
    assert left.value.code == 2, said
    assert sentence in said.err and said.err.count("\n") == 1 and said.err.startswith("workbench: ")


def test_a_mistake_is_answered_before_anything_heavy_is_imported(tmp_path):
    name = prepare_run(load_config("demo/plain"), tmp_path).name
    other, rows = tmp_path / "other.txt", tmp_path / "rows.yaml"
    other.touch()
    rows.write_text("name: s\nbase: demo/plain\nrows: [{name: a, overrides: [objective.gidance=3]}]\n")
    mistakes = [
        *(["stop", "gone"], ["pause", "gone"], ["resume", "gone"], ["checkpoint", "gone"], ["set", "gone", "a=1"]),
        *(["evaluate", "gone"], ["compare", "gone", "gone"], ["page", "gone", "x.html"], ["lesson", "gone.md"]),
        *(["page", name, "x.html", "--view", "mpas"], ["page", name, "x.pdf"]),
        *(["export", "gone", "x", "--family", "sit"], ["import", "gone.pt"], ["sweep", "gone.yaml"], ["trian"]),
        *(["train", "gone"], ["train", "demo/plain", "--after", "gone"], ["train", "demo/plain", "training.clip=.nan"]),
        *(
            ["encode", "gone"],
            ["encode", "demo/plain", "data.size=0"],
            ["vae", "train", "x", "training.steps=3"],
            ["vae", "train", "x", "data.path=/gone"],
            ["reference", "gone", "x.npz"],
            ["trash", "gone"],
        ),
        *(["evaluate", "--samples", "gone.npz"], ["note", "gone"], ["watch", "gone"], ["unpack", "gone.zip"]),
        # Options of plug-ins, layers, teachers, images, and what a run has.
        *(["train", "demo/plain", change] for change in ("objective.gidance=3", "backbone.size=z", "recipe=nope")),
        *(["train", "demo/guided", change] for change in ("objective.layer=99", "objective.weight=-1")),
        *(["train", "demo/guided"], ["train", "demo/guided", "objective.teacher=gone"]),
        *([one, "demo/plain", "data.name=image-folder", "data.path=/gone"] for one in ("train", "encode")),
        *(["evaluate", name, change] for change in ("steps=-3", "--step=7", "--detector=nope", "--weak=1")),
        *(["set", name, "objective.layer=2"], ["pause", name], ["checkpoint", name], ["compare", name]),
        *(["export", name, "x.ending", "--family", "sit"], ["import", str(other)], ["restore", "gone"]),
        *(["sweep", str(rows)], ["sweep", str(rows), "--only", "gone"], ["report", "laptop", "--only", "gone"]),
        *(["demo", "training.stps=3"], ["reference", "demo/plain", "x.npz", "--detector", "nope"]),
    ]
    code = """
import json, sys
from workbench.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code == 2, arguments
    assert not {"torch", "umap", "diffusers"} & sys.modules.keys(), arguments
"""
    environment = {**os.environ, "WORKBENCH_RUNS": str(tmp_path), "WORKBENCH_QUEUE": str(tmp_path / "queue")}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(mistakes)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("workbench: ") == done.stderr.count("\n") == len(mistakes)


def test_empty_text_is_allowed_where_it_clears(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = prepare_run(load_config("demo/plain"), tmp_path)
    main(["note", run.name, "--text", ""])
    assert json.loads((run.folder / "notes.json").read_text())["notes"] == ""
    check_arguments(["runs", "--filter", ""], COMMANDS)


def test_what_the_disk_refuses_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    with pytest.raises(OSError) as full, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert str(tmp_path) in sentence_of(full.value) and "No space left on device: free some space" in sentence_of(
        full.value
    )
    assert "Errno" not in sentence_of(full.value)
    monkeypatch.chdir("/proc")
    with pytest.raises(OSError) as refused:
        Path("runs").mkdir()
    assert sentence_of(refused.value).startswith("/proc/runs cannot be used: ")
    assert sentence_of(OSError("a sentence of ours")) == "a sentence of ours"


def test_every_number_and_name_of_the_command_line_says_what_is_allowed():
    for command in COMMANDS.values():
        for option, hint in typing.get_type_hints(command, include_extras=True).items():
            text = str(hint)
            if "int" in text.replace("Print", "") and "Literal" not in text or "float" in text:
                assert "Range(" in text, f"{command.__name__}.{option} has no range"


def test_lists(tmp_path):
    assert "no runs in" in workbench(tmp_path, "runs").stdout
    lines = [line.split(maxsplit=1) for line in workbench(tmp_path, "presets").stdout.splitlines()]
    assert [name for name, _ in lines] == presets() and all(len(text) > 20 for _, text in lines)


def test_heavy_packages_are_imported_where_they_are_used():
    """A command starts as fast as its imports; how long they take depends on the machine."""
    code = "import sys, workbench; print(*sys.modules); import workbench.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    library, command = ({name.partition(".")[0] for name in line.split()} for line in done.stdout.splitlines())
    assert not {"rich", "tyro", "yaml"} & library and {"rich", "tyro", "yaml"} <= command
    heavy = {"torch", "numpy", "scipy", "sklearn", "umap", "diffusers", "timm", "matplotlib", "IPython"}
    assert not heavy & command


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


@pytest.mark.parametrize(("width", "columns"), [(200, 8), (80, 7), (56, 4)])
def test_runs_are_a_line_each_in_a_terminal_of_any_width(tmp_path, monkeypatch, capsys, width, columns):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = prepare_run(load_config("demo/plain"), tmp_path)
    run.append("metrics.jsonl", {"step": 5, "loss": 0.5, "seconds": 3.0})
    run.write_status("stopped", 5, steps=400)
    run.append("results.jsonl", {"metric": "fd-clf64", "step": 5, "value": 14.3})
    monkeypatch.setattr(
        runs_command, "Console", lambda **_: Console(width=width, force_terminal=True, color_system=None)
    )
    main(["runs"])
    heading, rule, line, *rest = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(heading.split()) == columns and line.split()[:3] == [run.name, "stopped", "5/400"]
    assert max(map(len, (heading, rule, line))) <= width
    assert rest == [] if width == 200 else rest[0].startswith(f"Not shown in {width} characters: ")


def test_a_sparkline_shows_lowest_and_highest():
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█" and sparkline([3.0, float("nan")], 9) == "▁"
    assert sparkline([], 9) == ""
