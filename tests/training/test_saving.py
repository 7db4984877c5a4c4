"""Checkpoints that are written while training goes on."""

import errno
import gc
import multiprocessing
import random
import threading
import time
from pathlib import Path

import pytest
import torch

from workbench.config import load_config
from workbench.data.latents import open_latents
from workbench.runs import checkpoints as files
from workbench.runs.checkpoints import PARTS, DiskFull, checkpoints, latest_resumable, resumable_at, save_checkpoint
from workbench.runs.store import prepare_run
from workbench.training import saving
from workbench.training import state as training_state
from workbench.training.loop import fit
from workbench.training.saving import Saver
from workbench.training.state import TrainState, accelerate
from workbench.training.student import build_student

FORK = multiprocessing.get_context("fork")  # children that do not import torch again
SMALL = (
    "data.name=digits",
    "data.limit=64",
    "vae.name=identity",
    "backbone.patch=8",
    "backbone.size=pico",
    "training.steps=8",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.keep=2",
)


def state(value: float, count: int = 3) -> list[tuple[str, str, torch.Tensor]]:
    return [(part, name, torch.full((count,), value)) for part in PARTS for name in ("v", "w")]


@pytest.fixture
def slow_disk(monkeypatch):
    """An event without which no checkpoint is written."""
    free, written = threading.Event(), saving.save_checkpoint
    monkeypatch.setattr(saving, "save_checkpoint", lambda *given: free.wait(30) and written(*given))
    return free


@pytest.fixture
def saver(tmp_path):
    found = Saver(tmp_path, keep=2, milestone_every=None)
    yield found
    found.close()


def test_what_is_written_is_the_state_at_the_save(saver, tmp_path, slow_disk):
    tensors = state(1.0)
    saver.save(1, 72, tensors, {"seconds": 1.0})
    saver.settle()
    for _, _, tensor in tensors:
        tensor.add_(1)  # the next step
    assert checkpoints(tmp_path) == []
    saver.check()
    slow_disk.set()
    saver.finish()
    (found,) = checkpoints(tmp_path)
    assert found.state["seconds"] == 1.0
    assert all(found.load(part)[name].tolist() == [1.0] * 3 for part in PARTS for name in ("v", "w"))


def test_a_save_waits_for_the_one_before_and_older_ones_are_thinned(saver, tmp_path):
    for step in range(1, 6):
        saver.save(step, 72, state(float(step)), {})
    saver.finish()
    assert [(c.step, c.load("ema")["w"][0].item()) for c in checkpoints(tmp_path)] == [(4, 4.0), (5, 5.0)]


def test_without_memory_for_a_copy_training_waits(saver, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_SPARE", 2**60)
    saver.save(1, 72, state(1.0), {})
    assert [c.step for c in checkpoints(tmp_path)] == [1]
    saver.finish()


@pytest.mark.parametrize("gathered", [False, True])
def test_copies_fill_several_pieces_of_memory(saver, tmp_path, monkeypatch, gathered):
    monkeypatch.setattr(saving, "_SLAB", 1000)
    tensors = [("ema", str(n), torch.arange(n, dtype=kind)) for n in range(0, 700, 23) for kind in (torch.float32,)]
    tensors += [("model", "big", torch.randn(40, 30)), ("model", "scalar", torch.tensor(7)), *state(2.0)]
    saver.save(1, 10_000, tensors, {}, gathered=gathered)
    saver.finish()
    (found,) = checkpoints(tmp_path)
    for part in PARTS:
        read = found.load(part)
        expected = {name: tensor for of, name, tensor in tensors if of == part}
        assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


def test_memory_that_was_prepared_is_used_by_the_first_checkpoint(saver, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_SLAB", 1000)
    saver.prepare(4_500, pinned=False)
    saver._thread.submit(lambda: None).result()  # the allocation has ended
    prepared = {piece.data_ptr() for piece in saver._slabs._pieces[False]}
    written, begins = saving.save_checkpoint, []

    def note(folder, step, parts, state):
        begins.extend(tensor.data_ptr() for tensors in parts.values() for tensor in tensors.values())
        written(folder, step, parts, state)

    monkeypatch.setattr(saving, "save_checkpoint", note)
    saver.save(1, 4_500, [(part, "w", torch.rand(240)) for part in PARTS], {})
    saver.finish()
    assert len(prepared) == 5 and set(begins) <= prepared and [c.step for c in checkpoints(tmp_path)] == [1]


def test_a_full_disk_is_raised_by_the_loop_and_leaves_the_earlier_one(saver, tmp_path, monkeypatch):
    saver.save(1, 72, state(1.0), {})
    saver.finish()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", full)
        saver.save(2, 72, state(2.0), {})
        with pytest.raises(DiskFull, match="filled up while a checkpoint was written"):
            saver.finish()
    with pytest.raises(DiskFull, match="MB free; a checkpoint needs"):
        saver.save(2, 10**15, state(2.0), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert latest_resumable(tmp_path)[0].step == 1


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, slow_disk):
    config = load_config("demo/plain", SMALL)
    records = fit(config, tmp_path)
    run = None
    for record in records:
        run = run or prepare_run(config, tmp_path)
        if record["step"] == 5:
            assert run.checkpoints == []  # that of step 3 is still being written
            slow_disk.set()
    assert [c.step for c in run.checkpoints] == [6, 8] and run.status["state"] == "finished"


def test_the_next_update_waits_for_the_copy(tmp_path, monkeypatch):
    """A copy that takes long is that of the step at which it was begun: the update waits, losses do not."""
    slow = saving._Slabs.copied
    monkeypatch.setattr(saving._Slabs, "copied", lambda self, tensor: time.sleep(0.01) or slow(self, tensor))
    config = load_config("demo/plain", (*SMALL, "training.steps=4", "training.precision=no"))
    list(fit(config, tmp_path / "slow"))
    monkeypatch.setattr(saving._Slabs, "copied", slow)
    list(fit(config, tmp_path / "fast"))
    first, second = (prepare_run(config, tmp_path / name).checkpoint(3) for name in ("slow", "fast"))
    for part in PARTS:
        expected = second.load(part)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in first.load(part).items())


def test_a_checkpoint_that_cannot_be_written_ends_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    config = load_config("demo/plain", SMALL)
    records, steps = fit(config, tmp_path), []
    with pytest.raises(DiskFull, match="filled up"):
        for record in records:
            steps.append(record["step"])
            if record["step"] == 5:
                run = prepare_run(config, tmp_path)
                while not run.checkpoints:
                    time.sleep(0.01)
                monkeypatch.setattr(files, "_write", full)
    assert steps[:6] == [1, 2, 3, 4, 5, 6]
    assert run.status["state"] == "failed" and [c.step for c in run.checkpoints] == [3]


def resident_bytes(of: str = "VmRSS") -> int:
    """Memory of this process, with the files that it maps, as a batch system counts it; "VmHWM" is its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(of)).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
def test_another_process_that_resumes_needs_no_memory_for_the_checkpoint(tmp_path):
    count, each = 40, 500_000
    save_checkpoint(tmp_path, 1, {part: {str(n): torch.ones(each) for n in range(count)} for part in PARTS}, {})
    gc.collect()
    before = resident_bytes()
    for found, tensors in (latest_resumable(tmp_path), resumable_at(tmp_path, 1)):
        for part in PARTS:
            assert found.step == 1 and all(float(t.sum()) == each for t in tensors[part].values())
            assert resident_bytes() - before < 0.05 * 3 * count * each * 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="needs Linux's account of memory")
def test_the_peak_of_a_resume_is_what_training_keeps(tmp_path, monkeypatch):
    """Of each process: tensors are mapped one by one. The kernel maps a piece of up to 2 MB around each."""
    monkeypatch.setattr(training_state, "_PORTION", 1)
    config = load_config(
        "demo/plain", (*SMALL, "backbone.size=nano", "training.optimizer=adamw", "training.precision=no")
    )
    latents = open_latents(config, "train", tmp_path / ".latents")
    state = TrainState(build_student(config, latents, None, {}), config, accelerate(config))
    for parameter in state.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.update(0.0)
    save_checkpoint(tmp_path, 1, state.parts(), {})
    size = state.bytes()
    state.optimizer.state.clear()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident_bytes()
    _, tensors = resumable_at(tmp_path, 1)
    state.restore(tensors)
    peak = resident_bytes("VmHWM")
    assert size > 50e6 and peak - max(before, resident_bytes()) < 12e6
    assert all(torch.equal(value, tensors["model"][name]) for name, value in state.student.state_dict().items())


def save_until_killed(folder, begun) -> None:
    found = Saver(folder, keep=2, milestone_every=None)
    for step in range(1, 10_000):
        found.save(step, 400_000, state(float(step), 20_000), {})
        begun.value = step


def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path):
    for attempt in range(6):
        folder, begun = tmp_path / str(attempt), FORK.Value("i", 0)
        process = FORK.Process(target=save_until_killed, args=(folder, begun))
        process.start()
        while begun.value < 3:
            time.sleep(0.001)
        time.sleep(random.random() * 0.05)
        process.kill()
        process.join()
        found, tensors = latest_resumable(folder)
        assert found.step >= begun.value - 2  # the one before was complete before this one was begun
        assert all(torch.equal(tensors[part]["w"], torch.full((20_000,), float(found.step))) for part in PARTS)
