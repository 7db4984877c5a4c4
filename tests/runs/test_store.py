"""Run folders: found, made once, and read while they are written; damaged ones are named."""

import json
import os
import time

import pytest
import torch

from workbench.config import load_config
from workbench.files import read_jsonl
from workbench.runs import store
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import find_runs, open_run, prepare_run


def save(folder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {part: {"w": torch.ones(3)} for part in ("model", "ema", "optimizer")}, {})


def fid(value: float) -> dict:
    return {"metric": "fid", "value": value}


@pytest.fixture
def run(tmp_path):
    return prepare_run(load_config("demo/plain"), tmp_path)


def test_same_fingerprint_is_the_same_run(run, tmp_path):
    assert prepare_run(load_config("demo/plain", ["name=other"]), tmp_path).folder == run.folder
    assert prepare_run(load_config("demo/plain", ["training.seed=1"]), tmp_path).folder != run.folder
    assert open_run(run.fingerprint[:10], tmp_path).folder == run.folder
    with pytest.raises(ValueError, match=f"'nothing' is not a run folder.*{run.name}"):
        open_run("nothing", tmp_path)
    with pytest.raises(ValueError, match="ambiguous"):
        open_run("demo", tmp_path)


def test_metrics_survive_a_cut_line_and_rewind(run):
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in run.metrics] == [1, 2, 3]
    run.rewind(2)
    assert [r["step"] for r in run.metrics] == [1, 2]


def test_missing_step_lists_what_there_is(run):
    save(run.folder / "checkpoints", 5)
    with pytest.raises(ValueError, match="has no checkpoint of step 7; it has: 5"):
        run.checkpoint(7)


def test_prepared_run_can_be_read(run, tmp_path):
    again = prepare_run(load_config("demo/plain"), tmp_path)
    assert again.folder == run.folder and again.config == load_config("demo/plain")
    assert (again.status["state"], again.status["step"]) == ("created", 0)
    assert again.metrics == again.results == again.checkpoints == []
    assert [found.folder for found in find_runs(tmp_path)] == [run.folder]


def test_a_folder_is_a_run_only_when_it_is_complete(tmp_path, monkeypatch):
    def crash() -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "machine", crash)
        with pytest.raises(KeyboardInterrupt):
            prepare_run(load_config("demo/plain"), tmp_path)
    assert find_runs(tmp_path) == []
    made = prepare_run(load_config("demo/plain"), tmp_path)
    assert [r.status["state"] for r in find_runs(tmp_path)] == ["created"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [made.name]
    (made.folder / "provenance.json").rename(made.folder / "elsewhere")
    assert find_runs(tmp_path) == []


def test_runs_are_found_in_four_ways(run, tmp_path):
    for reference in (run.folder, str(run.folder), run.name, run.name[:8], run.fingerprint):
        assert open_run(reference, tmp_path).folder == run.folder
    with pytest.raises(ValueError, match="holds: no runs"):
        open_run("demo", tmp_path / "absent")


def test_root_comes_from_the_environment(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    assert open_run(run.name).folder == run.folder


def test_untrained_teacher_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="'demo/teacher' has not been trained in .*workbench train demo/teacher"):
        prepare_run(load_config("demo/guided"), tmp_path)
    assert [found.name for found in find_runs(tmp_path)] == [run.name]


def test_teacher_step_is_part_of_the_fingerprint(tmp_path):
    teacher = prepare_run(load_config("demo/teacher"), tmp_path)
    marks = [
        prepare_run(load_config("demo/guided", overrides), tmp_path).fingerprint
        for overrides in ([], [f"objective.teacher={teacher.name}"], ["objective.teacher_step=300"])
    ]
    assert marks[0] == marks[1]  # one teacher under two names
    other = prepare_run(load_config("demo/guided", ["objective.teacher_step=100"]), tmp_path).fingerprint
    assert other != marks[0]


def test_appending_after_a_cut_line_keeps_the_file_whole(run):
    run.append("results.jsonl", fid(1))
    with (run.folder / "results.jsonl").open("a") as file:
        file.write('{"metric": "fid", "value": 2, "sa')
    run.append("results.jsonl", fid(3))
    run.append("results.jsonl", fid(4))
    assert [record["value"] for record in run.results] == [1, 3, 4]


def test_damage_in_the_middle_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl is damaged at line 2"):
        read_jsonl(file)


def test_newest_checkpoint_and_none(run):
    with pytest.raises(ValueError, match="has no checkpoint; it has: none"):
        run.checkpoint()
    save(run.folder / "checkpoints", 100, 20)
    assert run.checkpoint().step == 100 and run.checkpoint(20).step == 20


@pytest.mark.parametrize("content", [b"", b'{"fingerp', b"\xff\xfe\x00", b"[]", b'{"created": 1}'])
def test_a_damaged_run_is_passed_over_and_named(run, tmp_path, content):
    other = prepare_run(load_config("demo/teacher"), tmp_path)
    file = run.folder / "provenance.json"
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"run {run.name} is skipped: {file} is damaged"):
        assert [found.folder for found in find_runs(tmp_path)] == [other.folder]
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        open_run(run.name, tmp_path)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f"{file} is damaged"):
        prepare_run(load_config("demo/plain"), tmp_path)  # nothing is written over it
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"data: [1", b"\xff", b"- 1", b"nothing: 1", b"training: 3"])
def test_a_damaged_configuration_is_named(run, tmp_path, content):
    file = run.folder / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} cannot be used: .+"):
        print(open_run(run.name, tmp_path).config)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        print(open_run(run.name, tmp_path).config)


@pytest.mark.parametrize("content", [b"", b'{"state": "runn', b"null", b'{"state": "running"}'])
def test_a_damaged_status_is_named(run, content):
    file = run.folder / "status.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        print(run.status)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        print(run.status)


def test_a_folder_that_is_no_run(run, tmp_path):
    (tmp_path / "notes").mkdir()
    for reference in ("notes", tmp_path / "notes"):
        with pytest.raises(ValueError, match=f"notes' is a folder but not a run.*holds: {run.name}"):
            open_run(reference, tmp_path)


def test_another_run_in_the_place_of_a_new_one_is_kept(run, tmp_path):
    config = load_config("demo/plain", ["training.seed=1"])
    name = prepare_run(config, tmp_path / "elsewhere").name
    run.folder.rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} holds a run with fingerprint"):
        prepare_run(config, tmp_path)
    assert open_run(name, tmp_path).config == load_config("demo/plain")


@pytest.mark.parametrize(
    "line, kept", [(json.dumps(fid(2)), [1, 2, 3]), (json.dumps(fid(2))[:-1], [1, 3]), ("\0\0", [1, 3])]
)
def test_a_last_line_without_an_end_is_kept_if_it_is_whole(run, line, kept):
    run.append("results.jsonl", fid(1))
    with (run.folder / "results.jsonl").open("a") as file:
        file.write(line)
    assert [record["value"] for record in run.results] == kept[:-1]
    run.append("results.jsonl", fid(3))
    assert [record["value"] for record in run.results] == kept


def test_short_and_empty_references_are_refused(run, tmp_path, monkeypatch):
    other = prepare_run(load_config("demo/teacher"), tmp_path)
    mark = run.fingerprint
    for reference in ("", " ", "\n", "\t  "):
        with pytest.raises(ValueError, match="the name of the run is empty.*an unset variable"):
            open_run(reference, tmp_path)
    for digits in range(1, 6):
        with pytest.raises(ValueError, match="too short for a prefix.*6 digits of a fingerprint"):
            open_run(mark[:digits], tmp_path)
    assert open_run(mark[:6], tmp_path).name == run.name
    with pytest.raises(ValueError, match="too short for a prefix: give 3 characters of a name"):
        open_run("d", tmp_path)
    # All that a configuration calls its run is its name, be it short.
    short = prepare_run(load_config("demo/plain", ["name=a", "training.seed=5"]), tmp_path)
    assert open_run("a", tmp_path).name == short.name and open_run("demo/plain", tmp_path).name == run.name
    for reference in (".", "..", "/", "./", "../", "~", "no\0name", "x" * 300, "-", "*", "?", "[a-z]*"):
        with pytest.raises(ValueError, match="is not a run folder|is a folder but not a run"):
            open_run(reference, tmp_path)
    monkeypatch.chdir(run.folder)
    assert open_run(".", tmp_path).name == run.name  # this folder is one
    monkeypatch.chdir(run.folder / "..")
    assert open_run(f"{other.name}/", tmp_path).name == other.name


def test_a_handful_of_many_runs_is_named(run, tmp_path):
    record = json.loads((run.folder / "provenance.json").read_text())
    for number in range(40):
        (tmp_path / f"many-{number:02d}").mkdir()
        changed = {**record, "fingerprint": f"{number:016x}"}
        (tmp_path / f"many-{number:02d}" / "provenance.json").write_text(json.dumps(changed))
    for reference, first in (("many", "many-39"), ("mny-07", "many-07"), ("zzzz", "many-39")):
        with pytest.raises(ValueError, match=r"and \d\d more$") as caught:
            open_run(reference, tmp_path)
        listed = str(caught.value).partition(" holds: ")[2]
        assert listed.startswith(first) and listed.count(",") < 9


@pytest.mark.parametrize(
    "fingerprint",
    [None, "", "abc", "0" * 15, "0" * 17, "G" * 16, "0123456789ABCDEF", 5, ["0" * 16], "../../../etc/pass"],
)
def test_a_fingerprint_has_sixteen_digits(run, tmp_path, fingerprint):
    file = run.folder / "provenance.json"
    file.write_text(json.dumps({"fingerprint": fingerprint, "created": 1.0}))
    with pytest.raises(ValueError, match="provenance.json is damaged: .*fingerprint"):
        open_run(run.name, tmp_path)


@pytest.mark.parametrize(
    "script", ["sleep 100 & sleep 100", "kill -9 $$", "exit 3", "printf '\\377'", "printf v1 && exit 1"]
)
def test_git_that_hangs_or_dies_costs_the_commit_alone(tmp_path, monkeypatch, script):
    """A checkout on a slow disk; what git has started holds its output open after git itself was ended."""
    (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(store, "_GIT_PATIENCE", 0.3)
    since = time.monotonic()
    run = prepare_run(load_config("demo/plain"), tmp_path / "runs")
    assert time.monotonic() - since < 5
    assert run.provenance["commit"] in (None, "\ufffd") and run.provenance["cores"] == os.cpu_count()
