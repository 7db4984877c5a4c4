"""Checkpoints: complete or absent, whatever happens."""

import errno
import shutil
from collections import namedtuple

import pytest
import torch

from workbench.runs import checkpoints as module
from workbench.runs.checkpoints import DiskFull, checkpoints, latest_resumable, save_checkpoint, thin


def parts(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {part: {"w": torch.full((3,), value)} for part in ("model", "ema", "optimizer")}


def save(folder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, parts(float(step)), {"seconds": 1.0})


def test_newest_by_step_and_damaged_passed_over(tmp_path):
    save(tmp_path, 10, 9, 100)
    found, tensors = latest_resumable(tmp_path)
    assert found.step == 100 and tensors["ema"]["w"].tolist() == [100.0] * 3
    file = tmp_path / "step-00000100" / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    (tmp_path / "step-00000010" / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged and passed over"):
        assert latest_resumable(tmp_path)[0].step == 9


def test_no_room_before_or_while_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
        with pytest.raises(DiskFull, match="0 MB free"):
            save(tmp_path, 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(DiskFull, match="filled up"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert latest_resumable(tmp_path)[0].step == 1


def test_thinning(tmp_path):
    save(tmp_path, 5, 10, 15, 20, 25)
    (tmp_path / ".step-00000030.1").mkdir()
    thin(tmp_path, keep=2, milestone_every=10, newest=100)
    assert [(c.step, c.resumable) for c in checkpoints(tmp_path)] == [(10, False), (20, True), (25, True)]
    assert not (tmp_path / ".step-00000030.1").exists()


def test_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    written = {
        part: {
            "a": torch.randn(3, 4, generator=generator),
            "b": torch.randn(4, 2, generator=generator).T,  # not contiguous
            "half": torch.randn(5, generator=generator).bfloat16(),
            "step": torch.tensor(7),
        }
        for part in ("model", "ema", "optimizer")
    }
    saved = save_checkpoint(tmp_path / "deep" / "er", 3, written, {"loss": 0.5})
    (found,) = checkpoints(tmp_path / "deep" / "er")
    assert found == saved and found.state["loss"] == 0.5 and found.resumable
    for part, tensors in written.items():
        read = found.load(part)
        assert read.keys() == tensors.keys()
        assert all(read[k].dtype == t.dtype and torch.equal(read[k], t) for k, t in tensors.items())


def test_no_checkpoint(tmp_path):
    assert checkpoints(tmp_path / "absent") == [] and latest_resumable(tmp_path) is None
    save(tmp_path, 4)
    (tmp_path / "step-00000004" / "optimizer.safetensors").unlink()
    assert latest_resumable(tmp_path) is None and checkpoints(tmp_path)[0].load("ema")["w"].tolist() == [4.0] * 3


@pytest.mark.parametrize("state", ["", "null", "[]", "{}", '{"step": 2}', '{"step": 2, "files": {"model": ""}}'])
def test_unreadable_state_is_passed_over(tmp_path, state):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").write_text(state)
    with pytest.warns(UserWarning, match="step-00000002 is damaged and passed over"):
        assert latest_resumable(tmp_path)[0].step == 1


def test_damaged_part_is_named(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-00000001" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ema.safetensors is damaged"):
        checkpoints(tmp_path)[0].load("ema")
    file.unlink()
    with pytest.warns(UserWarning, match="ema.safetensors is missing"):
        assert checkpoints(tmp_path) == []


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 1, parts(9.0), {})
    assert checkpoints(tmp_path)[0].load("model")["w"].tolist() == [9.0] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PermissionError(errno.EACCES, "denied")])
def test_interruptions_leave_nothing_and_keep_their_kind(tmp_path, monkeypatch, error):
    save(tmp_path, 1)

    def interrupt(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", interrupt)
        with pytest.raises(type(error)):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_thinning_without_milestones(tmp_path):
    save(tmp_path, 5, 10, 15)
    thin(tmp_path, keep=1, milestone_every=None, newest=100)
    assert [(c.step, c.resumable) for c in checkpoints(tmp_path)] == [(15, True)]


def test_thinning_leaves_what_training_stands_at(tmp_path):
    """A later checkpoint was passed over for its damage: it must not push the good one out."""
    save(tmp_path, 5, 10, 15)
    thin(tmp_path, keep=1, milestone_every=None, newest=10)
    assert [c.step for c in checkpoints(tmp_path)] == [10, 15]
