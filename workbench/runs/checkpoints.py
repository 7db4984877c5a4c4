"""Checkpoints on disk: folders of safetensors files and one JSON file, written atomically.

``checkpoints/step-00000400/`` holds ``model`` (backbone and heads), ``ema`` (backbone) and ``optimizer`` as
safetensors, and ``state.json`` with the step and the hash of each file. A checkpoint is written under a temporary
name, flushed and renamed. Thinned and imported checkpoints have no optimizer: they can be loaded but not resumed.
Those that ship with the package have ``ema`` only.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.files import naming, open_regular, read_json, sync_folder
from workbench.runs.records import SMALL, check_fields

if TYPE_CHECKING:  # listing checkpoints must not import torch
    from torch import Tensor

T = TypeVar("T")
PARTS = ("model", "ema", "optimizer")
_Chunk = bytes | bytearray | memoryview
_CHUNK = 2**23  # bytes written at a time
_FULL = {errno.ENOSPC, errno.EDQUOT}
# PyTorch's types by their names in safetensors.
_KINDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class FellBack(UserWarning):
    """An older checkpoint is used because the newest is damaged or missing; the command line then exits with code 3."""


class DiskFull(ValueError):
    """Too little disk space for a checkpoint; earlier checkpoints are intact."""


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
        """Load the tensors of ``part`` ("model", "ema", "optimizer"); ValueError if its file is damaged or missing."""
        from safetensors.torch import load_file

        file = self._checked(part)
        with _damage_of(file):
            return {name: tensor.to(device, copy=True) for name, tensor in load_file(file).items()}

    def stored(self, part: str, check: bool = True) -> "StoredTensors":
        """The tensors of ``part``, each read when it is asked for; ValueError as `load`.

        Without ``check`` the hash is not compared, for the other processes after one has compared it.
        """
        return StoredTensors(self._checked(part, check))

    def _checked(self, part: str, check: bool = True) -> Path:
        self._check_part(part)
        file = self.folder / f"{part}.safetensors"
        try:
            with open_regular(file) as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest() if check else self.state["files"][part]
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        if digest != self.state["files"][part]:
            raise ValueError(f"{file} is damaged: its SHA-256 differs from the one in state.json")
        return file

    def hash(self, part: str) -> str:
        """SHA-256 of the file of ``part``, recorded when it was written; ValueError if there is no such part."""
        self._check_part(part)
        return self.state["files"][part]

    def _check_part(self, part: str) -> None:
        if part not in self.state["files"]:
            raise ValueError(f"checkpoint {self.folder} has no {part} weights; it has: {', '.join(self.parts)}")


class StoredTensors(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file by name, mapped whenever it is asked for.

    Only those in use take memory; a mapping of the whole file counts as memory of the process page by page, as it is
    read. Copy what is kept: the file may be deleted. Raises ValueError for a damaged file.
    """

    def __init__(self, file: Path):
        self.file = file
        self._names = self._read(lambda opened: tuple(opened.keys()))

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self._names:
            raise KeyError(name)
        return self._read(lambda opened: opened.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, read: Callable[[Any], T]) -> T:
        from safetensors import safe_open

        with _damage_of(self.file), safe_open(self.file, framework="pt") as opened:
            return read(opened)


@contextmanager
def _damage_of(file: Path) -> Iterator[None]:
    """Raise ValueError, naming the file, for what safetensors raises for a wrong header."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError, KeyError, OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, "Tensor"]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write ``folder/step-<step>`` atomically: temporary folder, flush, rename. Only the part ``ema`` is required.

    The parts are written side by side, each hashed while it is written; no tensor is copied unless it is on a GPU or
    not contiguous. Raises DiskFull, with nothing changed, if there is too little disk space before or while writing.
    """
    check_room(folder, size_of(parts))
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    assert parts.keys() <= set(PARTS), list(parts)
    try:
        temporary.mkdir()
        with ThreadPoolExecutor(len(parts)) as writers:
            digests = {
                part: writers.submit(_write, temporary / f"{part}.safetensors", _serialized(tensors))
                for part, tensors in parts.items()
            }
            files = {part: digest.result() for part, digest in digests.items()}
        record = {**state, "step": step, "files": files}
        _write(temporary / "state.json", [json.dumps(record, indent=1).encode()])
        sync_folder(temporary)
        if final.exists():  # a damaged checkpoint of the same step, skipped when the run was resumed
            _discard(final)
        os.replace(temporary, final)
        sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise DiskFull(f"the disk of {folder} filled up while a checkpoint was written") from error
        raise
    return Checkpoint(final, step, record)


def size_of(parts: Mapping[str, Mapping[str, "Tensor"]]) -> int:
    """Bytes of all tensors, which may be shards: of the whole ones."""
    return sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values())


def check_room(folder: Path, needed: int) -> None:
    """Raise DiskFull unless ``folder``, which is created, has room for a checkpoint of ``needed`` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed + 1_000_000:
        raise DiskFull(f"{folder} has {free / 1e6:.0f} MB free; a checkpoint needs {needed / 1e6:.0f} MB")


def checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in ``folder`` by step; damaged ones are skipped with a warning."""
    complete, bad = _scan(folder)
    for path, problem in bad.items():
        warnings.warn(f"checkpoint {path} is damaged and skipped: {problem}", stacklevel=2)
    return complete


def newest(folder: Path, finished: int | None = None) -> list[Checkpoint]:
    """Like `checkpoints`, with the warning `FellBack` if the newest checkpoint is damaged or missing.

    ``finished`` is the last step of a finished run, for which a checkpoint should exist.
    """
    complete, bad = _scan(folder)
    if not complete:
        return checkpoints(folder)  # warns about each damaged one
    last = complete[-1]
    later = [f"{path} is damaged: {problem}" for path, problem in bad.items() if _step_of(path) > last.step]
    if not later and finished is not None and finished > last.step:
        later = [f"{folder} has none for step {finished}, at which the run finished"]
    if later:
        message = f"the checkpoint of step {last.step} is used instead of the newest: {later[-1]}"
        warnings.warn(message, FellBack, stacklevel=3)
    return complete


def latest_resumable(folder: Path) -> tuple[Checkpoint, dict[str, StoredTensors]] | None:
    """The newest intact checkpoint with an optimizer, and its tensors by part; damaged ones are skipped."""
    for checkpoint in reversed(checkpoints(folder)):
        if not checkpoint.resumable:
            continue
        try:
            return checkpoint, {part: checkpoint.stored(part) for part in PARTS}
        except (OSError, ValueError) as error:
            warnings.warn(f"checkpoint {checkpoint.folder} is damaged and skipped: {error}", stacklevel=2)
    return None


def resumable_at(folder: Path, step: int) -> tuple[Checkpoint, dict[str, StoredTensors]] | None:
    """The checkpoint that `latest_resumable` found in another process, not checked again; None if it is not there."""
    found = next((c for c in _scan(folder)[0] if c.step == step and c.resumable), None)
    return None if found is None else (found, {part: found.stored(part, check=False) for part in PARTS})


def _scan(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The complete checkpoints by step, and the problem of each other one by path."""
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
    """Read the checkpoint in a folder; ValueError, with the reason, if it is incomplete."""
    file = path / "state.json"
    state = read_json(file, SMALL)
    check_fields(state, file, {"step": int, "files": dict}, {"seconds": float, "scaler": dict})
    if state["step"] != _step_of(path):
        raise ValueError(f"state.json is of step {state['step']}")
    if not all(isinstance(digest, str) for digest in state["files"].values()):
        raise ValueError("state.json has no hashes of its files")
    present = [part for part in PARTS if (path / f"{part}.safetensors").is_file()]
    # Thinning deletes the optimizer; shipped checkpoints never had raw weights.
    needed = ["ema", *(part for part in state["files"] if part == "model")]
    missing = [part for part in needed if part not in present]
    if missing:
        raise ValueError(f"{missing[0]}.safetensors is missing")
    absent = [part for part in present if part not in state["files"]]
    if absent:
        raise ValueError(f"state.json has no hash of {absent[0]}")
    return Checkpoint(path, state["step"], state)


def _step_of(path: Path) -> int:
    """Step in a checkpoint's folder name; -1 if there is none."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 20 else -1


def thin(folder: Path, keep: int, milestone_every: int | None, newest: int) -> None:
    """Keep the newest ``keep`` checkpoints complete, only the weights of older milestones, and delete the rest.

    Checkpoints after ``newest``, the current step, are ignored: they are damaged. The process must hold the run's
    lock, as for ``remove_leftovers``.
    """
    remove_leftovers(folder)
    for checkpoint in [c for c in checkpoints(folder) if c.step <= newest][:-keep]:
        if milestone_every and checkpoint.step % milestone_every == 0:
            (checkpoint.folder / "optimizer.safetensors").unlink(missing_ok=True)
        else:
            _discard(checkpoint.folder)


def remove_leftovers(folder: Path) -> None:
    """Remove folders that a killed process left half-written (``.step-*``) or half-deleted (``.trash-*``)."""
    for pattern in (".step-*", ".trash-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint under a hidden name, so that a half-deleted one does not count as damaged."""
    trash = checkpoint.with_name(f".trash-{checkpoint.name}.{os.getpid()}")
    os.replace(checkpoint, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _write(file: Path, chunks: Iterable[_Chunk]) -> str:
    """Write and flush a file; returns its SHA-256, of which each chunk is hashed while it is written."""
    digest = hashlib.sha256()
    with naming(file), file.open("wb", buffering=0) as handle, ThreadPoolExecutor(1) as hasher:
        for chunk in chunks:
            hashed = hasher.submit(digest.update, chunk)
            left = memoryview(chunk)
            while left:
                left = left[handle.write(left) :]
            hashed.result()
        os.fsync(handle.fileno())
    return digest.hexdigest()


def _serialized(tensors: Mapping[str, "Tensor"]) -> Iterator[_Chunk]:
    """A safetensors file in chunks, as ``safetensors.torch.save`` returns it in one piece."""
    # The widest types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _KINDS[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    described = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    described += b" " * (-len(described) % 8)
    small = bytearray(len(described).to_bytes(8, "little") + described)
    for _, tensor in ordered:
        content = _bytes(tensor)
        if len(content) < _CHUNK:
            small += content
        if small and (len(content) >= _CHUNK or len(small) >= _CHUNK):
            yield small
            small = bytearray()
        if len(content) >= _CHUNK:
            yield from (content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK))
    if small:
        yield small


def _bytes(tensor: "Tensor") -> memoryview:
    """The bytes of a tensor; of one in main memory without a copy."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
