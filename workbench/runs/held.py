"""A run whose checkpoint stays readable while the run trains on and thins its checkpoints."""

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
_TRIES = 10  # a checkpoint may be thinned between being chosen and being linked


@dataclass(frozen=True)
class HeldRun(Run):
    """A run of which one checkpoint is seen: that in `kept`, links to files that the run itself may delete."""

    kept: Path

    @property
    def checkpoint_folder(self) -> Path:
        return self.kept

    def _finished_at(self) -> None:
        """What was chosen is what is there, whatever the run has come to."""


@contextmanager
def held(run: Run, step: int | None = None) -> Iterator[Run]:
    """``run`` with its checkpoint of ``step``, the newest if None, as it is now, until the block ends.

    The weights, not the optimizer, are linked into a hidden folder of the run, which takes no room while the
    checkpoint is there. Where nothing can be written the run itself is given. ValueError for a step that was not kept.
    """
    if isinstance(run, HeldRun):
        yield run
        return
    folder = _place(run)
    if folder is None:
        run.checkpoint(step)
        yield run
        return
    try:
        with hold_lock(folder / _LOCK, patience=1.0):
            yield HeldRun(run.folder, folder) if _link(run, step, folder) else run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(run: Run) -> Path | None:
    """A new folder for links; what killed processes left is removed. None where nothing can be written."""
    for left in run.folder.glob(f"{_PREFIX}*"):
        if not is_locked(left / _LOCK) and (left / _LOCK).is_file():
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=run.folder))
    return None


def _link(run: Run, step: int | None, folder: Path) -> bool:
    """Link the weights of a checkpoint; whether that can be done on this disk."""
    for _ in range(_TRIES):
        checkpoint = run.checkpoint(step)
        place = folder / checkpoint.folder.name
        try:
            place.mkdir()
            for file in ("state.json", *(f"{part}.safetensors" for part in checkpoint.parts if part != "optimizer")):
                _copy(checkpoint.folder / file, place / file)
            return True
        except FileNotFoundError:  # just thinned
            shutil.rmtree(place, ignore_errors=True)
        except OSError:
            return False
    return False


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without links
        shutil.copyfile(source, target)
