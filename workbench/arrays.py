"""Safe reading of untrusted .npy and .npz files.

A header may claim any shape, so it is checked against the size of the file before memory is allocated. Pickled objects
are never loaded. All errors are ValueErrors that name the file.
"""

import io
import lzma
import math
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

_MOST_HEADER = 10_000  # bytes, as NumPy's own limit; usually 118
_MOST_DIRECTORY = 1_000_000  # bytes of a zip archive's central directory; about 60 per member
_MOST_UNPACKED = 1032  # maximum compression ratio of deflate
_LIMIT_GB = 4.0  # for arrays that must be held in memory
_CHUNK = 2**20
_LISTED = 6  # names of members in a message
_REFUSED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError),
    *(RuntimeError, OverflowError, MemoryError, SyntaxError, struct.error, tokenize.TokenError),
)  # what zipfile and NumPy raise for damaged files; RecursionError and NotImplementedError are RuntimeErrors
_KINDS = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers", "U": "text", "b": "true or false"}


@dataclass(frozen=True)
class Header:
    """Header of a .npy file; `start` is the offset of the data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int

    @property
    def size(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def order(self) -> Literal["C", "F"]:
        """NumPy's name of the memory layout."""
        return "F" if self.fortran else "C"


def is_npy(file: Path) -> bool:
    """Whether `file` begins like a .npy file; ValueError if it is not a regular file or cannot be read."""
    return _magic(file).startswith(b"\x93NUMPY")


def npy_header(file: Path, *, name: str = "its array") -> Header:
    """Read the header of a .npy file; ValueError, naming the array `name`, for Python objects and as in `map_npy`."""
    with _named_errors(file, name), file.open("rb") as opened:
        header = _header(opened)
        _check(header, None, os.fstat(opened.fileno()).st_size - header.start)
        return header


def map_npy(
    file: Path, *, kinds: str = "fiu", mode: Literal["r", "c"] = "r", name: str = "its array", trailer: int = 0
) -> np.memmap:
    """Memory-map the array of a .npy file; `trailer` is the number of bytes after the data.

    `kinds` are the allowed NumPy type kinds. Raises FileNotFoundError if there is no file, and ValueError, naming the
    array `name`, for another type, a size that differs from the header, or an empty array.
    """
    with _named_errors(file, name), file.open("rb") as opened:
        header = _header(opened)
        _check(header, kinds, os.fstat(opened.fileno()).st_size - header.start - trailer)
        if not header.size:
            raise ValueError(f"it has no numbers: its shape is {header.shape}")
        return np.memmap(opened, header.dtype, mode, header.start, header.shape, header.order)


class Arrays:
    """Arrays of an open .npz file by name; see `open_npz`."""

    def __init__(self, file: Path, archive: zipfile.ZipFile):
        self.file, self._archive = file, archive
        members = archive.infolist()
        self._members = {m.filename.removesuffix(".npy"): m for m in members if m.filename.endswith(".npy")}
        names = [m.filename for m in members]
        if len(set(names)) < len(names):
            duplicate = next(name for number, name in enumerate(names) if name in names[:number])
            raise ValueError(f"it has {duplicate!r} more than once")

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def listed(self) -> str:
        """Names of the members, for a message."""
        names = [member.filename.removesuffix(".npy") for member in self._archive.infolist()]
        more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
        shown = [name if name.isidentifier() else ascii(name[:40]) for name in names[:_LISTED]]
        return ", ".join([*shown, *more]) or "nothing"

    def header(self, name: str) -> Header:
        """Read the header of an array and check it against the data; ValueError as in `npy_header`."""
        with _named_errors(self.file, name):
            member = self._member(name)
            with self._archive.open(member) as stream:
                header = _header(stream)
                _check(header, None, member.file_size - header.start)
                return header

    def read(self, name: str, *, kinds: str = "fiu") -> np.ndarray:
        """Read an array into memory. ValueError as in `map_npy`, and above the limit `$WORKBENCH_ARRAYS_GB`."""
        with _named_errors(self.file, name):
            member = self._member(name)
            with self._archive.open(member) as stream:
                header = _header(stream)
                _check(header, kinds, member.file_size - header.start)
                return _numbers(stream, header, stored=member.compress_type == zipfile.ZIP_STORED)

    def map(self, name: str, *, kinds: str = "fiu") -> np.ndarray:
        """Memory-map an array that is stored uncompressed, after checking its checksum; otherwise `read` it."""
        with _named_errors(self.file, name):
            member = self._member(name)
            with self._archive.open(member) as stream:
                header = _header(stream)
                _check(header, kinds, member.file_size - header.start)
                if member.compress_type != zipfile.ZIP_STORED or not header.size:
                    return _numbers(stream, header, stored=not header.size)
                while stream.read(_CHUNK):  # zipfile compares the checksum at the end; a memory map does not
                    pass
            with self.file.open("rb") as opened:
                opened.seek(
                    member.header_offset + 26
                )  # the local header; its extra field may differ from the directory's
                lengths = struct.unpack("<HH", opened.read(4))  # of the name and the extra field
            start = member.header_offset + 30 + sum(lengths) + header.start
            return np.memmap(self.file, header.dtype, "r", start, header.shape, header.order)

    def _member(self, name: str) -> zipfile.ZipInfo:
        member, there = self._members[name], self.file.stat().st_size
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"it uses compression method {member.compress_type}; allowed are none (0) and deflate (8)")
        if member.flag_bits & 1:
            raise ValueError("it is encrypted")
        factor = _MOST_UNPACKED if member.compress_type else 1
        if member.compress_size > there or member.file_size > factor * member.compress_size + 64 * bool(factor > 1):
            raise ValueError(
                f"it claims {member.file_size:,} bytes, which cannot be in {member.compress_size:,} compressed bytes"
            )
        return member


@contextmanager
def open_npz(file: Path) -> Iterator[Arrays]:
    """Open an .npz file; ValueError if it is missing, empty, damaged or not an .npz file."""
    magic = _magic(file)
    if not magic.startswith(b"PK"):
        raise ValueError(f"{file} is {'not an .npz file' if magic else 'empty'}: it does not begin like a zip archive")
    try:
        _check_directory(file)
        archive = zipfile.ZipFile(file)
    except _REFUSED as error:
        raise ValueError(f"{file} is damaged or truncated: {_first_line(error)}") from error
    with archive:
        try:
            arrays = Arrays(file, archive)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        yield arrays


def _magic(file: Path) -> bytes:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{file} is a folder; allowed are .npz and .npy files")
        if not stat.S_ISREG(mode):  # pipes and devices cannot be read at random
            raise ValueError(f"{file} is not a regular file; allowed are .npz and .npy files")
        with file.open("rb") as opened:
            return opened.read(6)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


def _limit() -> int:
    text = os.environ.get("WORKBENCH_ARRAYS_GB", str(_LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ValueError(f"WORKBENCH_ARRAYS_GB is {text!r}; allowed are numbers of gigabytes above 0, such as 4")
    return int(limit * 1e9)


@contextmanager
def _named_errors(file: Path, name: str) -> Iterator[None]:
    """Turn errors in reading an array into a ValueError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _NotAllowed as error:
        raise ValueError(f"{file}: {name} {error}") from error
    except _REFUSED as error:
        raise ValueError(f"{file} is damaged: {name} cannot be read ({_first_line(error)})") from error


class _NotAllowed(Exception):
    """An intact array that is not allowed, by its type or size."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# zipfile is typed as returning IO[bytes], but its class does not satisfy that protocol at run time.
def _header(stream: IO[bytes] | io.BufferedIOBase) -> Header:
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin like a .npy file")
    version, width = tuple(magic[6:8]), {1: 2, 2: 4}.get(magic[6] if len(magic) == 8 else 0)
    if width is None:
        raise ValueError(f"its format version is {version}; allowed are 1.0 and 2.0")
    length = stream.read(width)
    size = int.from_bytes(length, "little")
    if size > _MOST_HEADER:
        raise ValueError(f"its header has {size:,} bytes; allowed are {_MOST_HEADER:,}")
    text = io.BytesIO(length + stream.read(size))
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        shape, fortran, dtype = parse(text)
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    return Header(tuple(map(int, shape)), fortran, dtype, 8 + width + size)


def _check(header: Header, kinds: str | None, available: int) -> None:
    """Check a header before its values are used; the file has `available` bytes of data."""
    if header.dtype.hasobject:
        raise _NotAllowed("holds Python objects, which are not loaded: save numbers")
    if kinds is not None and header.dtype.kind not in kinds:
        allowed = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
        raise _NotAllowed(f"is {header.dtype}; allowed are {allowed}")
    if header.size != available:
        shape = " x ".join(f"{length:,}" for length in header.shape)
        claim = f"its header claims {header.size:,} bytes ({shape} of {header.dtype})"
        raise ValueError(f"{claim}, the file has {available:,}")


def _numbers(stream: IO[bytes] | io.BufferedIOBase, header: Header, stored: bool) -> np.ndarray:
    """Read the data after a header; untouched pages of the array take no memory, so a false claim costs nothing."""
    limit = _limit()
    if header.size > limit:
        how = "" if stored else ", or save it uncompressed with np.savez"
        raise _NotAllowed(
            f"takes {header.size / 1e9:,.3g} GB of memory, more than the {limit / 1e9:g} GB that WORKBENCH_ARRAYS_GB "
            f"allows: raise it{how}"
        )
    values = np.empty(math.prod(header.shape), header.dtype)
    done, target = 0, values.view(np.uint8).data if header.size else memoryview(b"")
    while chunk := stream.read(_CHUNK):
        target[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done != header.size:
        raise EOFError(f"it ends after {done:,} of {header.size:,} bytes")
    return values.reshape(header.shape, order=header.order)


def _check_directory(file: Path) -> None:
    """Raise ValueError for a central directory that is too large to read."""
    with file.open("rb") as opened:
        end = opened.seek(0, os.SEEK_END)
        start = max(0, end - 2**16 - 22 - 20 - 56)  # the longest comment and the end-of-directory records
        opened.seek(start)
        tail = opened.read()
    bare = tail[-22:-18] == b"PK\x05\x06" and tail[-2:] == b"\0\0"  # without a comment; zipfile's first guess
    record = len(tail) - 22 if bare else tail.rfind(b"PK\x05\x06")
    if record < 0:
        return  # zipfile raises the error
    size = int.from_bytes(tail[record + 12 : record + 16], "little")
    large = tail[record - 76 : record] if record >= 76 else b""  # zip64 record
    if large.startswith(b"PK\x06\x06"):
        size = int.from_bytes(large[40:48], "little")
    if size > _MOST_DIRECTORY:
        raise ValueError(f"its list of members has {size:,} bytes; allowed are {_MOST_DIRECTORY:,}")
