"""Cache of feature arrays on disk: one file each, written atomically, least recently used files deleted first.

A set of features (one network on the same noisy images) is a folder under ``.features``, described by ``set.json``.
Each file is a ``.npy`` that `numpy.load` can map, followed by four bytes, the CRC-32 of its data. As this reveals files
that were truncated by a crash or changed by a bad disk, files are not flushed to disk before they are renamed, which
would take longer than computing them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from workbench.arrays import map_npy
from workbench.files import hold_lock, write_json

_CAP_GB = 20.0
_CHECKSUM = 4  # bytes of the CRC-32 after the data


def features_folder(root: Path, described: Mapping[str, Any]) -> Path:
    """The folder of the set of features described by ``described``, created if necessary."""
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / ".features" / key
    if not (folder / "set.json").is_file():
        folder = _cache_folder(root) / key
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "set.json").is_file():
        write_json(folder / "set.json", dict(described))
    return folder


def array_file(folder: Path, label: str, t: float, layer: int, of: str = "features") -> Path:
    """The file of one label mode, time and layer; ``of`` is "features" or "lds"."""
    return folder / f"{label}-t{t!r}-layer{layer:02d}-{of}.npy"


def damage(path: Path, numbers: bool) -> str | None:
    """Why a cached file is invalid, or None; with `numbers` its data are checked. Updates its access time."""
    try:
        array = _mapped(path)
        with path.open("rb") as file:
            file.seek(-_CHECKSUM, os.SEEK_END)
            recorded = int.from_bytes(file.read(_CHECKSUM), "little")
        if numbers and zlib.crc32(array.data) != recorded:
            return "its data do not have their checksum"
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{path} is damaged: ")
    _touch(path)
    return None


def read_array(path: Path) -> np.ndarray:
    """Memory-map the array of a file; ValueError naming the file if it is missing or damaged."""
    try:
        array = _mapped(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} no longer exists, perhaps deleted to make room: extract its features again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; extract its features again") from error
    _touch(path)
    return array


@dataclass
class ArrayWriter:
    """Writes an array row by row; the file gets its name when it is complete."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    _file: BufferedWriter = field(init=False, repr=False)
    _rows: int = 0
    _crc: int = 0

    def __post_init__(self) -> None:
        self._file = self._part.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    @property
    def _part(self) -> Path:
        return self.path.with_suffix(".part")

    def write(self, rows: np.ndarray) -> None:
        """Append rows; OSError if the disk is full (writing to a memory map would kill the process)."""
        assert rows.shape[1:] == self.shape[1:], (rows.shape, self.shape)
        content = np.ascontiguousarray(rows, self.dtype).data
        self._crc = zlib.crc32(content, self._crc)
        self._file.write(content)
        self._rows += len(rows)

    def finish(self) -> None:
        """Write the checksum and rename the file to its name."""
        assert self._rows == self.shape[0], (self._rows, self.shape)
        self._file.write(self._crc.to_bytes(_CHECKSUM, "little"))
        self._file.close()
        os.replace(self._part, self.path)

    def discard(self) -> None:
        """Remove the file, unless it was finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a whole array at once."""
    writer = ArrayWriter(path, array.shape, array.dtype)
    writer.write(array)
    writer.finish()


@contextlib.contextmanager
def turn_to_compute(folder: Path) -> Iterator[None]:
    """Wait until no other process computes features of this set, and remove the unfinished files of killed ones."""
    with hold_lock(folder / ".lock", patience=float("inf")):
        _remove_parts(folder)
        yield


def make_room(root: Path, wanted: Collection[Path], request: int, missing: int) -> None:
    """Delete the least recently used files, except ``wanted``, until the features fit.

    ``request`` bytes must fit the cap (``$WORKBENCH_FEATURES_GB``, 20 GB by default) and ``missing`` bytes the disk.
    Raises ValueError, and deletes nothing, if that is impossible.
    """
    cap, keep = _cap(), set(wanted)
    cache = _cache_folder(root)
    others = [path for path in cache.glob("*/*.npy") if path not in keep]
    for folder in cache.glob("*/"):
        with contextlib.suppress(ValueError), hold_lock(folder / ".lock", patience=0.0):
            _remove_parts(folder)
    used = sorted((stat.st_mtime, stat.st_size, path) for path in others if (stat := _stat(path)))
    stored, free = sum(size for _, size, _ in used), shutil.disk_usage(cache if cache.is_dir() else root).free
    if request > cap:
        raise ValueError(
            f"these features take {_gb(request)}, more than the {_gb(cap)} that WORKBENCH_FEATURES_GB allows; raise it "
            f"or ask for fewer images, layers or times, for pooling='mean' or dtype='float16'"
        )
    if missing > free + stored:
        raise ValueError(
            f"these features need {_gb(missing)} more; the disk of {cache} has {_gb(free)} free, and other features "
            f"that could be deleted take {_gb(stored)}"
        )
    for _, size, path in used:
        if stored + request <= cap and missing <= free:
            break
        path.unlink(missing_ok=True)
        stored, free = stored - size, free + size


def _cache_folder(root: Path) -> Path:
    """The cache beside the runs or, if their folder is read-only, the user's own temporary folder."""
    folder = root / ".features"
    if not root.is_dir() or os.access(folder if folder.is_dir() else root, os.W_OK):
        return folder
    folder = Path(tempfile.gettempdir()) / f"workbench-features-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(
            f"{root} cannot be written, and {folder} is another user's: set TMPDIR to a folder of your own"
        )
    return folder


def _mapped(path: Path) -> np.memmap:
    # Copy on write: changing the array does not change the file.
    return map_npy(path, kinds="fu", mode="c", trailer=_CHECKSUM)  # features, and pictures of the same set


def _cap() -> int:
    value = os.environ.get("WORKBENCH_FEATURES_GB", str(_CAP_GB))
    try:
        cap = float(value)
    except ValueError as error:
        raise ValueError(f"WORKBENCH_FEATURES_GB is {value!r}; allowed are numbers of gigabytes, such as 20") from error
    if not cap > 0:
        raise ValueError(f"WORKBENCH_FEATURES_GB is {value!r}; allowed are numbers above 0")
    return int(cap * 1e9)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # in a read-only folder nothing is deleted, so access times do not matter
        os.utime(path)


def _stat(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
