"""Checkpoints and run folders: complete or absent, whatever happens."""

import errno
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from workbench.config import load_config
from workbench.runs import checkpoints as module
from workbench.runs.checkpoints import DiskFull, checkpoints, latest_resumable, save_checkpoint, thin
from workbench.runs.store import open_run, prepare_run


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
    thin(tmp_path, keep=2, milestone_every=10)
    assert [(c.step, c.resumable) for c in checkpoints(tmp_path)] == [(10, False), (20, True), (25, True)]
    assert not (tmp_path / ".step-00000030.1").exists()


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
