"""Run folders in the hands of several processes, some of them killed."""

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
from workbench.files import write_atomically
from workbench.runs import store
from workbench.runs.checkpoints import checkpoints, save_checkpoint, thin
from workbench.runs.store import Run, find_runs, prepare_run

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


def test_the_lock_is_freed(run, monkeypatch):
    monkeypatch.setattr(store, "_TRAINER_PATIENCE", 0.1)
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock(), pytest.raises(ValueError, match="is being trained by another process"), run.lock():
        pass


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
    thin(folder, keep=1, milestone_every=None, newest=100)


@pytest.mark.parametrize(
    "next_trainer", [lambda run: thin(run.folder / "checkpoints", 1, None, 100), lambda run: run.lock()]
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
