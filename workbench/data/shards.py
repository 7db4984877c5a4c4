"""Large tables on disk: rows in safetensors shards, written once, resumable, by any number of processes.

A folder holds ``shard-00000.safetensors`` ... with a small JSON file beside each, and ``index.json``, which is written
last: a folder without it is not finished, and writing it again goes on after the shards that are there.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from workbench.files import parse_mapping, read_json, write_atomically, write_json

SHARD_ROWS = 10_000
_SHARD_BYTES = 1_000_000_000  # a shard is held in memory while it is written, and an interruption loses one at most
_HEADER_BYTES = 100_000_000  # safetensors' own bound
_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
_VERIFIED_BYTES = 1_000_000_000  # larger tables are checked by size only: hashing them costs minutes

_TELLS = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")  # Linux

Rows = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Shards:
    """A finished folder; ``index`` is what its writer said about it, with ``count`` and ``shards``."""

    folder: Path
    index: dict[str, Any]

    def __len__(self) -> int:
        return self.index["count"]

    def __reduce__(self) -> tuple:
        return Shards, (self.folder, self.index)  # open files stay behind

    @cached_property
    def _files(self) -> list["ShardFile"]:
        return [ShardFile(self.folder / shard["file"]) for shard in self.index["shards"]]

    @cached_property
    def _starts(self) -> Int[np.ndarray, "shards"]:
        return np.cumsum([0, *(shard["rows"] for shard in self.index["shards"][:-1])])

    def rows(self, column: str, indices: Integer[np.ndarray, "b"]) -> np.ndarray:
        """The rows ``indices`` of a column, in their order; only their bytes are read."""
        return gather(self._files, self._starts, column, indices)

    def column(self, name: str) -> np.ndarray:
        """A whole column, in memory."""
        return np.concatenate([file.column(name) for file in self._files])


class ShardFile:
    """One safetensors file, open for reading rows: safe to share with forked processes.

    Rows are read, not mapped: a random row costs one request to the disk where touching a map costs one for each of
    its pages, and a file cut short is an error where a map kills the process. ValueError for a file that is no
    safetensors file of known types, naming it.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            if length > _HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes; at most {_HEADER_BYTES:,} are read")
            header = parse_mapping(self._file.read(length), "its header")
            header.pop("__metadata__", None)
            self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
            self.dtypes = {name: np.dtype(_DTYPES[entry["dtype"]]) for name, entry in header.items()}
            self._offsets = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
            for name, entry in header.items():
                self._check_place(name, entry["data_offsets"][1] + 8 + length)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, MemoryError) as error:
            wanted = ", ".join(_DTYPES)
            raise ValueError(f"{path} is missing, damaged or no safetensors file of {wanted}: {error}") from error

    def _check_place(self, name: str, end: int) -> None:
        """ValueError unless a column's shape is one and fills its bytes, which lie within the file."""
        shape, start = self.shapes[name], self._offsets[name]
        if not shape or not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError(f"{name} has the shape {shape} at bytes {start} to {end}")
        if end > os.fstat(self._file.fileno()).st_size or math.prod(shape) * self.dtypes[name].itemsize != end - start:
            raise ValueError(f"{name} of shape {shape} does not fill bytes {start} to {end}, or the file ends before")

    def row_if_in_memory(self, column: str, number: int, out: np.ndarray) -> bool:
        """Read a row only if that needs no disk; whether it was read. If not, the system begins to fetch it."""
        if not _TELLS:
            return False
        place = self._offsets[column] + number * out.nbytes
        with contextlib.suppress(OSError):  # not in memory, or on a file system that cannot tell
            if os.preadv(self._file.fileno(), [out], place, os.RWF_NOWAIT) == out.nbytes:
                return True
        os.posix_fadvise(self._file.fileno(), place, out.nbytes, os.POSIX_FADV_WILLNEED)
        return False

    def row_into(self, column: str, number: int, out: np.ndarray) -> None:
        """Read one row into ``out``, which is contiguous and of the column's type."""
        self._read_into(out, self._offsets[column] + number * out.nbytes)

    def column(self, name: str) -> np.ndarray:
        """The whole column."""
        out = np.empty(self.shapes[name], self.dtypes[name])
        self._read_into(out, self._offsets[name])
        return out

    def _read_into(self, out: np.ndarray, offset: int) -> None:
        raw, done = memoryview(out).cast("B") if out.size else memoryview(b""), 0
        while done < len(raw):
            got = os.preadv(self._file.fileno(), [raw[done:]], offset + done)
            if not got:
                raise ValueError(f"{self.path} is damaged: it ends too early")
            done += got


def gather(
    files: list[ShardFile], starts: Int[np.ndarray, "shards"], column: str, indices: Integer[np.ndarray, "b"]
) -> np.ndarray:
    """The rows ``indices`` of a column that lies in several files, file k from row ``starts[k]`` on."""
    numbers = np.searchsorted(starts, indices, side="right") - 1
    places = indices - starts[numbers]
    out = np.empty((len(indices), *files[0].shapes[column][1:]), files[0].dtypes[column])
    flat = out.reshape(len(out), math.prod(out.shape[1:]))
    wanted = zip(numbers.tolist(), places.tolist(), flat, strict=True)
    # What is not in memory is asked for first and read after: a disk serves many requests at once.
    later = [entry for entry in wanted if not files[entry[0]].row_if_in_memory(column, *entry[1:])]
    for number, place, row in later:
        files[number].row_into(column, place, row)
    return out


def write_shards(
    folder: Path,
    count: int,
    rows: Rows,
    described: Mapping[str, Any],
    *,
    share: tuple[int, int] = (0, 1),
    batch: int = 100,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``rows(indices)`` for 0 .. count - 1, keeping shards that are there; ``described`` goes into the index.

    ``share`` (k, of) writes every ``of``-th shard from the k-th on; whoever finds all shards finished writes the
    index. ``progress(done, total)`` counts rows, those found finished included. Raises ValueError when the disk is
    full; finished shards are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spans = [(first, min(first + shard_rows, count)) for first in range(0, max(1, count), shard_rows)]
    mine = range(share[0], len(spans), share[1])
    wanted, done = sum(stop - start for start, stop in (spans[number] for number in mine)), 0
    for number in mine:
        start, stop = spans[number]
        file = _shard(folder, number)
        told = partial(_tell, progress, done, wanted)
        if _record(file, start, stop) is None:
            with _full_disk_named(folder, done, wanted):
                _write_shard(file, start, stop, rows, batch, told)
        else:
            told(stop - start)
        done += stop - start
    records = [_record(_shard(folder, number), *span) for number, span in enumerate(spans)]
    if None not in records:
        with _full_disk_named(folder, done, wanted):
            write_json(folder / "index.json", {**described, "count": count, "shards": records})


def rows_of_a_shard(row_bytes: int, wanted: int = SHARD_ROWS) -> int:
    """How many rows of ``row_bytes`` go into a shard: ``wanted``, or as many as fit into a gigabyte."""
    return max(1, min(wanted, _SHARD_BYTES // row_bytes))


def open_shards(folder: Path) -> Shards:
    """Open a finished folder; ValueError naming the file that is missing or damaged."""
    try:
        shards = Shards(folder, read_json(folder / "index.json"))
        total = sum(shard["bytes"] for shard in shards.index["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'index.json'} is missing or damaged; delete {folder} to encode again") from error
    for shard in shards.index["shards"]:
        check_shard(folder, shard, whole=total <= _VERIFIED_BYTES)
    return shards


def check_shard(folder: Path, shard: Mapping[str, Any], whole: bool) -> None:
    """ValueError naming a shard that is missing or has another size or, with ``whole``, other bytes than recorded."""
    file = folder / shard["file"]
    problem = None
    if not file.is_file():
        problem = "is missing"
    elif file.stat().st_size != shard["bytes"]:
        problem = f"has {file.stat().st_size} bytes instead of {shard['bytes']}"
    elif whole:
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != shard["sha256"]:
                problem = "does not have the SHA-256 of index.json"
    if problem:
        raise ValueError(f"shard {file} {problem}; delete {folder} to encode again")


def _write_shard(file: Path, start: int, stop: int, rows: Rows, batch: int, told: Callable[[int], None]) -> None:
    """One file with rows start .. stop - 1, laid out in memory as it will lie on disk, so that it is there once."""
    values = rows(np.arange(start, min(start + batch, stop)))
    places, header = _layout(values, stop - start)
    buffer = io.BytesIO()
    buffer.write(header)
    for begin in range(start, stop, batch):
        end = min(begin + batch, stop)
        values = values if begin == start else rows(np.arange(begin, end))
        for name, place in places.items():
            buffer.seek(len(header) + place + (begin - start) * values[name][:1].nbytes)
            buffer.write(np.ascontiguousarray(values[name]).data)
        told(end - start)
    raw = buffer.getvalue()  # CPython hands over its own bytes, not a copy of them
    write_atomically(file, raw)
    record = {"file": file.name, "start": start, "rows": stop - start, "bytes": len(raw)}
    write_json(file.with_suffix(".json"), {**record, "sha256": hashlib.sha256(raw).hexdigest()})


def _layout(sample: Mapping[str, np.ndarray], count: int) -> tuple[dict[str, int], bytes]:
    """Where each column begins after the header, and the header, of a file with ``count`` rows like ``sample``'s."""
    kinds = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
    entries, places, offset = {}, {}, 0
    # Wide numbers first, and a header of whole eights: each column then begins at a multiple of its number's size.
    for name, values in sorted(sample.items(), key=lambda item: -item[1].itemsize):
        places[name], end = offset, offset + values[:1].nbytes * count
        shape = [count, *values.shape[1:]]
        entries[name] = {"dtype": kinds[values.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return places, len(text).to_bytes(8, "little") + text


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _tell(progress: Callable[[int, int], None] | None, before: int, wanted: int, written: int) -> None:
    if progress:
        progress(before + written, wanted)


@contextlib.contextmanager
def _full_disk_named(folder: Path, done: int, wanted: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"the disk of {folder} is full: {done} of {wanted} rows are written and kept; make room and run it again"
        ) from error


def _record(file: Path, start: int, stop: int) -> dict[str, Any] | None:
    """What was noted about a finished shard of these rows; None if it is not there whole."""
    try:
        record = read_json(file.with_suffix(".json"))
        whole = file.stat().st_size == record["bytes"] and (record["start"], record["rows"]) == (start, stop - start)
        return record if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
