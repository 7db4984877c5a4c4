"""Run folders: found, made once, locked, and read while they are written."""

import subprocess
import sys

import pytest
import torch

from workbench.config import load_config
from workbench.runs import store
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import find_runs, open_run, prepare_run, read_jsonl


def save(folder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {part: {"w": torch.ones(3)} for part in ("model", "ema", "optimizer")}, {})


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


def test_second_process_is_refused_and_a_dead_one_is_lost(run):
    code = "import sys; from workbench.runs.store import open_run; open_run(sys.argv[1]).lock().__enter__()"
    with run.lock():
        run.write_status("running", 3)
        done = subprocess.run([sys.executable, "-c", code, run.folder], capture_output=True, text=True)
        assert "is being trained by another process" in done.stderr
        assert run.status["state"] == "running"
    assert run.status["state"] == "lost"


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
    assert [r.status["state"] for r in find_runs(tmp_path)] == ["created"] and len(list(tmp_path.iterdir())) == 1
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


def test_the_lock_is_freed(run):
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock(), pytest.raises(ValueError, match="is being trained by another process"), run.lock():
        pass


def test_appending_after_a_cut_line_keeps_the_file_whole(run):
    run.append("results.jsonl", {"fid": 1})
    with (run.folder / "results.jsonl").open("a") as file:
        file.write('{"fid": 2, "sa')
    run.append("results.jsonl", {"fid": 3})
    run.append("results.jsonl", {"fid": 4})
    assert [record["fid"] for record in run.results] == [1, 3, 4]


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
