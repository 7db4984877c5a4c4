"""Files by which a sweep, its workers and its rows communicate. Imports nothing heavy.

``RUNS/sweeps/NAME/ROW-SEED/`` holds ``job.json`` (state, exit, reason, cell, seconds, run, fingerprint, scores),
``row.ipynb`` (the executed notebook, also of a failed row) and ``log.txt`` (the output of its process). An executed
notebook does not show whether it succeeded: after the death of its kernel every cell is "completed". So a row is
finished if and only if its last cell has written its marker file and ``job.json``, written after that, says so.
"""

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from workbench.files import is_locked, read_json, write_json

STATES = ("running", "finished", "failed", "stopped")
MARK = "WORKBENCH_ROW_MARK"  # variable with the marker file that the last cell of a row writes
STOP = "WORKBENCH_ROW_STOP"  # variable with the files, one of which asks a row to save and end
LOCK = ".lock"


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep keeps its records."""

    folder: Path

    @property
    def stop(self) -> Path:
        return self.folder / ".stop"

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    def job(self, name: str) -> Path:
        """The folder of one job."""
        return self.folder / name


def sweep_folder(root: Path, name: str) -> SweepFolder:
    """Where the sweep ``name`` of the runs under ``root`` keeps its records."""
    return SweepFolder(root / "sweeps" / name)


def stop_files(order: Mapping[str, Any]) -> list[str]:
    """Files that ask a row to save and end: the sweep's, and its own, for a job that reaches its time limit."""
    return [order["stop"], str(Path(order["folder"]) / ".stop")]


def is_stopped() -> bool:
    """Whether the row of this process is asked to save and end."""
    return any(map(os.path.exists, filter(None, os.environ.get(STOP, "").split(os.pathsep))))


# Types of the values in ``job.json``.
_KINDS: dict[str, type | UnionType] = {
    "state": str,
    "host": str,
    "fingerprint": str,
    "run": str,
    "backbone": str,
    "reason": str,
    "cell": str,
    "step": int,
    "seconds": int | float,
    "spent": dict,
    "scores": dict,
    "protocol": dict | None,
}


def read_job(folder: Path) -> dict[str, Any]:
    """``job.json``, empty if there is none; "lost" instead of "running" if its process has died.

    A damaged file is empty too, with a warning that names it: its row is executed again, and other rows are unaffected.
    """
    file = folder / "job.json"
    if not file.exists():
        return {}
    try:
        record = _checked(read_json(file), file)
    except ValueError as error:
        warnings.warn(f"the record of a row is ignored: {error}", stacklevel=2)
        return {}
    here = record.get("host") == os.uname().nodename
    if record.get("state") == "running" and here and not is_locked(folder / LOCK):
        return {**record, "state": "lost"}
    return record


def _checked(record: dict[str, Any], file: Path) -> dict[str, Any]:
    wrong = [key for key, kind in _KINDS.items() if key in record and not isinstance(record[key], kind)]
    if "scores" not in wrong and not all(isinstance(score, int | float) for score in record.get("scores", {}).values()):
        wrong.append("scores")
    if record.get("state") not in STATES or wrong:
        raise ValueError(f"{file} is damaged: {', '.join(wrong) or 'state'} cannot be used")
    return record


def write_job(folder: Path, state: str, **more: Any) -> dict[str, Any]:
    """Replace ``job.json``; returns the record."""
    assert state in STATES, state
    record = {"state": state, **more, "host": os.uname().nodename, "pid": os.getpid(), "updated": time.time()}
    write_json(folder / "job.json", record)
    return record
