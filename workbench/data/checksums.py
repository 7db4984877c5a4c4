"""CRC-32 of files' bytes, remembered with the times and sizes under which they were read.

A file is read once and again only when its size, its time of change or its inode's time of change differs from what
was remembered, so an edit that keeps the size, or that sets the time back, is noticed. CRC-32 is what zip archives
hold of their members, so a folder and a zip file of it have the same checksums.
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

import numpy as np
from jaxtyping import Int

from workbench.arrays import open_npz
from workbench.files import home_path, write_atomically

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_THREADS = 8  # most of the time goes into waiting for the disk
_TICK = 0.02  # seconds: two changes of a file within a tick of the system's clock could bear the same time
_REPORT_EVERY = 10.0  # seconds between lines of progress


def checksums(root: Path, names: Sequence[str], *, kind: str = "") -> Int[np.ndarray, "n"]:
    """CRC-32 of each file ``root/name``; ``kind`` tells apart several lists of files of one root.

    ValueError naming a file that cannot be read.
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
    """Size, time of change of the content, and time of change of the inode, which cannot be set back."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise ValueError(f"{ascii_path(file)} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def settle(stamps: Int[np.ndarray, "n 3"]) -> None:
    """Wait out the tick of the newest file, so that a later change of it has another time."""
    newest = stamps[:, 2].max() / 1e9 if len(stamps) else 0.0
    time.sleep(min(max(newest + _TICK - time.time(), 0.0), _TICK))


def cached(key: str) -> Path | None:
    """Where the user's cache keeps what is known under a key; None for a user without a home."""
    try:
        folder = home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    except ValueError:
        return None
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return folder / "workbench" / "indexes" / f"{digest[:32]}.npz"


def load_arrays(file: Path | None, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Arrays of a cache file; None if it is missing or damaged, which only costs time."""
    if file is None:
        return None
    try:
        with open_npz(file) as arrays:
            return {name: arrays.read(name) for name in names}
    except (OSError, ValueError, KeyError):
        return None


def save_arrays(file: Path | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a cache file, if the cache can be written."""
    if file is None:
        return
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())


def ascii_path(file: Path | str) -> str:
    """A path for a message: bytes of its name that are no UTF-8 as \\xe9."""
    return str(file).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Progress:
    """Lines of progress with the time left, for work that nothing else reports."""

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
    """Fill in what was remembered of files that have not changed since."""
    old_names, old_stamps, old = known["names"], known["stamps"], known["checksums"]
    if np.array_equal(old_names, blob):
        places = np.arange(len(names))
    else:
        listed = old_names.tobytes().decode("utf-8", "surrogateescape").split("\0")
        number = {name: place for place, name in enumerate(listed)}
        places = np.array([number.get(name, -1) for name in names], dtype=np.int64)
    if old_stamps.shape != (len(old), 3) or places.max(initial=-1) >= len(old):
        return
    same = (places >= 0) & (old_stamps[places] == stamps).all(axis=1) if len(old) else np.zeros(len(names), bool)
    found[same] = old[places[same]]


def _read(
    root: Path,
    names: Sequence[str],
    missing: Int[np.ndarray, "m"],
    stamps: Int[np.ndarray, "n 3"],
    found: Int[np.ndarray, "n"],
) -> None:
    tell = Progress(f"files of {ascii_path(root)} read once, so that a change is noticed", len(missing))

    def one(place: int) -> None:
        found[place] = file_checksum(root / names[place])

    with ThreadPoolExecutor(_THREADS) as pool:
        for done, _ in enumerate(pool.map(one, missing.tolist()), start=1):
            tell(done)


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
