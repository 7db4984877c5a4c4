"""Runs in a zip file: what tables and curves are made of, without the weights, so that many runs are a small file.

Of each run its configuration, log, history, scores and origin, and of the rows of sweeps that made it their records.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from workbench.files import hold_lock, read_json, replacing
from workbench.runs.store import Run, find_runs

_RECORDS = ("config.yaml", "provenance.json", "metrics.jsonl", "history.jsonl", "results.jsonl")
_PATIENCE = 60.0  # seconds that another process may take to unpack


def pack_records(runs: Iterable[Run], file: Path) -> Path:
    """Write the records of finished runs under one root to a zip file; equal runs make equal bytes.

    ValueError, with nothing written, for a run that has not finished.
    """
    members: dict[str, bytes] = {}
    for run in runs:
        if run.status["state"] != "finished":
            raise ValueError(f"run {run.name} is {run.status['state']}; only what has finished is packed")
        members |= {f"{run.name}/{path.name}": path.read_bytes() for path in _records(run)}
        for job in run.folder.parent.glob("sweeps/*/*/job.json"):
            if read_json(job).get("run") == run.name:
                members[str(job.relative_to(run.folder.parent))] = job.read_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as opened:
        write_archive(opened, members)
    return file


def unpack_records(file: Path, root: Path) -> list[Run]:
    """The runs of such a file that are not under `root`, placed there; each is whole or absent.

    They count as finished: tables and curves are made of them, but nothing that takes weights. ValueError for what is
    not such a file, and if the place of a run is taken.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(file) as archive, hold_lock(root / ".unpack-lock", _PATIENCE):
            jobs = [name for name in archive.namelist() if name.startswith("sweeps/")]
            marks = {name.rpartition("/")[0]: name for name in archive.namelist() if name.endswith("/provenance.json")}
            known = {run.fingerprint for run in find_runs(root)}
            fresh = [name for name, mark in marks.items() if json.loads(archive.read(mark))["fingerprint"] not in known]
            placed = [place_run(archive, f"{name}/", root / Path(name).name) for name in fresh]
            for job in jobs:
                if not (root / job).exists():
                    archive.extract(job, root)
    except (OSError, zipfile.BadZipFile, LookupError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} holds no records of runs that can be read: {error}") from error
    if not marks:
        raise ValueError(f"{file} holds no records of runs")
    return placed


def write_archive(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """A zip file of these members; entries bear no date, so equal members are equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)


def place_run(archive: zipfile.ZipFile, inside: str, folder: Path) -> Run:
    """The run whose files begin with `inside` in an archive, finished, in `folder`: complete or absent.

    ValueError if the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already, and is not the run of {archive.filename}")
    with TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        within = Path(temporary) / "files"
        archive.extractall(within, [name for name in archive.namelist() if name.startswith(inside)])
        run = Run(within / inside)
        last = run.metrics[-1]
        run.write_status("finished", last["step"], steps=last["step"], seconds=last["seconds"])
        os.replace(run.folder, folder)
    return Run(folder)


def _records(run: Run) -> Iterator[Path]:
    return (run.folder / name for name in _RECORDS if (run.folder / name).is_file())
