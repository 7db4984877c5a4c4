"""Files shared by several processes: atomic writes, size-limited reads with clear errors, and locks.

A lock belongs to an open file, so the kernel releases it however its holder dies.
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
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 256_000_000  # bytes: the largest index that we write has tens of MB
LINES_LIMIT = 1_000_000_000  # bytes: millions of records
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
WEIGHT_ENDINGS = (".pt", ".pth", ".safetensors")  # supported weight files


def home_path(path: str) -> Path:
    """``path`` with a leading ``~`` expanded; ValueError if the home folder is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user, or one without a home
        raise ValueError(f"{path} begins with an unknown home folder; set HOME, or give the full path") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to disk, then rename it into place."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that is flushed to disk and replaces ``path`` at the end of the block.

    Temporary files of killed writers of the same path are removed.
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
    """Write ``record`` as indented JSON, atomically; ValueError as in `to_json`."""
    write_atomically(path, to_json(record, str(path), indent=1).encode())


def to_json(record: Any, name: str, indent: int | None = None) -> str:
    """``record`` as JSON; ValueError, with ``name`` and its key, for a non-finite number, which JSON does not have."""
    try:
        return json.dumps(record, indent=indent, allow_nan=False)
    except ValueError as error:
        key, value = next(_not_finite(record, ""), ("", None))
        if value is None:  # another error, such as a circular reference
            raise
        raise ValueError(f"{name} cannot hold {key} = {value}: JSON only has finite numbers") from error


def parse_json(raw: bytes | str, name: str) -> Any:
    """Parse JSON; ValueError, with ``name``, if it is invalid or nested too deeply."""
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is damaged: it is nested too deeply") from error


def parse_mapping(raw: bytes | str, name: str) -> dict[str, Any]:
    """Parse a JSON mapping; ValueError, with ``name``, for anything else."""
    record = parse_json(raw, name)
    if not isinstance(record, dict):
        raise ValueError(f"{name} is damaged: it holds {type(record).__name__} instead of a mapping")
    return record


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON mapping from a file; ValueError naming the file if it is missing, unreadable or anything else."""
    return parse_mapping(read_file(path, limit), str(path))


def read_jsonl(path: Path, limit: int = LINES_LIMIT) -> list[dict[str, Any]]:
    """Read the records of a JSON-lines file, without an incomplete last line; [] if the file is missing.

    Raises ValueError, naming file and line, for any other line that is not a mapping.
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
    """Parse a line of a JSON-lines file; ValueError naming file and line if it is not a mapping."""
    try:
        return parse_mapping(line, "it")
    except ValueError as error:
        raise damaged(path, str(error).removeprefix("it is damaged: "), number) from error


def damaged(name: Path | str, problem: str, line: int | None = None) -> ValueError:
    """The ValueError for a damaged file, or for one of its lines."""
    return ValueError(f"{name} is damaged{'' if line is None else f' at line {line}'}: {problem}")


def is_cut_short(line: bytes) -> bool:
    """Whether the last line of a JSON-lines file is incomplete because its writer was killed."""
    try:
        parse_json(line, "")
    except ValueError as error:
        return not isinstance(error.__cause__, RecursionError)
    return False


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a JSON-lines file; an incomplete last line of the file is removed first.

    Raises ValueError as `to_json` does, with nothing written.
    """
    line = to_json(record, str(path)) + "\n"
    with naming(path):
        _end_last_line(path)
        with path.open("a") as handle:
            handle.write(line)


def read_file(path: Path, limit: int) -> bytes:
    """Read a regular file; ValueError naming it if it is missing, unreadable or longer than ``limit`` bytes."""
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
    if len(content) > limit:  # it grew meanwhile, or reports no size, as in /proc
        raise ValueError(f"{path} has more than {limit:,} bytes, the limit")
    return content


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; OSError for anything else, such as pipes, which may block forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its writer
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def reason(error: BaseException) -> str:
    """An error as text for users: the message, preceded by the type if it is not a ValueError or OSError."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an OSError that has no file name, as when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_now(handle: int | BinaryIO, path: Path) -> None:
    """Lock an open file for this process.

    Raises BlockingIOError if another process holds it, and ValueError if its file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise ValueError(
            f"the file system of {path} has no file locks ({error.strerror}): mount it with them (Lustre: -o flock), "
            f"or set WORKBENCH_RUNS and WORKBENCH_QUEUE to folders of another one"
        ) from error


@contextlib.contextmanager
def hold_lock(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file ``path``, created if necessary; ValueError if it is still held after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    with path.open("a+b") as file:
        while True:
            try:
                lock_now(file, path)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ValueError(f"{path} is held by another process") from error
                time.sleep(0.01)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file; uses a shared lock, so concurrent calls do not see each other."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # without locks nothing can hold one
            raise
    return False


def _not_finite(record: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Dotted keys of non-finite numbers, and the numbers."""
    if isinstance(record, Mapping):
        record = record.items()
    elif isinstance(record, list | tuple):
        record = enumerate(record)
    else:
        if isinstance(record, float) and not math.isfinite(record):
            yield prefix, record
        return
    for key, value in record:
        yield from _not_finite(value, f"{prefix}.{key}" if prefix else str(key))


def _temporary(path: Path) -> tuple[int, str]:
    """Create a temporary file beside ``path``, locked to show that its writer is alive."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with contextlib.suppress(OSError):  # without file locks, leftovers are not removed
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # removed as a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-*"):
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer is alive
            leftover.unlink()


def _end_last_line(path: Path) -> None:
    """Make a JSON-lines file end in a newline; an incomplete last line is removed."""
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
