"""CRC-32 checksums of files, cached with their sizes and times.

A file is read again only if its size, mtime or ctime has changed, so edits that keep the size or reset the mtime are
noticed. Zip archives store CRC-32 of their members, so a folder and a zip file of it have the same checksums.
"""

import contextlib
import hashlib
import io
import logging
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.arrays import open_npz
from workbench.files import home_path, write_atomically

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_THREADS = 8  # mostly waiting for the disk
_TICK = 0.02  # seconds: two changes within a tick of the system clock could have the same time
_REPORT_EVERY = 10.0  # seconds between progress messages


def checksums(root: Path, names: Sequence[str], *, kind: str = "") -> Int[np.ndarray, "n"]:
    """CRC-32 of each file ``root/name``; ``kind`` distinguishes several lists of files under one root.

    Raises ValueError naming a file that cannot be read.
    """
    stamps = np.array([stamp(root / name) for name in names], dtype=np.int64).reshape(-1, 3)
    settle(stamps)
    kept_as = cached(f"checksums-1 {root.resolve()} {kind}")
    blob = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)
    known = load_arrays(kept_as, ("names", "stamps", "checksums"))
    found = np.full(len(names), -1, dtype=np.int64)
    if known is not None:
        _take_known(known, names, blob, stamps, found)
    missing = np.flatnonzero(found < 0)
    if len(missing):
        _read(root, names, missing, stamps, found)
        save_arrays(kept_as, {"names": blob, "stamps": stamps, "checksums": found})
    return found


def stamp(file: Path) -> tuple[int, int, int]:
    """Size, mtime and ctime of a file; ctime cannot be set by programs."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise ValueError(f"{ascii_path(file)} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def settle(stamps: Int[np.ndarray, "n 3"]) -> None:
    """Wait until the clock tick of the newest file is over, so that a later change gets another time."""
    newest = stamps[:, 2].max() / 1e9 if len(stamps) else 0.0
    time.sleep(min(max(newest + _TICK - time.time(), 0.0), _TICK))


def cached(key: str) -> Path | None:
    """Cache file for a key; None for a user without a home folder."""
    try:
        folder = home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    except ValueError:
        return None
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return folder / "workbench" / "indexes" / f"{digest[:32]}.npz"


def load_arrays(file: Path | None, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Load arrays from a cache file; None if it is missing or damaged."""
    if file is None:
        return None
    try:
        with open_npz(file) as arrays:
            return {name: arrays.read(name) for name in names}
    except (OSError, ValueError, KeyError):
        return None


def save_arrays(file: Path | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a cache file, or do nothing if the cache is not writable."""
    if file is None:
        return
    buffer, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez(buffer, **named)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())


def ascii_path(file: Path | str) -> str:
    """A path for a message, with bytes that are not UTF-8 escaped as \\xe9."""
    return str(file).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Progress:
    """Logs progress with the remaining time, for work without another progress report."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._start = what, total, time.monotonic()
        self._next = self._start + _REPORT_EVERY

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now < self._next or not done:
            return
        self._next = now + _REPORT_EVERY
        left = (now - self._start) * (self._total - done) / done
        log.info("%s: %s of %s, about %.0f s left", self._what, f"{done:,}", f"{self._total:,}", left)


def _take_known(
    known: Mapping[str, np.ndarray],
    names: Sequence[str],
    blob: np.ndarray,
    stamps: Int[np.ndarray, "n 3"],
    found: Int[np.ndarray, "n"],
) -> None:
    """Fill in cached checksums of files that have not changed."""
    old_names, old_stamps, old = known["names"], known["stamps"], known["checksums"]
    if np.array_equal(old_names, blob):
        indices = np.arange(len(names))
    else:
        listed = old_names.tobytes().decode("utf-8", "surrogateescape").split("\0")
        index_of = {name: index for index, name in enumerate(listed)}
        indices = np.array([index_of.get(name, -1) for name in names], dtype=np.int64)
    if old_stamps.shape != (len(old), 3) or indices.max(initial=-1) >= len(old):
        return
    same = (indices >= 0) & (old_stamps[indices] == stamps).all(axis=1) if len(old) else np.zeros(len(names), bool)
    found[same] = old[indices[same]]


def _read(
    root: Path,
    names: Sequence[str],
    missing: Int[np.ndarray, "m"],
    stamps: Int[np.ndarray, "n 3"],
    found: Int[np.ndarray, "n"],
) -> None:
    report = Progress(f"checksums of files in {ascii_path(root)}", len(missing))

    def compute(index: int) -> None:
        found[index] = file_checksum(root / names[index])

    with ThreadPoolExecutor(_THREADS) as pool:
        for done, _ in enumerate(pool.map(compute, missing.tolist()), start=1):
            report(done)


def file_checksum(file: Path) -> int:
    """CRC-32 of a file's bytes; ValueError naming one that cannot be read."""
    value = 0
    try:
        with file.open("rb", buffering=0) as opened:
            while chunk := opened.read(_CHUNK):
                value = zlib.crc32(chunk, value)
    except OSError as error:
        raise ValueError(f"{ascii_path(file)} cannot be read: {error.strerror}") from error
    return value
