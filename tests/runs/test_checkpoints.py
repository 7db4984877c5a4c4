"""Checkpoints: complete or absent, whatever happens."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from safetensors.torch import save as save_in_one_piece

from workbench.config import load_config
from workbench.runs import checkpoints as module
from workbench.runs.checkpoints import DiskFull, FellBack, checkpoints, latest_resumable, save_checkpoint, thin
from workbench.runs.store import prepare_run


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
    with pytest.warns(UserWarning, match="damaged and skipped"):
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


_TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.tuples(st.lists(st.integers(0, 40), max_size=3), st.sampled_from(["float32", "bfloat16", "int64", "bool"])),
    max_size=6,
)


@pytest.mark.fuzz
@given(_TENSORS, st.integers(1, 5000))
def test_chunks_are_the_file_that_safetensors_writes(drawn, chunk):
    tensors = {name: torch.ones(shape).to(getattr(torch, kind)) for name, (shape, kind) in drawn.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        written = b"".join(map(bytes, module._serialized(tensors)))
    read = load(written)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in tensors.items())
    assert written == save_in_one_piece(tensors)


def test_no_checkpoint(tmp_path):
    assert checkpoints(tmp_path / "absent") == [] and latest_resumable(tmp_path) is None
    save(tmp_path, 4)
    (tmp_path / "step-00000004" / "optimizer.safetensors").unlink()
    assert latest_resumable(tmp_path) is None and checkpoints(tmp_path)[0].load("ema")["w"].tolist() == [4.0] * 3


@pytest.mark.parametrize("state", ["", "null", "[]", "{}", '{"step": 2}', '{"step": 2, "files": {"model": ""}}'])
def test_unreadable_state_is_passed_over(tmp_path, state):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").write_text(state)
    with pytest.warns(UserWarning, match="step-00000002 is damaged and skipped"):
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


def test_falling_back_to_an_older_step_is_said(tmp_path):
    run = prepare_run(load_config("demo/plain"), tmp_path)
    folder = run.folder / "checkpoints"
    save(folder, 10, 20, 30)
    run.write_status("finished", 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FellBack)
        assert run.checkpoint().step == 30
        (folder / "step-00000010" / "state.json").write_text("{")
        with pytest.warns(UserWarning, match="step-00000010 is damaged"):
            assert [c.step for c in run.checkpoints] == [20, 30]
        assert run.checkpoint().step == 30  # what is older was not asked for
    (folder / "step-00000030" / "ema.safetensors").unlink()
    with pytest.warns(FellBack, match="of step 20 is used .*step-00000030 is damaged: ema.safetensors is missing"):
        assert run.checkpoint().step == 20
    shutil.rmtree(folder / "step-00000030")
    with pytest.warns(FellBack, match="has none for step 30, at which the run finished"):
        assert run.checkpoint().step == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error", FellBack)
        run.write_status("stopped", 30)  # not saved yet, perhaps
        assert run.checkpoint().step == 20


HEADERS = {
    "absurd length": b"\xff" * 8,
    "length beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "absurd shape": b'{"w": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}',
    "beyond the numbers": b'{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}',
    "negative": b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    "another type": b'{"w": {"dtype": "X7", "shape": [1], "data_offsets": [0, 4]}}',
    "a list": b"[1, 2]",
    "empty": b"",
}


@pytest.mark.parametrize("header", HEADERS)
def test_weights_with_an_absurd_header_are_refused(tmp_path, header):
    """Also when somebody has made the hash fit."""
    save(tmp_path, 1)
    content = HEADERS[header]
    if content.startswith((b"{", b"[")):
        content = len(content).to_bytes(8, "little") + content + bytes(4)
    (tmp_path / "step-00000001" / "ema.safetensors").write_bytes(content)
    state = tmp_path / "step-00000001" / "state.json"
    record = json.loads(state.read_text())
    record["files"]["ema"] = hashlib.sha256(content).hexdigest()
    state.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="ema.safetensors is damaged: "):
        checkpoints(tmp_path)[0].load("ema")
    with pytest.warns(UserWarning, match="is damaged and skipped"):
        assert latest_resumable(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"step": 3},
        {"step": "1"},
        {"step": None},
        {"files": []},
        {"files": {"ema": 5}},
        {"seconds": "x"},
        {"seconds": 1e999},
    ],
)
def test_a_state_of_other_types_is_passed_over(tmp_path, change):
    save(tmp_path, 1)
    state = tmp_path / "step-00000001" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
    with pytest.warns(UserWarning, match="step-00000001 is damaged and skipped"):
        assert checkpoints(tmp_path) == []


def test_a_pipe_in_place_of_weights_is_not_waited_for(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-00000001" / "ema.safetensors"
    found = checkpoints(tmp_path)[0]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="ema.safetensors cannot be read: it is not a regular file"):
        found.load("ema")
