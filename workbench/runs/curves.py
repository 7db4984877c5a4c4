"""Logged metrics of a run as thinned curves for plotting, and new records as they are logged.

Reading a million lines of JSON takes seconds, so the numbers are cached in ``.curves`` beside ``metrics.jsonl``: one
line of JSON with the column names, then rows of float64. The first column is the line's end offset in the file. Every
reader extends the cache and checks it against ``metrics.jsonl``. It can be deleted at any time.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from workbench.files import damaged, hold_lock, open_regular, parse_json, write_atomically
from workbench.runs.records import check_metrics, parse_metrics
from workbench.runs.store import Run

_CHUNK = 4_000_000  # bytes parsed at once: a fraction of a second
_SAMPLED = 1000  # lines sampled from the part that was not parsed in time
_LINE = 4096  # bytes read to find one line
_COLUMNS = 1000  # metrics that a run may log; each costs eight bytes per record


@dataclass(frozen=True)
class Curves:
    """Curves by name, each (steps, values), thinned but with their extremes; ``records`` counts those before thinning.

    ``complete`` is False if there was only time to sample a part of a long file; the next call continues.
    """

    curves: dict[str, tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]]]
    records: int
    complete: bool


def read_curves(run: Run, points: int = 2000, since: int | None = None, patience: float = 0.4) -> Curves:
    """The logged metrics of a run from step ``since`` on, with at most ``points`` per curve.

    Missing values (None) are left out. The file is parsed in chunks of 4 MB for up to ``patience`` seconds, and the
    rest is sampled. Later calls continue from the cache.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2; got {points}")
    file = run.folder / "metrics.jsonl"
    if not os.path.lexists(file):
        return Curves({}, 0, True)
    try:
        columns, rows, complete = _numbers(file, patience)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    steps = rows[:, columns.index("step")] if len(rows) else np.empty(0)
    first = 0 if since is None else int(np.searchsorted(steps, since))
    curves = {}
    for number, name in enumerate(columns):
        if name not in ("end", "step") and len(rows) > first:
            chosen = thin(np.asarray(rows[first:, number]), points)
            curves[name] = (steps[first:][chosen], np.asarray(rows[first:, number])[chosen])
    return Curves(curves, len(rows), complete)


def thin(values: Float64[np.ndarray, "k"], points: int) -> np.ndarray:
    """Indices of at most ``points`` values: the minimum and maximum of each of ``points / 2`` intervals, in order.

    NaN is left out.
    """
    known = np.flatnonzero(~np.isnan(values))
    if len(known) <= points:
        return known
    edges = np.linspace(0, len(known), points // 2 + 1).astype(int)
    longest = int(np.diff(edges).max())
    # Intervals of equal length: shorter ones repeat their last value.
    index = np.minimum(edges[:-1, None] + np.arange(longest), edges[1:, None] - 1)
    table = values[known][index]
    both = np.stack([index[np.arange(len(index)), part.argmin(axis=1)] for part in (table, -table)], axis=1)
    return known[np.unique(both)]


@dataclass(frozen=True)
class News:
    """Records logged since the last call; ``rewound`` means that a resumed run dropped records: reload the curves."""

    records: list[dict[str, Any]]
    rewound: bool = False


class Follower:
    """Reads records that a run logs from now on. A call costs one stat if there are none."""

    def __init__(self, run: Run):
        self._file = run.folder / "metrics.jsonl"
        self._number, self._end = self._now()

    def new(self) -> News:
        """Records logged since the last call, without an incomplete last line."""
        number, size = self._now()
        if number != self._number and self._number is not None or size < self._end:
            self._number, self._end = number, size
            return News([], rewound=True)
        self._number = number
        if size == self._end:
            return News([])
        try:
            with open_regular(self._file) as handle:
                handle.seek(self._end)
                whole, newline, _ = handle.read(size - self._end).rpartition(b"\n")
        except OSError as error:
            raise ValueError(f"{self._file} cannot be read: {error.strerror}") from error
        if not newline:
            return News([])
        begin, self._end = self._end, self._end + len(whole) + 1
        try:
            return News([parse_metrics(line, self._file, number) for number, line in enumerate(whole.split(b"\n"), 1)])
        except ValueError:
            before = _lines_before(self._file, begin)
            for number, line in enumerate(whole.split(b"\n"), before + 1):
                parse_metrics(line, self._file, number)
            raise

    def _now(self) -> tuple[int | None, int]:
        try:
            stat = os.stat(self._file)
        except OSError:  # missing or unreadable; reading it gives the error
            return None, 0
        return stat.st_ino, stat.st_size


def follow(run: Run) -> Follower:
    """A `Follower` that starts at the current end of the run's records."""
    return Follower(run)


def _numbers(file: Path, patience: float) -> tuple[list[str], np.ndarray, bool]:
    """Columns, rows and whether they are complete, from the cache and the rest of the file; extends the cache."""
    deadline = time.monotonic() + patience
    with open_regular(file) as handle:
        size = os.fstat(handle.fileno()).st_size
        columns, kept = _load(file)
        fresh: list[np.ndarray] = []
        end = int(kept[-1, 0]) if len(kept) else 0
        while end < size and (not fresh or time.monotonic() < deadline):
            handle.seek(end)
            whole, newline, _ = handle.read(_CHUNK).rpartition(b"\n")
            if not newline:  # the last line is incomplete
                end = size
                break
            parsed = _parse(whole, end, columns, file)
            fresh.append(parsed)
            end += len(whole) + 1
    rows = _joined([kept, *fresh], len(columns))
    if fresh:
        _save(file, columns, rows, len(kept))
    if end >= size:
        return columns, rows, True
    return columns, _joined([rows, _sampled(file, end, size, columns)], len(columns)), False


def _parse(lines: bytes, start: int, columns: list[str], file: Path) -> np.ndarray:
    """Parse complete lines that begin at offset ``start``; new names are added to ``columns``."""
    try:
        # Parsing all lines at once is several times faster than one by one.
        records = parse_json(b"[" + lines.replace(b"\n", b",") + b"]", "")
        if len(records) != lines.count(b"\n") + 1:
            raise ValueError("a line holds several records")
        for record in records:
            if not isinstance(record, dict):
                raise ValueError("a line holds no mapping")
            check_metrics(record, "", None)
    except ValueError:
        # Parse line by line to name the one that is wrong.
        before = _lines_before(file, start)
        for number, line in enumerate(lines.split(b"\n"), start=before + 1):
            parse_metrics(line, file, number)
        raise damaged(file, f"between lines {before + 1} and {before + lines.count(10) + 1}") from None
    columns += [name for name in dict.fromkeys(chain.from_iterable(records)) if name not in columns]
    if len(columns) > _COLUMNS:
        raise damaged(file, f"it logs more than {_COLUMNS} different metrics")
    ends = np.flatnonzero(np.frombuffer(lines + b"\n", np.uint8) == ord("\n")) + 1 + start
    table = [ends.astype(float)]
    table += [np.array([record.get(name) for record in records], float) for name in columns[1:]]
    return np.stack(table, axis=1)


def _lines_before(file: Path, position: int) -> int:
    with open_regular(file) as handle:
        count = 0
        while position > 0 and (chunk := handle.read(min(position, _CHUNK))):
            count, position = count + chunk.count(b"\n"), position - len(chunk)
    return count


def _sampled(file: Path, start: int, size: int, columns: list[str]) -> np.ndarray:
    """Rows of evenly spaced lines in a part of the file."""
    lines: list[bytes] = []
    with open_regular(file) as handle:
        for position in np.linspace(start, max(start, size - 2 * _LINE), _SAMPLED).astype(int):
            handle.seek(position)
            found = handle.read(_LINE).split(b"\n", 2)
            if len(found) == 3 and (not lines or lines[-1] != found[1]):
                lines.append(found[1])
    return _parse(b"\n".join(lines), 0, columns, file) if lines else np.empty((0, len(columns)))


def _joined(parts: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Concatenate rows; parts with fewer columns are padded with NaN."""
    parts = [part for part in parts if len(part)] or [np.empty((0, width))]
    if len(parts) == 1 and parts[0].shape[1] == width:
        return parts[0]
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) for part in parts]
    return np.concatenate(wide)


def _load(file: Path) -> tuple[list[str], np.ndarray]:
    """Load the valid prefix of the cache; a resumed run may have rewritten the tail of the file."""
    try:
        with open_regular(file.parent / ".curves") as handle:
            columns = parse_json(handle.readline(_CHUNK), ".curves")
            offset = handle.tell()
        if columns[:1] != ["end"] or "step" not in columns or not all(isinstance(name, str) for name in columns):
            raise ValueError("not the names of columns")
        content = np.memmap(file.parent / ".curves", np.uint8, "r", offset)
        width = len(columns) * 8
        rows = content[: len(content) // width * width].view(np.float64).reshape(-1, len(columns))
    except (OSError, ValueError, TypeError, KeyError):  # missing, incomplete, or another format
        return ["end"], np.empty((0, 1))
    low, high = 0, len(rows)  # binary search for the number of valid rows
    while low < high:
        # Usually all are valid, so the last is checked first.
        middle = high if high == len(rows) else (low + high + 1) // 2
        if _agrees(file, columns, rows, middle - 1):
            low = middle
        else:
            high = middle - 1
    return columns, rows[:low]


def _agrees(file: Path, columns: list[str], rows: np.ndarray, number: int) -> bool:
    """Whether row ``number`` equals the record at its offset; the logged seconds make each record unique."""
    start, end = rows[number - 1, 0] if number else 0, rows[number, 0]
    if not 0 <= start < end < start + _CHUNK:
        return False
    with open_regular(file) as handle:
        handle.seek(int(start))
        line = handle.read(int(end - start))
    if not line.endswith(b"\n") or line.count(b"\n") != 1:
        return False
    try:
        record = parse_metrics(line, file, number)
    except ValueError:
        return False
    values = np.array([record.get(name) for name in columns[1:]], float)
    return np.array_equal(values, rows[number, 1:], equal_nan=True)


def _save(file: Path, columns: list[str], rows: np.ndarray, kept: int) -> None:
    """Append the rows from ``kept`` on to the cache, or rewrite it if its header or length does not match."""
    target, header = file.parent / ".curves", json.dumps(columns).encode() + b"\n"
    before = len(header) + kept * 8 * len(columns)
    # If the cache is not writable, the disk is full or another process holds it, the rows are parsed again next time.
    with contextlib.suppress(OSError, ValueError), hold_lock(file.parent / ".curves-lock", 0.0):
        if target.is_file() and target.stat().st_size == before:
            with target.open("r+b") as handle:
                if handle.readline() == header:
                    handle.seek(0, os.SEEK_END)
                    handle.write(rows[kept:].tobytes())
                    return
        write_atomically(target, header + rows.tobytes())
