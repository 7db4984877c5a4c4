"""Run folders: found, made once, locked, and read while they are written."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from workbench.config import load_config
from workbench.files import read_jsonl, write_atomically
from workbench.runs import store
from workbench.runs.checkpoints import checkpoints, save_checkpoint, thin
from workbench.runs.store import Run, find_runs, open_run, prepare_run

FORK = multiprocessing.get_context("fork")  # children that do not import torch again


def save(folder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {part: {"w": torch.ones(3)} for part in ("model", "ema", "optimizer")}, {})


def read_status(folder: Path, stop, answers) -> None:
    seen = {}
    while not stop.is_set():
        state = Run(folder).status["state"]
        seen[state] = seen.get(state, 0) + 1
    answers.put(seen)


def seen_by_readers(run: Run, meanwhile: Callable[[], None]) -> list[dict[str, int]]:
    """How often each of three processes that ask without a pause saw each state."""
    stop, answers = FORK.Event(), FORK.Queue()
    readers = [FORK.Process(target=read_status, args=(run.folder, stop, answers)) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        time.sleep(0.2)
        meanwhile()
    finally:
        stop.set()
    seen = [answers.get(timeout=10) for _ in readers]
    for reader in readers:
        reader.join()
    return seen


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


def train_until_killed(run: Run, started) -> None:
    with run.lock():
        run.write_status("running", 3)
        started.set()
        time.sleep(60)


def test_second_process_is_refused_and_a_dead_one_is_lost(run):
    started = FORK.Event()
    process = FORK.Process(target=train_until_killed, args=(run, started))
    process.start()
    assert started.wait(timeout=10) and run.status["state"] == "running"
    with pytest.raises(ValueError, match="is being trained by another process"), run.lock():
        pass
    process.kill()
    process.join()
    assert run.status["state"] == "lost"
    with run.lock():
        assert run.status["state"] == "running"


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


def test_the_lock_is_freed(run, monkeypatch):
    monkeypatch.setattr(store, "_TRAINER_PATIENCE", 0.1)
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


def test_readers_never_refuse_a_trainer(run):
    def train():
        for _ in range(100):
            with run.lock():
                pass

    run.write_status("running", 3)  # by a process that is gone: so the readers look at the lock
    seen = seen_by_readers(run, train)
    assert all(states.keys() <= {"lost", "running"} and states["lost"] > 50 for states in seen), seen


def test_readers_do_not_disturb_one_another(run):
    run.write_status("running", 3)
    assert [states.keys() for states in seen_by_readers(run, lambda: time.sleep(0.5))] == [{"lost"}] * 3


def test_a_run_that_ends_is_never_seen_as_lost(run):
    def train():
        for step in range(100):
            with run.lock():
                run.write_status("running", step)
                run.write_status("finished", step)

    seen = seen_by_readers(run, train)
    assert all(states.keys() <= {"created", "running", "finished"} for states in seen), seen


def test_a_trainer_waits_for_a_reader(run):
    with (run.folder / ".lock").open("w+") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        run.write_status("running", 1)
        assert run.status["state"] == "lost"
        timer = threading.Timer(0.3, fcntl.flock, (reader, fcntl.LOCK_UN))
        timer.start()
        with run.lock():
            assert not timer.is_alive() and run.status["state"] == "running"


@pytest.mark.parametrize("content", [b"", b'{"fingerp', b"\xff\xfe\x00", b"[]", b'{"created": 1}'])
def test_a_damaged_run_is_passed_over_and_named(run, tmp_path, content):
    other = prepare_run(load_config("demo/teacher"), tmp_path)
    file = run.folder / "provenance.json"
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"run {run.name} is passed over: {file} is damaged"):
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
        with pytest.raises(ValueError, match=f"notes' is a folder but no run.*holds: {run.name}"):
            open_run(reference, tmp_path)


def test_another_run_in_the_place_of_a_new_one_is_kept(run, tmp_path):
    config = load_config("demo/plain", ["training.seed=1"])
    name = prepare_run(config, tmp_path / "elsewhere").name
    run.folder.rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} holds the run of fingerprint"):
        prepare_run(config, tmp_path)
    assert open_run(name, tmp_path).config == load_config("demo/plain")


@pytest.mark.parametrize("line, kept", [('{"fid": 2}', [1, 2, 3]), ('{"fid": 2', [1, 3]), ("\0\0", [1, 3])])
def test_a_last_line_without_an_end_is_kept_if_it_is_whole(run, line, kept):
    run.append("results.jsonl", {"fid": 1})
    with (run.folder / "results.jsonl").open("a") as file:
        file.write(line)
    assert [record["fid"] for record in run.results] == kept[:-1]
    run.append("results.jsonl", {"fid": 3})
    assert [record["fid"] for record in run.results] == kept


def prepare_together(barrier, root: Path, overrides: list[str], answers) -> None:
    config = load_config("demo/plain", overrides)
    barrier.wait()
    run = prepare_run(config, root)
    answers.put((run.folder, run.provenance))


@pytest.mark.parametrize("seed", range(3))
def test_processes_that_ask_together_get_one_run(tmp_path, seed):
    barrier, answers, root = FORK.Barrier(4), FORK.Queue(), tmp_path / "runs"
    asked = [[f"training.seed={seed}", f"name={name}"] for name in ("one", "one", "one", "other")]
    processes = [FORK.Process(target=prepare_together, args=(barrier, root, o, answers)) for o in asked]
    for process in processes:
        process.start()
    got = [answers.get(timeout=20) for _ in processes]
    (made,) = find_runs(root)
    # The same folder, made once: nobody wrote over what the first had found there.
    assert all(answer == (made.folder, made.provenance) for answer in got)
    assert [path.name for path in root.iterdir() if path.is_dir()] == [made.name]
    for process in processes:
        process.join()


def killed_while_writing(path: Path) -> None:
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    write_atomically(path, b"half")


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_spared(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    path.write_bytes(b"old")
    process = FORK.Process(target=killed_while_writing, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2 and path.read_bytes() == b"old"

    def meanwhile(_):
        monkeypatch.undo()
        write_atomically(path, b"second")

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(path, b"first")  # renamed into place after the second, which must leave it alone
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def killed_while_thinning(folder: Path) -> None:
    def cut_off(path, **_):
        (path / "state.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.rmtree = cut_off
    thin(folder, keep=1, milestone_every=None)


@pytest.mark.parametrize(
    "next_trainer", [lambda run: thin(run.folder / "checkpoints", 1, None), lambda run: run.lock()]
)
def test_thinning_cut_off_leaves_nothing_that_is_read(run, next_trainer):
    folder = run.folder / "checkpoints"
    save(folder, 1, 2)
    process = FORK.Process(target=killed_while_thinning, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(list(folder.glob(".trash-*"))) == 1
    (folder / ".step-00000003.77").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [c.step for c in checkpoints(folder)] == [2]
    with next_trainer(run) or nullcontext():
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
