"""What a worker does for one row: start the process of its notebook, and see to it that its end is written down.

`execute_row` is all that an executor is given. It can be pickled and imported, and takes and returns plain values, so
it may run in a thread, in a process, or on another machine that sees the same folders.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import workbench
from workbench.reporting.sweep.records import read_job, write_job


def execute_row(order: Mapping[str, Any]) -> dict[str, Any]:
    """Execute the notebook of ``order`` in a process of its own; returns what ``job.json`` says then.

    Of the order: ``folder`` of the job, ``notebook``, its ``parameters``, ``identity`` (what the record is of),
    ``root`` of the runs, ``cwd``, ``stop`` (the file that asks for the end) and ``workers``, which share the cores.
    """
    folder = Path(order["folder"])
    if Path(order["stop"]).exists():
        return {"state": "stopped", **order["identity"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()
    command = [sys.executable, "-m", "workbench.reporting.sweep.process"]
    with (folder / "log.txt").open("wb") as log, _devices(order, folder) as environment:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=order["cwd"],
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is the sweep's to hear
        )
        # It ends when this pipe closes, at the latest by the death of this process.
        with process.stdin as pipe:
            pipe.write(json.dumps(order).encode() + b"\n")
            pipe.flush()
            code = process.wait()
    record = read_job(folder)
    if record.get("state") in ("running", "lost", None):
        reason = f"the process that executed the notebook ended with exit code {code}; see {folder / 'log.txt'}"
        record = write_job(folder, "failed", **order["identity"], exit=code, reason=reason)
    return record


def live_with_parent() -> None:
    """Leave Ctrl-C to the sweep, and end when it does, however that happens: the row ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _devices(order: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a row and, where there are GPUs, a slot on the least used one for as long as it takes."""
    environment = environment_of(order["root"], order["workers"])
    if not shutil.which("nvidia-smi"):
        yield environment
        return
    import torch

    from workbench.training.slots import take_slots

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = visible.split(",") if visible else range(torch.cuda.device_count())
    slots = take_slots([f"gpu{number}" for number in numbers], min(1, len(numbers)), folder, force=True)
    try:
        yield {**environment, **slots.environment}
    finally:
        for handle in slots.handles:
            os.close(handle)


def environment_of(root: str, workers: int) -> dict[str, str]:
    """The environment of a row: where the package and the runs are, and its share of the cores."""
    packages = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "WORKBENCH_RUNS": root}
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // workers)), "OMP_WAIT_POLICY": "passive"}
    return {**threads, **os.environ, **own}
