"""Execution of one row: a worker that starts a process, which executes the row's notebook by papermill.

`execute_row` is what an executor runs. It can be pickled, and takes and returns plain values, so it may run in a
thread, in a process, or on another machine that shares the folders. The notebook is executed in a process of its own,
``python -m workbench.reporting.sweep.execution`` with the order on stdin, because papermill changes the working folder,
and so that each row has its own threads, devices and log. This process ends when its stdin closes, which happens
whenever the worker dies; the kernel follows within a second.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import workbench
from workbench.files import hold_lock, is_locked, read_json, reason, write_atomically
from workbench.reporting.papermill import skip_grammars
from workbench.reporting.sweep.records import LOCK, MARK, STOP, is_stopped, read_job, stop_files, write_job
from workbench.training.slots import WAITING

_PATIENCE = 30.0  # seconds to wait for an earlier process that is ending
_POLL = 0.5  # seconds between looks at a row that is saving
_START = 300.0  # seconds to wait for the kernel, which a busy machine may need
KERNEL_STARTS = 3  # attempts
# What nbclient says of a kernel that ended before it ran anything: two that start at once can choose the same port.
NOT_STARTED = "Kernel died before replying to kernel_info"
FINISHED, FAILED, DEAD = 0, 1, 3


def execute_row(order: Mapping[str, Any]) -> dict[str, Any]:
    """Execute the notebook of ``order`` in a process of its own; returns the record in ``job.json``.

    The order has ``folder`` of the job, ``notebook``, its ``parameters``, ``identity`` (the job's part of the record),
    ``root`` of the runs, ``cwd``, ``stop`` (the file that asks to stop) and ``workers``, which share the cores.
    """
    folder = Path(order["folder"])
    sweep, own = map(Path, stop_files(order))
    if sweep.exists():
        return {"state": "stopped", **order["identity"]}
    folder.mkdir(parents=True, exist_ok=True)
    own.unlink(missing_ok=True)
    (folder / LOCK).touch()
    command = [sys.executable, "-m", "workbench.reporting.sweep.execution"]
    with (folder / "log.txt").open("wb") as log, _devices(order, folder) as environment:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=order["cwd"],
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is handled by the sweep
        )
        assert process.stdin is not None
        # The process ends when this pipe closes, at the latest when this process dies.
        with process.stdin as pipe:
            pipe.write(json.dumps(order).encode() + b"\n")
            pipe.flush()
            code = process.wait()
    record = read_job(folder)
    if record.get("state") in ("running", "lost", None):
        reason = f"the process that executed the notebook ended with exit code {code}; see {folder / 'log.txt'}"
        record = write_job(folder, "failed", **order["identity"], exit=code, reason=reason)
    return record


class RowTask:
    """`execute_row` for submitit, which calls `checkpoint` when the job reaches its time limit or is preempted."""

    def __call__(self, order: Mapping[str, Any]) -> dict[str, Any]:
        return execute_row(order)

    def checkpoint(self, order: Mapping[str, Any]) -> Any:
        """Let the row save and end; the job that submitit queues again continues it."""
        from submitit.helpers import DelayedSubmission

        folder = Path(order["folder"])
        Path(stop_files(order)[1]).touch()
        while is_locked(folder / LOCK):  # Slurm ends the job when its time is over
            time.sleep(_POLL)
        return DelayedSubmission(self, order)


def live_with_parent() -> None:
    """Leave Ctrl-C to the sweep, and end when the sweep ends in any way; the row ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _devices(order: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a row and, if there are GPUs, a slot on the least used one while the row runs."""
    environment = environment_of(order["root"], order["workers"])
    if not shutil.which("nvidia-smi"):
        yield environment
        return
    import torch

    from workbench.training.slots import take_slots

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = visible.split(",") if visible else range(torch.cuda.device_count())
    slots = take_slots([f"gpu{number}" for number in numbers], min(1, len(numbers)), folder, force=True)
    assert slots is not None  # with `force` there always are some
    try:
        yield {**environment, **slots.environment}
    finally:
        for handle in slots.handles:
            os.close(handle)


def environment_of(root: str, workers: int) -> dict[str, str]:
    """The environment of a row: paths of the package and the runs, and its share of the cores."""
    packages = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "WORKBENCH_RUNS": root}
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // workers)), **WAITING}
    return {**threads, **os.environ, **own}


def main() -> int:
    """Execute the row in the order on stdin; returns 0 if it finished, 1 if a cell failed, 3 if its kernel died."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(order["folder"])
    with hold_lock(folder / LOCK, _PATIENCE):
        for leftover in folder.glob(".mark-*.json"):
            leftover.unlink()
        marker = folder / f".mark-{time.time_ns()}.json"
        began, identity = time.time(), order["identity"]
        write_job(folder, "running", **identity, began=began)
        os.environ[MARK], os.environ[STOP] = str(marker), os.pathsep.join(stop_files(order))
        code, failure = _execute(order, folder)
        reached = read_json(marker) if marker.is_file() else None
        if code == FINISHED:
            if reached is None:
                code, failure = FAILED, {"reason": "the notebook ended without reaching row.end() in its last cell"}
            elif reached["fingerprint"] != identity["fingerprint"]:
                code, failure = FAILED, {"reason": f"it trained the run {reached['fingerprint']} instead"}
        stopped = code != FINISHED and is_stopped()
        state = "finished" if code == FINISHED else "stopped" if stopped else "failed"
        about = {**identity, "exit": code, "began": began, "seconds": time.time() - began, **(reached or {}), **failure}
        write_job(folder, state, **about)
        marker.unlink(missing_ok=True)
    return code


def _execute(order: dict[str, Any], folder: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and, unless it is 0, the reason and the cell."""
    skip_grammars()
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    working = folder / ".row.ipynb"
    options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": _START}
    try:
        for left in reversed(range(KERNEL_STARTS)):
            try:
                execute_notebook(order["notebook"], working, parameters=order["parameters"], **options)
                break
            except RuntimeError as error:
                if NOT_STARTED not in str(error) or not left:
                    raise
        return FINISHED, {}
    except PapermillExecutionError as error:
        return FAILED, {"reason": f"{error.ename}: {error.evalue}", "cell": _cell(working, "exception")}
    except DeadKernelError:
        return DEAD, {"reason": "the kernel died", "cell": _cell(working, "start_time")}
    except Exception as error:
        return FAILED, {"reason": reason(error)}
    finally:
        with contextlib.suppress(FileNotFoundError):
            write_atomically(folder / "row.ipynb", working.read_bytes())
            working.unlink()


def _cell(notebook: Path, key: str) -> str:
    """The last cell with this key in papermill's metadata: its id in the template, and its first line.

    A number would be wrong, as papermill inserts cells before the one that failed.
    """
    cells = json.loads(notebook.read_text())["cells"]
    cell = [cell for cell in cells if cell["metadata"].get("papermill", {}).get(key)][-1]
    lines = "".join(cell["source"]).splitlines() or [""]
    return f"{cell['id']}: {lines[0]}"


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main())
