"""Device slots: one per GPU, ``$WORKBENCH_SLOTS`` (default 1) for the CPU, each held by one training process.

A slot is a locked file. The training process inherits the lock, and the kernel releases it however the process dies.
Imports nothing heavy.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.files import hold_lock, home_path, is_locked, lock_now, read_json, write_json
from workbench.runs.records import SMALL

CPU = "cpu"
# How OpenMP's threads wait for work, for the environment before PyTorch is imported: they sleep, so as not to take the
# cores from other processes, but only after a moment, as a training step has thousands of parallel regions.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "30000"}
_LOOK = 0.3  # seconds to retry: `is_locked` holds a lock for microseconds
_PATIENCE = 30.0  # seconds to wait for the queue lock, which is held for milliseconds


def queue_folder() -> Path:
    """Folder of the queue: ``$WORKBENCH_QUEUE``, or ``~/.cache/workbench/queue/MACHINE`` (in Slurm ``MACHINE-job-ID``).

    Nodes often share the home folder, and each job of a node may see its own GPUs only, as number 0 and up.
    """
    if given := os.environ.get("WORKBENCH_QUEUE"):
        return home_path(given)
    job = os.environ.get("SLURM_JOB_ID", "")
    name = f"{socket.gethostname()}-job-{job}" if job else socket.gethostname()
    return home_path("~/.cache/workbench/queue") / re.sub(r"[^\w.-]", "-", name)


@dataclass(frozen=True)
class Slots:
    """Acquired slots: devices, file descriptors of the lock files, and names of runs already on those devices."""

    devices: tuple[str, ...]
    handles: tuple[int, ...]
    beside: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """``CUDA_VISIBLE_DEVICES`` for the training process; empty on the CPU."""
        numbers = [device.removeprefix("gpu") for device in self.devices if device != CPU]
        return {"CUDA_VISIBLE_DEVICES": ",".join(numbers)} if numbers else {}


@contextlib.contextmanager
def hold_queue() -> Iterator[None]:
    """Hold the queue lock; ValueError if the queue folder cannot be written."""
    folder = queue_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise ValueError(f"the queue {folder} cannot be written: set WORKBENCH_QUEUE to a writable folder") from error
    with hold_lock(folder / ".lock", _PATIENCE):
        yield


def take_slots(candidates: Sequence[str], needed: int, run: Path, force: bool = False) -> Slots | None:
    """Acquire slots on ``needed`` of the devices; None if too few are free.

    The training process has to inherit ``Slots.handles``. With ``force`` the least used devices are taken even if they
    are in use, and ``Slots.beside`` names the runs there.
    """
    with hold_queue():
        return choose_slots(candidates, needed, run, force)


def who_trains(candidates: Sequence[str], needed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Devices that `take_slots` would choose now, and the runs on those of them that are full."""
    with hold_queue():
        holders = {device: _holders(device) for device in candidates}
    chosen = _least_used(holders)[:needed]
    full = [device for device in chosen if len(holders[device]) >= _slots(device)]
    return tuple(chosen), tuple(name for device in full for name in holders[device])


def choose_slots(candidates: Sequence[str], needed: int, run: Path, force: bool) -> Slots | None:
    """`take_slots`, for callers that already hold the queue lock."""
    holders = {device: _holders(device) for device in candidates}
    free = [device for device in candidates if len(holders[device]) < _slots(device)]
    if len(free) < needed and not force:
        return None
    chosen = _least_used(holders)[:needed]
    handles = []
    for device in chosen:
        file = queue_folder() / "slots" / device / f"{time.time_ns()}.json"
        write_json(file, {"run": str(run)})
        handle = take(file)
        assert handle is not None  # the file is new, and the queue is locked
        handles.append(handle)
    beside = [name for device in chosen if device not in free for name in holders[device]]
    return Slots(tuple(chosen), tuple(handles), tuple(beside))


def _least_used(holders: Mapping[str, Sequence[str]]) -> list[str]:
    """Devices sorted by use: those with a free slot first, then by number of runs."""
    return sorted(holders, key=lambda device: (len(holders[device]) >= _slots(device), len(holders[device])))


def _holders(device: str) -> list[str]:
    """Names of the runs that hold a slot of a device; slots of dead processes are removed."""
    folder = queue_folder() / "slots" / device
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in sorted(folder.glob("*.json")):
        if is_locked(file):
            names.append(_run_of(file))
        else:
            file.unlink()
    return names


def _run_of(file: Path) -> str:
    """Name of the run that holds a slot; a locked slot counts even if its record is damaged."""
    try:
        return Path(str(read_json(file, SMALL)["run"])).name
    except (ValueError, KeyError):
        return "an unknown run"


def _slots(device: str) -> int:
    text = os.environ.get("WORKBENCH_SLOTS") or "1"
    if not text.isdigit() or text == "0":
        raise ValueError(f"WORKBENCH_SLOTS must be a number of at least 1; got {text!r}")
    return int(text) if device == CPU else 1


def take(path: Path) -> int | None:
    """Lock a file and return its inheritable descriptor; None if another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOOK
    while True:
        try:
            lock_now(handle, path)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                return None
            time.sleep(0.01)
    os.set_inheritable(handle, True)
    return handle
