"""Keep a checkpoint readable while its run goes on training and thins its checkpoints."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workbench.files import hold_lock, is_locked
from workbench.runs.store import Run

_PREFIX = ".held-"
_LOCK = ".lock"
_TRIES = 10  # a checkpoint may be thinned between choosing and linking it


@dataclass(frozen=True)
class HeldRun(Run):
    """A run with a single checkpoint, in the folder `kept`: links to files that the run itself may delete."""

    kept: Path

    @property
    def checkpoint_folder(self) -> Path:
        return self.kept

    def _finished_at(self) -> None:
        """None, so that no newer checkpoint is expected."""


@contextmanager
def held(run: Run, step: int | None = None) -> Iterator[Run]:
    """Keep the checkpoint of ``run`` at ``step`` (the newest if None) available until the block ends.

    The weights, not the optimizer, are hard-linked into a hidden folder of the run, which takes no disk space while
    the checkpoint exists. In a read-only folder the run itself is yielded. ValueError for a step without a checkpoint.
    """
    if isinstance(run, HeldRun):
        yield run
        return
    folder = _make_folder(run)
    if folder is None:
        run.checkpoint(step)
        yield run
        return
    try:
        with hold_lock(folder / _LOCK, patience=1.0):
            yield HeldRun(run.folder, folder) if _link(run, step, folder) else run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder(run: Run) -> Path | None:
    """Create a folder for the links and remove those of killed processes; None if the run folder is read-only."""
    for left in run.folder.glob(f"{_PREFIX}*"):
        if not is_locked(left / _LOCK) and (left / _LOCK).is_file():
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=run.folder))
    return None


def _link(run: Run, step: int | None, folder: Path) -> bool:
    """Link the weights of a checkpoint; False if the disk does not allow it."""
    for _ in range(_TRIES):
        checkpoint = run.checkpoint(step)
        target = folder / checkpoint.folder.name
        try:
            target.mkdir()
            for file in ("state.json", *(f"{part}.safetensors" for part in checkpoint.parts if part != "optimizer")):
                _copy(checkpoint.folder / file, target / file)
            return True
        except FileNotFoundError:  # thinned meanwhile
            shutil.rmtree(target, ignore_errors=True)
        except OSError:
            return False
    return False


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)
