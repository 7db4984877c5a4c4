"""Zip archives of run records: everything that tables and curves need, without the weights.

An archive holds each run's configuration, metrics, history, scores and provenance, and the job records of the sweeps
that it belongs to. An archive from elsewhere is read within size limits and checked as a whole before anything is
unpacked.
"""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from workbench.config.reading import MAX_BYTES
from workbench.files import hold_lock, naming, open_regular, parse_mapping, read_json, replacing
from workbench.runs.index import read_options
from workbench.runs.records import check_fields, check_provenance, read_events
from workbench.runs.store import Run, find_runs

_RECORDS = ("config.yaml", "provenance.json", "metrics.jsonl", "history.jsonl", "results.jsonl")
_PATIENCE = 60.0  # seconds to wait for another process that unpacks
# Limits for an archive from elsewhere. The report of the paper has a thousand members and 4 MB, unpacked.
_MEMBERS = 20_000
_TOTAL = 1_000_000_000  # bytes, unpacked
_LARGEST = {"config.yaml": MAX_BYTES, "provenance.json": 4_000_000, "job.json": 4_000_000}  # bytes, unpacked
_LARGEST |= dict.fromkeys(("metrics.jsonl", "history.jsonl", "results.jsonl"), 64_000_000)
_DIRECTORY = 300 * _MEMBERS  # bytes of the list of members
_END = 65_557  # bytes that contain the end-of-directory record, with a comment of any length
# Names that are valid on every file system and safe in a table and on a page.
_NAME = re.compile(r"(?!\.)[^<>:\"/\\|?*]{1,200}")
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(LookupError, ValueError, RuntimeError, OverflowError),
)  # what zipfile raises for damaged or unusual files


def pack_records(runs: Iterable[Run], file: Path) -> Path:
    """Write the records of finished runs under one root to a zip file. Equal runs give equal bytes.

    Raises ValueError, with nothing written, for a run that has not finished.
    """
    members: dict[str, bytes] = {}
    for run in runs:
        if run.status["state"] != "finished":
            raise ValueError(f"run {run.name} is {run.status['state']}; only finished runs can be packed")
        members |= {f"{run.name}/{path.name}": path.read_bytes() for path in _records(run)}
        for job in run.folder.parent.glob("sweeps/*/*/job.json"):
            if read_json(job).get("run") == run.name:
                members[str(job.relative_to(run.folder.parent))] = job.read_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as opened:
        write_archive(opened, members)
    return file


def unpack_records(file: Path, root: Path) -> list[Run]:
    """Unpack the runs of an archive that are not yet under `root` and return them; each is complete or absent.

    They count as finished and serve tables and curves, but have no weights. Raises ValueError, with nothing unpacked,
    for a file that is not such an archive, a damaged run in it, or a run folder that already exists.
    """
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
    runs, jobs = _read_records(file)
    fingerprints = {name: _fingerprint(file, name, members) for name, members in runs.items()}
    with _writing(root), hold_lock(root / ".unpack-lock", _PATIENCE):
        known = {run.fingerprint for run in find_runs(root)}
        fresh = [name for name in runs if fingerprints[name] not in known]
        for name in fresh:
            _refuse_taken(root / name, file)
        with TemporaryDirectory(dir=root, prefix=".unpack-") as temporary:
            for name in fresh:
                _write(Path(temporary) / name, runs[name], file)
            for name in fresh:
                os.replace(Path(temporary) / name, root / name)
            for name, content in jobs.items():
                if not (root / name).exists():
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    with naming(root / name):
                        (Path(temporary) / "job.json").write_bytes(content)
                        os.replace(Path(temporary) / "job.json", root / name)
    return [Run(root / name) for name in fresh]


def write_archive(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """Write members to a zip file, without dates, so that equal members give equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)


def place_run(archive: zipfile.ZipFile, folder: Path) -> Run:
    """Unpack an archive that ships with the package as a finished run in `folder`, complete or not at all.

    Raises ValueError if the folder already exists.
    """
    _refuse_taken(folder, archive.filename or "an archive")
    with TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        run = Run(Path(temporary) / "files")
        with naming(folder):
            archive.extractall(run.folder)
        _finish(run)
        os.replace(run.folder, folder)
    return Run(folder)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError that names the path that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{error.filename or root} cannot be written: {error.strerror}") from error


def _read_records(file: Path) -> tuple[dict[str, dict[str, bytes]], dict[str, bytes]]:
    """Files of each run by run name, and sweep job records by path; ValueError for any other member."""
    runs: dict[str, dict[str, bytes]] = {}
    jobs: dict[str, bytes] = {}
    for path, content in _members(file):
        parts = path.split("/")
        if not all(_NAME.fullmatch(part) and part.isprintable() and part == part.strip() for part in parts):
            raise _unusable(file, f"{path[:200]!r} is not a valid name of a run or of its files")
        if len(parts) == 2 and parts[0] != "sweeps" and parts[1] in _RECORDS:
            runs.setdefault(parts[0], {})[parts[1]] = content
        elif len(parts) == 4 and (parts[0], parts[3]) == ("sweeps", "job.json"):
            _check_job(file, path, content)
            jobs[path] = content
        else:
            raise _unusable(file, f"{path[:200]!r} is not a file of a run's records")
    if not runs:
        raise _unusable(file, "it has no records of runs")
    return runs, jobs


def _members(file: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of a zip file; ValueError if it is damaged or exceeds the limits."""
    try:
        with open_regular(file) as opened:
            _check_directory(opened)
            with zipfile.ZipFile(opened) as archive:
                yield from _contents(archive)
    except FileNotFoundError as error:
        raise _unusable(file, "it does not exist") from error
    except _UNREADABLE as error:
        raise _unusable(file, getattr(error, "strerror", None) or str(error) or "it is damaged") from error


def _contents(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > _MEMBERS:
        raise ValueError(f"it has {len(infos):,} members; at most {_MEMBERS:,} are read")
    seen, total = set(), 0
    for info in infos:
        if info.filename in seen:
            raise ValueError(f"it contains {info.filename[:200]!r} twice")
        seen.add(info.filename)
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename[:200]!r} is encrypted, or not compressed with deflate")
        limit = _LARGEST.get(info.filename.rpartition("/")[2], 0)
        with archive.open(info) as member:
            content = member.read(limit + 1)  # measured, as the sizes that an archive states may be wrong
        if len(content) > limit > 0:
            raise ValueError(f"{info.filename[:200]!r} unpacks to more than the {limit:,} bytes that are allowed")
        total += len(content)
        if total > _TOTAL:
            raise ValueError(f"it unpacks to more than the {_TOTAL:,} bytes that are allowed; share fewer runs at once")
        yield info.filename, content


def _check_directory(file: BinaryIO) -> None:
    """Raise ValueError if the central directory, which zipfile reads as a whole, is too long."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    length = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    # A length of 4 GB or more is in the zip64 record before this one.
    if length > _DIRECTORY or b"PK\6\7" in tail[max(0, end - 20) : max(0, end)]:
        raise ValueError(f"its list of members is longer than the {_DIRECTORY:,} bytes that are allowed")
    file.seek(0)


def _fingerprint(file: Path, name: str, members: Mapping[str, bytes]) -> str:
    """Fingerprint of a run in an archive; ValueError naming the run if a required file is missing or damaged."""
    try:
        for needed in _RECORDS[:3]:
            if not members.get(needed):
                raise ValueError(f"{needed} is {'empty' if needed in members else 'missing'}")
        provenance = parse_mapping(members["provenance.json"], "provenance.json")
        check_provenance(provenance, "provenance.json")
    except ValueError as error:
        raise _unusable(file, f"run {name!r} in the archive: {error}") from error
    return provenance["fingerprint"]


def _check_job(file: Path, path: str, content: bytes) -> None:
    try:
        check_fields(parse_mapping(content, path), path, {}, {"run": str, "state": str})
    except ValueError as error:
        raise _unusable(file, str(error)) from error


def _write(folder: Path, members: Mapping[str, bytes], file: Path) -> None:
    """Write a run into a new folder as finished; ValueError naming the run if one of its files is damaged."""
    folder.mkdir()
    for name, content in members.items():
        with naming(folder / name):
            (folder / name).write_bytes(content)
    run = Run(folder)
    try:
        _finish(run)
        _ = run.config, run.results, read_events(folder), read_options(folder / "config.yaml")
    except ValueError as error:
        raise _unusable(file, f"run {folder.name!r} in the archive: {error}".replace(f"{folder}/", "")) from error


def _finish(run: Run) -> None:
    """Set a run's status to finished at its last logged step."""
    records = run.metrics
    if not records:
        raise ValueError("metrics.jsonl has no records")
    check_fields(records[-1], "metrics.jsonl", {"seconds": float}, line=len(records))
    run.write_status("finished", records[-1]["step"], steps=records[-1]["step"], seconds=records[-1]["seconds"])


def _refuse_taken(folder: Path, file: Path | str) -> None:
    if os.path.lexists(folder):
        raise ValueError(f"{folder} already exists and is not the run of {file}")


def _unusable(file: Path, problem: str) -> ValueError:
    return ValueError(f"{file} is not a readable archive of runs: {' '.join(problem.split())}")


def _records(run: Run) -> Iterator[Path]:
    return (run.folder / name for name in _RECORDS if (run.folder / name).is_file())
