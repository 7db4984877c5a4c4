"""Checkpoints on disk: a folder of safetensors and one JSON, complete or absent.

``checkpoints/step-00000400/`` holds ``model`` (backbone and heads), ``ema`` (backbone) and ``optimizer`` as
safetensors, and ``state.json`` with the step and the hash of each file. A checkpoint is written under a temporary
name, flushed and renamed. One without an optimizer, thinned or imported, can be looked at, not resumed from; those
that ship with the package have ``ema`` alone.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.files import naming, open_regular, read_json, sync_folder
from workbench.runs.records import SMALL, check_fields

if TYPE_CHECKING:  # who only lists checkpoints does not wait for torch
    from torch import Tensor

PARTS = ("model", "ema", "optimizer")


class FellBack(UserWarning):
    """An older checkpoint is used because the newest is damaged or gone; the command line then ends with code 3."""


class DiskFull(ValueError):
    """There is no room for a checkpoint; the ones before it are intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `PARTS` it was written with."""
        return tuple(part for part in PARTS if part in self.state["files"])

    @property
    def resumable(self) -> bool:
        return (self.folder / "optimizer.safetensors").is_file()

    def load(self, part: str, device: str = "cpu") -> dict[str, "Tensor"]:
        """The tensors of ``part`` ("model", "ema" or "optimizer"); ValueError if the file is damaged or not there."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        self._check_part(part)
        file = self.folder / f"{part}.safetensors"
        try:
            with open_regular(file) as opened:
                content = opened.read()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.state["files"][part]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one in state.json")
        try:
            return {name: tensor.to(device) for name, tensor in load(content).items()}
        except (SafetensorError, RuntimeError, KeyError, OverflowError) as error:  # a header that was made by hand
            raise ValueError(f"{file} is damaged: {error}") from error

    def hash(self, part: str) -> str:
        """SHA-256 of the file of ``part``, as recorded when it was written; ValueError if there is no such part."""
        self._check_part(part)
        return self.state["files"][part]

    def _check_part(self, part: str) -> None:
        if part not in self.state["files"]:
            raise ValueError(f"checkpoint {self.folder} has no {part} weights; it has: {', '.join(self.parts)}")


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, "Tensor"]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write ``folder/step-<step>`` in one stroke: temporary folder, flush, rename; only ``ema`` must be there.

    Raises DiskFull, with nothing changed, when the disk has not enough room before or while writing.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed + 1_000_000:
        raise DiskFull(f"{folder} has {free / 1e6:.0f} MB free; a checkpoint needs {needed / 1e6:.0f} MB")
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    try:
        temporary.mkdir()
        files = {}
        for part, tensors in parts.items():
            assert part in PARTS, part
            content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
            files[part] = hashlib.sha256(content).hexdigest()
            _write(temporary / f"{part}.safetensors", content)
        record = {**state, "step": step, "files": files}
        _write(temporary / "state.json", json.dumps(record, indent=1).encode())
        sync_folder(temporary)
        if final.exists():  # an unusable one of the same step: it was passed over when the run was resumed
            _discard(final)
        os.replace(temporary, final)
        sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(f"the disk of {folder} filled up while a checkpoint was written") from error
        raise
    return Checkpoint(final, step, record)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in ``folder`` by step; damaged ones are warned about and passed over."""
    found, bad = _scan(folder)
    for path, problem in bad.items():
        warnings.warn(f"checkpoint {path} is damaged and passed over: {problem}", stacklevel=2)
    return found


def newest(folder: Path, finished: int | None = None) -> list[Checkpoint]:
    """`checkpoints`, for who takes the last of them: the warning `FellBack` says if there was, or is, a later one.

    ``finished`` is the last step of a run that has finished, whose checkpoint is to be expected.
    """
    found, bad = _scan(folder)
    if not found:
        return checkpoints(folder)  # which says what is wrong with those that there are
    last = found[-1]
    later = [f"{path} is damaged: {problem}" for path, problem in bad.items() if _step_of(path) > last.step]
    if not later and finished is not None and finished > last.step:
        later = [f"{folder} has none of step {finished}, at which the run finished"]
    if later:
        message = f"the checkpoint of step {last.step} is used instead of the newest: {later[-1]}"
        warnings.warn(message, FellBack, stacklevel=3)
    return found


def latest_resumable(folder: Path) -> tuple[Checkpoint, dict[str, dict[str, "Tensor"]]] | None:
    """The newest checkpoint whose files are all whole, with its tensors; damaged ones are passed over."""
    for checkpoint in reversed(checkpoints(folder)):
        if not checkpoint.resumable:
            continue
        try:
            return checkpoint, {part: checkpoint.load(part) for part in PARTS}
        except (OSError, ValueError) as error:
            warnings.warn(f"checkpoint {checkpoint.folder} is damaged and passed over: {error}", stacklevel=2)
    return None


def _scan(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The complete checkpoints by step, and what is wrong with the others."""
    found, bad = [], {}
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith("step-"))
    except FileNotFoundError:
        return [], {}
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
    for path in (folder / name for name in names):
        try:
            found.append(_read(path))
        except (OSError, ValueError) as error:
            if os.path.lexists(path):  # else its trainer has just removed it
                bad[path] = str(error)
    return sorted(found, key=lambda checkpoint: checkpoint.step), bad


def _read(path: Path) -> Checkpoint:
    """The checkpoint in a folder; ValueError that says why it is not complete."""
    file = path / "state.json"
    state = read_json(file, SMALL)
    check_fields(state, file, {"step": int, "files": dict}, {"seconds": float, "scaler": dict})
    if state["step"] != _step_of(path):
        raise ValueError(f"state.json is of step {state['step']}")
    if not all(isinstance(digest, str) for digest in state["files"].values()):
        raise ValueError("state.json has no hashes of its files")
    present = [part for part in PARTS if (path / f"{part}.safetensors").is_file()]
    # An optimizer is thrown away when a checkpoint is thinned; raw weights may never have been there.
    needed = ["ema", *(part for part in state["files"] if part == "model")]
    missing = [part for part in needed if part not in present]
    if missing:
        raise ValueError(f"{missing[0]}.safetensors is missing")
    absent = [part for part in present if part not in state["files"]]
    if absent:
        raise ValueError(f"state.json has no hash of {absent[0]}")
    return Checkpoint(path, state["step"], state)


def _step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 if there is none."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 20 else -1


def thin(folder: Path, keep: int, milestone_every: int | None, newest: int) -> None:
    """Keep the newest ``keep`` checkpoints whole; of older ones keep the weights of milestones, delete the rest.

    Only those up to the step ``newest``, where training stands, count: a later one was passed over for its damage.
    The process must hold the run, as for ``remove_leftovers``.
    """
    remove_leftovers(folder)
    for checkpoint in [c for c in checkpoints(folder) if c.step <= newest][:-keep]:
        if milestone_every and checkpoint.step % milestone_every == 0:
            (checkpoint.folder / "optimizer.safetensors").unlink(missing_ok=True)
        else:
            _discard(checkpoint.folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left half-written (``.step-*``) or half-deleted (``.trash-*``)."""
    for pattern in (".step-*", ".trash-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint under a hidden name, so that half of one is never taken for a damaged one."""
    trash = checkpoint.with_name(f".trash-{checkpoint.name}.{os.getpid()}")
    os.replace(checkpoint, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _write(file: Path, content: bytes) -> None:
    with naming(file), file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
