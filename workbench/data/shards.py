"""Large tables on disk: rows in safetensors shards, written once by any number of processes, resumable.

A folder holds ``shard-00000.safetensors`` ... with a small JSON file beside each, and ``index.json``, which is written
last. A folder without it is unfinished; writing it again keeps the finished shards.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from workbench.config.older import modern
from workbench.files import parse_mapping, read_json, write_atomically, write_json

SHARD_ROWS = 10_000
_SHARD_BYTES = 1_000_000_000  # a shard is held in memory while it is written, and an interruption loses at most one
_HEADER_BYTES = 100_000_000  # safetensors' own limit
_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
_VERIFIED_BYTES = 1_000_000_000  # larger tables are checked by size only, as hashing them takes minutes

_NOWAIT = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")  # Linux

Rows = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class ReadRows:
    """Rows in two stages, so that the next ones are read while the current ones are computed.

    ``read(indices)`` may run in another thread; ``compute(indices, what was read)`` returns the rows.
    """

    read: Callable[[np.ndarray], Any]
    compute: Callable[[np.ndarray, Any], Mapping[str, np.ndarray]]

    def __call__(self, indices: np.ndarray) -> Mapping[str, np.ndarray]:
        return self.compute(indices, self.read(indices))


@dataclass(frozen=True)
class Shards:
    """A finished folder; ``index`` is its writer's description, with ``count`` and ``shards``."""

    folder: Path
    index: dict[str, Any]

    def __len__(self) -> int:
        return self.index["count"]

    def __reduce__(self) -> tuple:
        return Shards, (self.folder, self.index)  # open files are not pickled

    @cached_property
    def _files(self) -> list["ShardFile"]:
        return [ShardFile(self.folder / shard["file"]) for shard in self.index["shards"]]

    @cached_property
    def _starts(self) -> Int[np.ndarray, "shards"]:
        return np.cumsum([0, *(shard["rows"] for shard in self.index["shards"][:-1])])

    def rows(self, column: str, indices: Integer[np.ndarray, "b"]) -> np.ndarray:
        """Rows ``indices`` of a column, in this order; reads only their bytes."""
        return gather(self._files, self._starts, column, indices)

    def column(self, name: str) -> np.ndarray:
        """A whole column, in memory."""
        return np.concatenate([file.column(name) for file in self._files])


class ShardFile:
    """One safetensors file, open for reading rows; safe to share with forked processes.

    Rows are read, not memory-mapped: a random row costs one disk request instead of one per page, and a truncated file
    raises an error instead of killing the process. Raises ValueError, naming the file, unless it is a safetensors file
    of supported types.
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
            raise ValueError(f"{path} is missing, damaged or not a safetensors file of {wanted}: {error}") from error

    def _check_place(self, name: str, end: int) -> None:
        """Raise ValueError unless a column's shape is valid and matches its bytes, which are within the file."""
        shape, start = self.shapes[name], self._offsets[name]
        if not shape or not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError(f"{name} has the shape {shape} at bytes {start} to {end}")
        if end > os.fstat(self._file.fileno()).st_size or math.prod(shape) * self.dtypes[name].itemsize != end - start:
            raise ValueError(f"{name} of shape {shape} does not fill bytes {start} to {end}, or the file ends before")

    def row_if_in_memory(self, column: str, number: int, out: np.ndarray) -> bool:
        """Read a row if it is in the page cache, and return whether it was; otherwise start to prefetch it."""
        if not _NOWAIT:
            return False
        place = self._offsets[column] + number * out.nbytes
        with contextlib.suppress(OSError):  # not in memory, or not supported by the file system
            if os.preadv(self._file.fileno(), [out.data], place, os.RWF_NOWAIT) == out.nbytes:
                return True
        os.posix_fadvise(self._file.fileno(), place, out.nbytes, os.POSIX_FADV_WILLNEED)
        return False

    def row_into(self, column: str, number: int, out: np.ndarray) -> None:
        """Read one row into ``out``, a contiguous array of the column's type."""
        self._read_into(out, self._offsets[column] + number * out.nbytes)

    def column(self, name: str) -> np.ndarray:
        """The whole column."""
        out = np.empty(self.shapes[name], self.dtypes[name])
        self._read_into(out, self._offsets[name])
        return out

    def _read_into(self, out: np.ndarray, offset: int) -> None:
        raw, done = out.data.cast("B") if out.size else memoryview(b""), 0
        while done < len(raw):
            got = os.preadv(self._file.fileno(), [raw[done:]], offset + done)
            if not got:
                raise ValueError(f"{self.path} is damaged: it is truncated")
            done += got


def gather(
    files: list[ShardFile], starts: Int[np.ndarray, "shards"], column: str, indices: Integer[np.ndarray, "b"]
) -> np.ndarray:
    """Rows ``indices`` of a column that is split over several files; file k begins at row ``starts[k]``."""
    numbers = np.searchsorted(starts, indices, side="right") - 1
    places = indices - starts[numbers]
    out = np.empty((len(indices), *files[0].shapes[column][1:]), files[0].dtypes[column])
    flat = out.reshape(len(out), math.prod(out.shape[1:]))
    wanted = zip(numbers.tolist(), places.tolist(), flat, strict=True)
    # Rows that are not in memory are all requested first and then read, as a disk serves many requests at once.
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
    """Write ``rows(indices)`` for 0 .. count - 1, keeping finished shards; ``described`` goes into the index.

    ``share`` (k, of) writes every ``of``-th shard starting with the k-th. The process that completes the last shard
    writes the index. ``progress(done, total)`` counts rows, including those already finished. Raises ValueError if the
    disk is full; finished shards are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spans = [(first, min(first + shard_rows, count)) for first in range(0, max(1, count), shard_rows)]
    mine = range(share[0], len(spans), share[1])
    wanted, done = sum(stop - start for start, stop in (spans[number] for number in mine)), 0
    for number in mine:
        start, stop = spans[number]
        file = _shard(folder, number)
        report = partial(_report, progress, done, wanted)
        if _record(file, start, stop) is None:
            with _full_disk_named(folder, done, wanted):
                _write_shard(file, start, stop, rows, batch, report)
        else:
            report(stop - start)
        done += stop - start
    records = [_record(_shard(folder, number), *span) for number, span in enumerate(spans)]
    if None not in records:
        with _full_disk_named(folder, done, wanted):
            write_json(folder / "index.json", {**described, "count": count, "shards": records})


def rows_of_a_shard(row_bytes: int, wanted: int = SHARD_ROWS) -> int:
    """Number of rows of ``row_bytes`` per shard: ``wanted``, or as many as fit into a gigabyte."""
    return max(1, min(wanted, _SHARD_BYTES // row_bytes))


def open_shards(folder: Path) -> Shards:
    """Open a finished folder; ValueError naming the file that is missing or damaged."""
    try:
        shards = Shards(folder, modern(read_json(folder / "index.json")))
        total = sum(shard["bytes"] for shard in shards.index["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'index.json'} is missing or damaged; delete {folder} to encode again") from error
    for shard in shards.index["shards"]:
        check_shard(folder, shard, whole=total <= _VERIFIED_BYTES)
    return shards


def check_shard(folder: Path, shard: Mapping[str, Any], whole: bool) -> None:
    """Raise ValueError naming a shard that is missing, has the wrong size or, with ``whole``, the wrong SHA-256."""
    file = folder / shard["file"]
    problem = None
    if not file.is_file():
        problem = "is missing"
    elif file.stat().st_size != shard["bytes"]:
        problem = f"has {file.stat().st_size} bytes instead of {shard['bytes']}"
    elif whole:
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != shard["sha256"]:
                problem = "does not have the SHA-256 in index.json"
    if problem:
        raise ValueError(f"shard {file} {problem}; delete {folder} to encode again")


def _write_shard(file: Path, start: int, stop: int, rows: Rows, batch: int, report: Callable[[int], None]) -> None:
    """Write a file with rows start .. stop - 1; it is built in memory in its final layout, without a second copy."""
    chunks = [np.arange(begin, min(begin + batch, stop)) for begin in range(start, stop, batch)]
    buffer, places, header = io.BytesIO(), None, b""
    with contextlib.closing(_in_turn(rows, chunks)) as computed:
        for indices, values in zip(chunks, computed, strict=True):
            if places is None:
                places, header = _layout(values, stop - start)
                buffer.write(header)
            for name, place in places.items():
                buffer.seek(len(header) + place + (int(indices[0]) - start) * values[name][:1].nbytes)
                buffer.write(np.ascontiguousarray(values[name]).data)
            report(int(indices[-1]) + 1 - start)
    raw = buffer.getvalue()  # no copy in CPython
    write_atomically(file, raw)
    record = {"file": file.name, "start": start, "rows": stop - start, "bytes": len(raw)}
    write_json(file.with_suffix(".json"), {**record, "sha256": hashlib.sha256(raw).hexdigest()})


def _in_turn(rows: Rows, chunks: Sequence[np.ndarray]) -> Generator[Mapping[str, np.ndarray], None, None]:
    """The rows of each chunk; `ReadRows` are read one chunk ahead."""
    if not isinstance(rows, ReadRows):
        yield from map(rows, chunks)
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(rows.read, chunks[0])
        for number, indices in enumerate(chunks):
            current = ahead.result()
            if number + 1 < len(chunks):
                ahead = reader.submit(rows.read, chunks[number + 1])
            yield rows.compute(indices, current)


def _layout(sample: Mapping[str, np.ndarray], count: int) -> tuple[dict[str, int], bytes]:
    """Offset of each column after the header, and the header, of a file with ``count`` rows like ``sample``."""
    kinds = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
    entries, places, offset = {}, {}, 0
    # Wide types first and a header padded to 8 bytes, so that each column is aligned to its type.
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


def _report(progress: Callable[[int, int], None] | None, before: int, wanted: int, written: int) -> None:
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
            f"the disk of {folder} is full: {done} of {wanted} rows are written and kept; free space and run it again"
        ) from error


def _record(file: Path, start: int, stop: int) -> dict[str, Any] | None:
    """The record of a finished shard of these rows; None if it is missing or incomplete."""
    try:
        record = read_json(file.with_suffix(".json"))
        whole = file.stat().st_size == record["bytes"] and (record["start"], record["rows"]) == (start, stop - start)
        return record if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
