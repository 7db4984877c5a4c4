"""A checkpoint that is looked at stays readable while the run thins it."""

import shutil

import pytest
import torch

from workbench.runs.checkpoints import save_checkpoint, thin
from workbench.runs.held import HeldRun, held
from workbench.runs.store import Run


def saved(run: Run, step: int) -> None:
    weights = {"w": torch.full((3,), float(step))}
    save_checkpoint(run.folder / "checkpoints", step, dict.fromkeys(("model", "ema", "optimizer"), weights), {})


@pytest.fixture
def run(tmp_path):
    for step in (1, 2):
        saved(Run(tmp_path / "run"), step)
    return Run(tmp_path / "run")


def test_what_is_held_stays(run):
    with held(run) as kept, held(kept) as again, held(run, 1) as older:
        saved(run, 3)
        thin(run.folder / "checkpoints", 1, None, 3)
        assert [c.step for c in run.checkpoints] == [3]
        assert again is kept and (kept.name, kept.folder) == (run.name, run.folder)
        assert kept.checkpoint().step == kept.checkpoint(2).step == 2 and older.checkpoint().step == 1
        assert kept.checkpoint().load("ema")["w"].tolist() == [2, 2, 2] and kept.checkpoint().load("model")
        assert not kept.checkpoint().resumable
        with pytest.raises(ValueError, match=r"run run has no checkpoint of step 3; it has: 2$"):
            kept.checkpoint(3)
    assert [path.name for path in run.folder.iterdir()] == ["checkpoints"]
    with pytest.raises(ValueError, match="has no checkpoint of step 7; it has: 3"), held(run, 7):
        pass
    assert [path.name for path in run.folder.iterdir()] == ["checkpoints"]


def test_what_a_killed_process_left_is_removed(run):
    with held(run) as killed:
        shutil.copytree(killed.kept, run.folder / ".held-left")
        with held(run) as kept:
            assert killed.kept.is_dir() and not (run.folder / ".held-left").exists() and kept.kept != killed.kept


def test_a_disk_without_links_gets_copies(run, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    with held(run) as kept:
        thin(run.folder / "checkpoints", 1, None, 2)
        assert isinstance(kept, HeldRun) and kept.checkpoint().load("ema")["w"].tolist() == [2, 2, 2]
