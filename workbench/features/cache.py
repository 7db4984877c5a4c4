"""Arrays of features on disk: one file each, whole or absent, the least recently used deleted to make room.

A set of features (one network on the same noised images) is a folder under ``.features`` with ``set.json``, which says
of what. Each file is a ``.npy`` that `numpy.load` can map, then four bytes, the CRC-32 of its numbers: a file cut short
by a crash or changed by a bad disk is known, so none is flushed before it is renamed, which would take longer than its
computation.
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
_CHECKSUM = 4  # bytes of CRC-32 after the numbers


def features_folder(root: Path, described: Mapping[str, Any]) -> Path:
    """The folder of the set of features that ``described`` tells, made if it is not there."""
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / ".features" / key
    if not (folder / "set.json").is_file():
        folder = _place(root) / key
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "set.json").is_file():
        write_json(folder / "set.json", dict(described))
    return folder


def array_file(folder: Path, label: str, t: float, layer: int, of: str = "features") -> Path:
    """The file of one label mode, time and layer; ``of`` is "features" or "lds"."""
    return folder / f"{label}-t{t!r}-layer{layer:02d}-{of}.npy"


def damage(path: Path, numbers: bool) -> str | None:
    """What is wrong with a file that is there, or None; its `numbers` are read only if asked. Looking counts as use."""
    try:
        array = _mapped(path)
        with path.open("rb") as file:
            file.seek(-_CHECKSUM, os.SEEK_END)
            recorded = int.from_bytes(file.read(_CHECKSUM), "little")
        if numbers and zlib.crc32(array.data) != recorded:
            return "its numbers do not have the checksum they were written with"
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{path} is damaged: ")
    _touch(path)
    return None


def read_array(path: Path) -> np.ndarray:
    """The array of a file, mapped into memory; ValueError naming the file if it is missing or damaged."""
    try:
        array = _mapped(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is no longer there, deleted perhaps to make room: extract its features again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; extract its features again") from error
    _touch(path)
    return array


@dataclass
class ArrayWriter:
    """Writes an array row by row; the file has its name only once it is whole."""

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
        """Append rows. OSError when the disk is full, where a mapped file would kill the process."""
        assert rows.shape[1:] == self.shape[1:], (rows.shape, self.shape)
        content = np.ascontiguousarray(rows, self.dtype).data
        self._crc = zlib.crc32(content, self._crc)
        self._file.write(content)
        self._rows += len(rows)

    def finish(self) -> None:
        """Give the whole file its name."""
        assert self._rows == self.shape[0], (self._rows, self.shape)
        self._file.write(self._crc.to_bytes(_CHECKSUM, "little"))
        self._file.close()
        os.replace(self._part, self.path)

    def discard(self) -> None:
        """Remove what was written, unless it was finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a whole array at once."""
    writer = ArrayWriter(path, array.shape, array.dtype)
    writer.write(array)
    writer.finish()


@contextlib.contextmanager
def turn_to_compute(folder: Path) -> Iterator[None]:
    """Wait until no other process computes features of this set; what a killed one left half-written is removed."""
    with hold_lock(folder / ".lock", patience=float("inf")):
        _remove_parts(folder)
        yield


def make_room(root: Path, wanted: Collection[Path], request: int, missing: int) -> None:
    """Delete the files used longest ago, none of ``wanted``, until ``request`` bytes fit the cap, ``missing`` the disk.

    The cap is ``$WORKBENCH_FEATURES_GB``, 20 GB by default. ValueError, with nothing deleted, if that cannot be.
    """
    cap, keep = _cap(), set(wanted)
    place = _place(root)
    others = [path for path in place.glob("*/*.npy") if path not in keep]
    for folder in place.glob("*/"):
        with contextlib.suppress(ValueError), hold_lock(folder / ".lock", patience=0.0):
            _remove_parts(folder)
    used = sorted((stat.st_mtime, stat.st_size, path) for path in others if (stat := _stat(path)))
    stored, free = sum(size for _, size, _ in used), shutil.disk_usage(place if place.is_dir() else root).free
    if request > cap:
        raise ValueError(
            f"these features take {_gb(request)}, more than the {_gb(cap)} that WORKBENCH_FEATURES_GB allows; raise it "
            f"or ask for fewer images, layers or times, for pooling='mean' or dtype='float16'"
        )
    if missing > free + stored:
        raise ValueError(
            f"these features need {_gb(missing)} more; the disk of {place} has {_gb(free)} free, and other features "
            f"that could be deleted take {_gb(stored)}"
        )
    for _, size, path in used:
        if stored + request <= cap and missing <= free:
            break
        path.unlink(missing_ok=True)
        stored, free = stored - size, free + size


def _place(root: Path) -> Path:
    """Where features are kept: among the runs or, if these can only be read, in a temporary folder of one's own."""
    place = root / ".features"
    if not root.is_dir() or os.access(place if place.is_dir() else root, os.W_OK):
        return place
    place = Path(tempfile.gettempdir()) / f"workbench-features-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise ValueError(f"{root} cannot be written, and {place} is another user's: set TMPDIR to a folder of your own")
    return place


def _mapped(path: Path) -> np.memmap:
    # Copy on write: whoever changes the array changes no file.
    return map_npy(path, kinds="f", mode="c", trailer=_CHECKSUM)


def _cap() -> int:
    said = os.environ.get("WORKBENCH_FEATURES_GB", str(_CAP_GB))
    try:
        cap = float(said)
    except ValueError as error:
        raise ValueError(f"WORKBENCH_FEATURES_GB is {said!r}; allowed are numbers of gigabytes, such as 20") from error
    if not cap > 0:
        raise ValueError(f"WORKBENCH_FEATURES_GB is {said!r}; allowed are numbers above 0")
    return int(cap * 1e9)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written is never made room in
        os.utime(path)


def _stat(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
