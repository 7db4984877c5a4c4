"""The process that executes one row by papermill: ``python -m workbench.reporting.sweep.process``, order on stdin.

It is a process of its own, not a thread, because papermill changes the working folder, and because a row then has its
own threads, devices and log. It ends when its stdin does, which happens at any death of who started it; the kernel
notices that within a second.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from workbench.files import hold_lock, read_json, reason, write_atomically
from workbench.reporting.sweep.records import MARK, STOP, write_job

_PATIENCE = 30.0  # seconds: the one before is dying
_START = 300.0  # seconds for the kernel to answer, on a machine that is busy
FINISHED, FAILED, DEAD = 0, 1, 3


def main() -> int:
    """Execute the row of the order; returns 0 if it finished, 1 if a cell failed, 3 if its kernel died."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(order["folder"])
    with hold_lock(folder / ".lock", _PATIENCE):
        for leftover in folder.glob(".mark-*.json"):
            leftover.unlink()
        mark = folder / f".mark-{time.time_ns()}.json"
        began, identity = time.time(), order["identity"]
        write_job(folder, "running", **identity, began=began)
        os.environ[MARK] = str(mark)
        code, trouble = _execute(order, folder)
        reached = _reached(mark)
        if code == FINISHED and reached is None:
            code, trouble = FAILED, {"reason": "the notebook ended without coming to row.end() in its last cell"}
        elif code == FINISHED and reached["fingerprint"] != identity["fingerprint"]:
            code, trouble = FAILED, {"reason": f"it trained the run {reached['fingerprint']} instead"}
        stopped = code != FINISHED and Path(order["stop"]).exists()
        state = "finished" if code == FINISHED else "stopped" if stopped else "failed"
        about = {**identity, "exit": code, "began": began, "seconds": time.time() - began, **(reached or {}), **trouble}
        write_job(folder, state, **about)
        mark.unlink(missing_ok=True)
    return code


def _execute(order: dict[str, Any], folder: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and, unless it is 0, the reason and the cell."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    os.environ[STOP] = order["stop"]
    working = folder / ".row.ipynb"
    options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": _START}
    try:
        execute_notebook(order["notebook"], working, parameters=order["parameters"], **options)
        return FINISHED, {}
    except PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        return FAILED, {"reason": what, "cell": _cell(working, "exception")}
    except DeadKernelError:
        return DEAD, {"reason": "the kernel died", "cell": _cell(working, "start_time")}
    except Exception as error:
        return FAILED, {"reason": reason(error)}
    finally:
        with contextlib.suppress(FileNotFoundError):
            write_atomically(folder / "row.ipynb", working.read_bytes())
            working.unlink()


def _reached(mark: Path) -> dict[str, Any] | None:
    return read_json(mark) if mark.is_file() else None


def _cell(notebook: Path, mark: str) -> str:
    """The last cell that papermill gave a mark, as one can find it: its name in the template, and its first line.

    Not by number: papermill puts cells of its own before the one that failed.
    """
    cells = json.loads(notebook.read_text())["cells"]
    cell = [cell for cell in cells if cell["metadata"].get("papermill", {}).get(mark)][-1]
    lines = "".join(cell["source"]).splitlines() or [""]
    return f"{cell['id']}: {lines[0]}"


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main())
