"""The state of a run, from its folder alone: what ``status.json`` says, judged by who still lives.

Two locks, freed by the kernel at any death, tell the living: ``.lock`` belongs to the process that trains, ``.starter``
to the detached process that a launch started or that waits for its turn. Imports nothing heavy.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from workbench.files import damaged, is_locked, open_regular, write_atomically
from workbench.runs.records import read_status_record

STATES = ("created", "queued", "starting", "running", "paused", "finished", "stopped", "failed", "lost")
TRAINING = ("running", "paused")  # while the trainer holds the run
LIVE = ("queued", "starting", *TRAINING)
TRAINER_LOCK, STARTER_LOCK = ".lock", ".starter"
_SILENCE = 60.0  # seconds without a word after which a trainer on another machine counts as lost
_TAIL = 65_536  # bytes of the log that hold its last lines


def write_status(folder: Path, state: str, step: int, **more: Any) -> None:
    """Replace ``status.json``."""
    assert state in STATES, state
    record = {"state": state, "step": step, "pid": os.getpid(), "host": platform.node(), "updated": time.time()}
    write_atomically(folder / "status.json", json.dumps({**record, **more}).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """``status.json``, its state "lost" if the process that should be at work is gone; ``remark`` says how one knows.

    On another machine the lock is not seen: there a trainer that was silent for a minute, or five steps, counts as
    lost. A time in the future, of a clock that was put back, counts as now. Raises ValueError naming the file if it
    is missing or damaged.
    """
    status = _read(folder)
    while status["state"] in LIVE:
        if status["host"] != platform.node():
            return _by_the_clock(status)
        lock = TRAINER_LOCK if status["state"] in TRAINING else STARTER_LOCK
        if is_locked(folder / lock):
            break
        # A process that ended, or started, between the two looks has written another record.
        before, status = status, _read(folder)
        if status == before:
            return _without_a_process(status)
    return status


def last_log_lines(folder: Path, count: int) -> list[str]:
    """The last ``count`` lines of ``log.txt``, what a launched training printed; none if there is no log.

    Of a log that cannot be read the one line says so: everything else of the run can be shown.
    """
    try:
        with open_regular(folder / "log.txt") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"log.txt cannot be read: {error.strerror}"]


def _read(folder: Path) -> dict[str, Any]:
    record = read_status_record(folder)
    if record["state"] not in STATES:
        raise damaged(folder / "status.json", f"state must be one of {', '.join(STATES)}; it is {record['state']!r}")
    return record


def _without_a_process(status: dict[str, Any]) -> dict[str, Any]:
    if status["state"] == "queued":
        return {**status, "remark": "nobody waits for its turn any more: `workbench queue resume`"}
    how = {"starting": "its process ended before training began", "running": "its process died without a word"}
    return {**status, "state": "lost", "remark": how.get(status["state"], "its process died while paused")}


def _by_the_clock(status: dict[str, Any]) -> dict[str, Any]:
    silent = max(0.0, time.time() - (status.get("updated") or 0.0))
    patience = max(_SILENCE, 5 / status["rate"] if status.get("rate") else 0.0)
    if status["state"] not in TRAINING or silent < patience:
        return status
    remark = f"judged by the clock: nothing heard from {status['host']} for {silent:.0f} s"
    return {**status, "state": "lost", "remark": remark}
