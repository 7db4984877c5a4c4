"""The state of a run from its folder alone: ``status.json``, checked against the locks of live processes.

The kernel releases a lock however its process dies. ``.lock`` belongs to the process that trains, ``.starter`` to the
detached process that a launch started or that waits in the queue. Imports nothing heavy.
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
_SILENCE = 60.0  # seconds without an update after which a trainer on another machine counts as lost
_TAIL = 65_536  # bytes at the end of the log that are read


def write_status(folder: Path, state: str, step: int, **more: Any) -> None:
    """Replace ``status.json``."""
    assert state in STATES, state
    record = {"state": state, "step": step, "pid": os.getpid(), "host": platform.node(), "updated": time.time()}
    write_atomically(folder / "status.json", json.dumps({**record, **more}).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """Read ``status.json``; the state is "lost", with a ``remark``, if its process is gone.

    The lock of another machine is not visible: a trainer there counts as lost after a minute, or the time of five
    steps, without an update. A time in the future (a clock was set back) counts as now. Raises ValueError naming the
    file if it is missing or damaged.
    """
    status = _read(folder)
    while status["state"] in LIVE:
        if status["host"] != platform.node():
            return _by_the_clock(status)
        lock = TRAINER_LOCK if status["state"] in TRAINING else STARTER_LOCK
        if is_locked(folder / lock):
            break
        # A process that ended or started between the two reads has written another record.
        before, status = status, _read(folder)
        if status == before:
            return _without_a_process(status)
    return status


def last_log_lines(folder: Path, count: int) -> list[str]:
    """The last ``count`` lines of ``log.txt``, the output of a launched training; empty if there is no log.

    If the log cannot be read, the only line gives the reason, so that the rest of the run can still be shown.
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
        return {**status, "remark": "its waiting process is gone: `workbench queue resume`"}
    how = {"starting": "its process ended before training began", "running": "its process died unexpectedly"}
    return {**status, "state": "lost", "remark": how.get(status["state"], "its process died while paused")}


def _by_the_clock(status: dict[str, Any]) -> dict[str, Any]:
    silent = max(0.0, time.time() - (status.get("updated") or 0.0))
    patience = max(_SILENCE, 5 / status["rate"] if status.get("rate") else 0.0)
    if status["state"] not in TRAINING or silent < patience:
        return status
    remark = f"no update from {status['host']} for {silent:.0f} s"
    return {**status, "state": "lost", "remark": remark}
