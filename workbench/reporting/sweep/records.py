"""Files through which a sweep, its workers and its rows tell each other what they do. Imports nothing heavy.

``RUNS/sweeps/NAME/ROW-SEED/`` holds ``job.json`` (state, exit, reason, cell, seconds, run, fingerprint, scores),
``row.ipynb`` (the notebook as it was executed, failed ones too) and ``log.txt`` (what its process printed). An executed
notebook does not tell whether it succeeded: after the death of its kernel every cell says "completed". So a row is
finished if and only if its last cell has left its mark and ``job.json``, which is written after that, says so.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.files import is_locked, read_json, write_json

STATES = ("running", "finished", "failed", "stopped")
MARK = "WORKBENCH_ROW_MARK"  # file that the last cell of a row writes
STOP = "WORKBENCH_ROW_STOP"  # file that tells a row to save and end
_LOCK = ".lock"


@dataclass(frozen=True)
class Place:
    """Where a sweep keeps its records."""

    folder: Path

    @property
    def stop(self) -> Path:
        return self.folder / ".stop"

    @property
    def lock(self) -> Path:
        return self.folder / _LOCK

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    def job(self, name: str) -> Path:
        """The folder of one job."""
        return self.folder / name


def place_of(root: Path, name: str) -> Place:
    """Where the sweep ``name`` of the runs under ``root`` keeps its records."""
    return Place(root / "sweeps" / name)


def read_job(folder: Path) -> dict[str, Any]:
    """``job.json``, empty if there is none or it is damaged; "lost" instead of "running" if nobody is at it."""
    try:
        record = read_json(folder / "job.json")
    except ValueError:
        return {}
    here = record.get("host") == os.uname().nodename
    if record.get("state") == "running" and here and not is_locked(folder / _LOCK):
        return {**record, "state": "lost"}
    return record


def write_job(folder: Path, state: str, **more: Any) -> dict[str, Any]:
    """Replace ``job.json``; returns what was written."""
    assert state in STATES, state
    record = {"state": state, **more, "host": os.uname().nodename, "pid": os.getpid(), "updated": time.time()}
    write_json(folder / "job.json", record)
    return record
