"""Files that several processes share: written so that nobody sees half of one, read with clear errors, locked.

A lock belongs to an open file, so the kernel frees it at any death of its holder.
"""

import contextlib
import errno
import fcntl
import glob
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 256_000_000  # bytes: the longest index that we write has tens of MB
LINES_LIMIT = 1_000_000_000  # bytes: millions of records
WEIGHT_ENDINGS = (".pt", ".pth", ".safetensors")  # of files of weights that are read and written


def home_path(path: str) -> Path:
    """``path`` with a leading ``~`` as the home it means; ValueError for a home that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user, or one without a home
        raise ValueError(f"{path} begins with a home that is not known; set HOME, or give the whole path") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to disk, then rename it into place."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, to be written at leisure, which is flushed to disk and takes its place at the end.

    What killed writers of the same path left behind is removed.
    """
    with naming(path):
        _remove_leftovers(path)
        handle, temporary = _temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as indented JSON, atomically; ValueError as `to_json`."""
    write_atomically(path, to_json(record, str(path), indent=1).encode())


def to_json(record: Any, name: str, indent: int | None = None) -> str:
    """``record`` as JSON; ValueError naming ``name`` and the first number that is not finite, which JSON has not."""
    try:
        return json.dumps(record, indent=indent, allow_nan=False)
    except ValueError as error:
        place, value = next(_not_finite(record, ""), ("", None))
        if value is None:  # another error: a record inside itself
            raise
        raise ValueError(f"{name} cannot hold {place} = {value}: JSON has finite numbers only") from error


def parse_json(raw: bytes | str, name: str) -> Any:
    """The value in a JSON text; ValueError calling it ``name`` if it is no JSON or is nested too deeply to read."""
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is damaged: it is nested too deeply") from error


def parse_mapping(raw: bytes | str, name: str) -> dict[str, Any]:
    """The mapping in a JSON text; ValueError calling it ``name`` if it holds anything else."""
    record = parse_json(raw, name)
    if not isinstance(record, dict):
        raise ValueError(f"{name} is damaged: it holds {type(record).__name__} instead of a mapping")
    return record


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The mapping in a JSON file; ValueError naming the file if it is missing, unreadable or holds something else."""
    return parse_mapping(read_file(path, limit), str(path))


def read_jsonl(path: Path, limit: int = LINES_LIMIT) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, each a mapping; a missing file is empty, a last line cut short is left out.

    Any other line that is no mapping is a ValueError naming the file and the line.
    """
    if not os.path.lexists(path):
        return []
    lines = read_file(path, limit).split(b"\n")
    if not lines[-1]:
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and is_cut_short(line):
            break
        records.append(parse_line(line, path, number))
    return records


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """The mapping in a line of a JSON-lines file; ValueError naming the file and the line if it holds another thing."""
    try:
        return parse_mapping(line, "it")
    except ValueError as error:
        raise damaged(path, str(error).removeprefix("it is damaged: "), number) from error


def damaged(name: Path | str, problem: str, line: int | None = None) -> ValueError:
    """The error that says what is wrong with a file, or with one of its lines."""
    return ValueError(f"{name} is damaged{'' if line is None else f' at line {line}'}: {problem}")


def is_cut_short(line: bytes) -> bool:
    """Whether the last line of a JSON-lines file is no JSON: what was being written when its writer was killed."""
    try:
        parse_json(line, "")
    except ValueError as error:
        return not isinstance(error.__cause__, RecursionError)
    return False


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file, after mending a last one without an end: completed if whole, else dropped.

    ValueError as `to_json`, with nothing written.
    """
    line = to_json(record, str(path)) + "\n"
    with naming(path):
        _end_last_line(path)
        with path.open("a") as handle:
            handle.write(line)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file; ValueError naming it if it is missing, unreadable or longer than ``limit``."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise ValueError(f"{path} has {size:,} bytes; at most {limit:,} are read")
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:  # it grew meanwhile, or has no size, as files of /proc
        raise ValueError(f"{path} has more than {limit:,} bytes; no more are read")
    return content


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading; OSError for anything else, which might never end or never begin."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def reason(error: BaseException) -> str:
    """What an error says, for a reader: the sentence of an expected one; the kind of any other stands before it."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system inside name ``path`` if they name no file, as when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file ``path``, made if need be; ValueError if others still hold it after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    with path.open("a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"{path} is held by another process") from error
                time.sleep(0.01)
        yield


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file; the look is shared, so those who look do not see one another."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def _not_finite(record: Any, place: str) -> Iterator[tuple[str, float]]:
    """The dotted places of numbers that are not finite, with the numbers."""
    if isinstance(record, Mapping):
        record = record.items()
    elif isinstance(record, list | tuple):
        record = enumerate(record)
    else:
        if isinstance(record, float) and not math.isfinite(record):
            yield place, record
        return
    for key, value in record:
        yield from _not_finite(value, f"{place}.{key}" if place else str(key))


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, open and locked: the lock tells others that its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with contextlib.suppress(OSError):  # a file system without locks: leftovers stay there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # taken for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-*"):
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
            leftover.unlink()


def _end_last_line(path: Path) -> None:
    """Make a JSON-lines file end in a newline: a last line that is whole gets it, one cut short is dropped."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) == b"\n":
            return
        handle.seek(0)
        content = handle.read()
        start = content.rfind(b"\n") + 1
        if is_cut_short(content[start:]):
            handle.truncate(start)
        else:
            handle.write(b"\n")
