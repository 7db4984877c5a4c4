"""The machine's queue of training jobs: one JSON file per job, first in, first out, one job per slot.

Each job waits in a small process that later execs into the training. The process holds a file lock, which the kernel
releases however it dies. The job file stays until the training ends, so a reboot loses nothing. This module imports
nothing heavy, because the waiting process runs it.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.files import damaged, is_locked, read_json, write_json
from workbench.runs.records import SMALL, check_fields
from workbench.runs.state import LIVE, STARTER_LOCK, TRAINER_LOCK, read_status, write_status
from workbench.training.slots import Slots, choose_slots, hold_queue, queue_folder, take

_COLOURS = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")
_FIELDS: dict[str, type] = {
    "number": str,
    "run": str,
    "command": list,
    "environment": dict,
    "cwd": str,
    "candidates": list,
}
_FIELDS |= {"needed": int, "submitted": float, "by": str}
_POLL = 0.5  # seconds between checks of the queue


@dataclass(frozen=True)
class Job:
    """A queued or running training: it uses ``needed`` of the devices ``candidates`` and starts after run ``after``."""

    number: str
    run: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    candidates: tuple[str, ...]
    needed: int
    after: str | None
    submitted: float
    by: str

    @property
    def file(self) -> Path:
        return queue_folder() / f"{self.number}.json"

    @property
    def lock(self) -> Path:
        """Lock file held by the waiting process and then by the training."""
        return self.file.with_suffix(".lock")

    @property
    def started(self) -> Path:
        """File written when training starts, with its devices and the boot id."""
        return self.file.with_suffix(".started")


@dataclass(frozen=True)
class Entry:
    """A job in the queue's listing; ``state`` is "training", "waiting", "after RUN", "no process" or "damaged: WHY".

    If the job file cannot be read, ``job`` is None and ``name`` is the file name; otherwise ``name`` is the run's.
    """

    name: str
    job: Job | None
    state: str
    devices: tuple[str, ...]


def submit(**record) -> Job:
    """Add a job at the end of the queue without starting it; see `start_waiter`."""
    with hold_queue():
        # Unique, and increasing even if the clock is set back.
        newest = max((int(path.stem) for path in _files()), default=0)
        job = Job(f"{max(newest + 1, time.time_ns())}", submitted=time.time(), **record)
        write_json(job.file, asdict(job))
    return job


def jobs() -> list[Job]:
    """The jobs in order. Finished jobs are removed from the queue, damaged ones are skipped."""
    listed = []
    for path in _files():
        with contextlib.suppress(ValueError, OSError):
            job = _job(path)
            if _is_over(job):
                _remove(job)
            else:
                listed.append(job)
    return listed


def entries() -> list[Entry]:
    """The whole queue in order, with an entry for each damaged job too."""
    with hold_queue():
        whole = {job.number: job for job in jobs()}
        return [_entry(path, whole.get(path.stem)) for path in _files()]


def forget(run: Path) -> None:
    """Remove jobs of a run that no process holds, before the run is launched again."""
    with hold_queue():
        for job in jobs():
            if Path(job.run) == run and not is_locked(job.lock):
                _remove(job)


def cancel(run: Path) -> None:
    """Remove the run's waiting job from the queue; ValueError if there is none or it is already training."""
    with hold_queue():
        job = next((job for job in jobs() if Path(job.run) == run), None)
        if job is None:
            unread = damaged_jobs()
            hint = f"; these damaged jobs may belong to it: {', '.join(unread)}" if unread else ""
            raise ValueError(f"run {run.name} is not in the queue {queue_folder()}{hint}")
        if job.started.is_file() and is_locked(job.lock):
            raise ValueError(f"run {run.name} is already training: `workbench stop {run.name}`")
        _remove(job)
        with contextlib.suppress(ValueError):  # a damaged status is left as it is
            step = read_status(run)["step"]
            write_status(run, "stopped" if step else "created", step, remark="removed from the queue")


def damaged_jobs() -> list[str]:
    """Names of job files that cannot be read."""
    return [path.name for path in _files() if not _is_readable(path)]


def discard(name: str) -> None:
    """Remove a damaged job file, by its name in `damaged_jobs`."""
    with hold_queue():
        for ending in (".json", ".started", ".lock"):
            path = (queue_folder() / name).with_suffix(ending)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def resume(everything: bool = True) -> list[Job]:
    """Start a waiting process for each job without one, in order, and return those jobs.

    Unless ``everything``, skip trainings that died since the last boot: they would probably fail again.
    """
    begun = []
    with hold_queue():
        idle = [job for job in jobs() if not is_locked(job.lock)]
        for job in idle:
            same_boot = job.started.is_file() and _start(job)["boot"] == _boot()
            if everything or not same_boot:
                begun.append(job)
    return [job for job in begun if _starts(job)]


def start_waiter(job: Job, starter: int | None = None) -> subprocess.Popen | None:
    """Start the process that waits for the job's turn and then trains; None if the run already has a process."""
    run = Path(job.run)
    own = take(run / STARTER_LOCK) if starter is None else starter
    if own is None:
        return None
    write_status(run, "queued", _step(run), **({"after": Path(job.after).name} if job.after else {}))
    with (run / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench.training.queue", job.number],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=job.cwd,
            env=surroundings(job.environment, {"WORKBENCH_QUEUE": str(queue_folder().resolve())}),
            start_new_session=True,
            pass_fds=(own,),
        )
    if starter is None:
        os.close(own)
    return process


def surroundings(*more: Mapping[str, str]) -> dict[str, str]:
    """Environment of a launched process: this process's, updated by ``more``, with colours off.

    Jupyter and others force colours in their subprocesses, but this output goes to a file.
    """
    own = {key: value for key, value in os.environ.items() if key not in _COLOURS and not key.startswith("TTY_")}
    for given in more:
        own |= given
    return own | {"NO_COLOR": "1"}


def wait_for_turn(number: str) -> None:
    """Wait for the job's turn, then exec its training; return if the job was cancelled or cannot run."""
    lock = take(queue_folder() / f"{number}.lock")
    if lock is None:
        return
    (queue_folder() / f"{number}.started").unlink(missing_ok=True)  # left by an earlier start
    while True:
        with hold_queue():
            job = next((job for job in jobs() if job.number == number), None)
            if job is None:
                (queue_folder() / f"{number}.lock").unlink(missing_ok=True)
                return
            if is_locked(Path(job.run) / TRAINER_LOCK):  # started outside the queue
                _remove(job)
                return
            problem = _problem(job)
            if problem:
                write_status(Path(job.run), "failed", _step(Path(job.run)), error=problem)
                print(problem, flush=True)
                _remove(job)
                return
            slots = _turn(job)
            if slots:
                write_json(job.started, {"devices": slots.devices, "boot": _boot()})
                write_status(Path(job.run), "starting", _step(Path(job.run)))
                break
        time.sleep(_POLL)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} its turn, on {', '.join(slots.devices)}", flush=True)
    os.execvpe(job.command[0], job.command, {**os.environ, **slots.environment})


def _turn(job: Job) -> Slots | None:
    """Slots for the job; None if it has to wait, also for an earlier job that is ready for the same devices."""
    if not _may_start(job):
        return None
    for other in jobs():
        if other.number == job.number:
            return choose_slots(job.candidates, job.needed, Path(job.run), force=False)
        waits = is_locked(other.lock) and not other.started.is_file() and _may_start(other)
        if waits and set(other.candidates) & set(job.candidates):
            return None
    return None


def _may_start(job: Job) -> bool:
    return job.after is None or _state(Path(job.after)) == "finished"


def _problem(job: Job) -> str | None:
    """Reason why the job can never run, or None."""
    if job.after is None:
        return None
    name = Path(job.after).name
    if not (Path(job.after) / "status.json").is_file():
        return f"it should start after run {name}, which no longer exists"
    if _state(Path(job.after)) == "failed":
        return f"it should start after run {name}, which failed: {_error(Path(job.after))}"
    return None


def _is_over(job: Job) -> bool:
    """Whether the job is done: its run is gone, or its training finished, stopped or failed."""
    if not Path(job.run).is_dir():
        return True
    if is_locked(job.lock) or not job.started.is_file():
        return False
    return _state(Path(job.run)) not in (*LIVE, "lost", "damaged")


def _files() -> list[Path]:
    """Job files, in order."""
    return sorted(path for path in queue_folder().glob("[0-9]*.json") if path.stem.isdecimal() and path.stem.isascii())


def _job(path: Path) -> Job:
    """Read a job file; ValueError naming the file if it is damaged."""
    record = read_json(path, SMALL)
    check_fields(record, path, _FIELDS, {"after": str})
    if record.keys() != Job.__dataclass_fields__.keys():
        raise damaged(path, f"a job has {', '.join(Job.__dataclass_fields__)}; it has {', '.join(record)[:200]}")
    texts = [*record["command"], *record["candidates"], *record["environment"].values()]
    if record["number"] != path.stem or not record["command"] or not all(isinstance(text, str) for text in texts):
        raise damaged(path, "its number, command, devices or environment are not valid")
    return Job(**{**record, "command": tuple(record["command"]), "candidates": tuple(record["candidates"])})


def _is_readable(path: Path) -> bool:
    with contextlib.suppress(ValueError):
        _job(path)
        return True
    return False


def _entry(path: Path, job: Job | None) -> Entry:
    try:
        job = job or _job(path)
    except ValueError as error:
        return Entry(path.name, None, f"damaged: {error}", ())
    name, state = Path(job.run).name, _state(Path(job.run))
    if state == "damaged":
        return Entry(name, job, f"damaged: {_error(Path(job.run))}", ())
    if not is_locked(job.lock):
        return Entry(name, job, "no process", ())
    if job.started.is_file():
        return Entry(name, job, "training", tuple(_start(job)["devices"]))
    waiting = "waiting" if job.after is None or _may_start(job) else f"after {Path(job.after).name}"
    return Entry(name, job, waiting, job.candidates)


def _start(job: Job) -> dict:
    """Devices and boot id of a started job; empty if the record cannot be read."""
    try:
        record = read_json(job.started, SMALL)
        check_fields(record, job.started, {"devices": list, "boot": str})
        return {"devices": [str(device) for device in record["devices"]], "boot": record["boot"]}
    except ValueError:
        return {"devices": [], "boot": ""}


def _starts(job: Job) -> bool:
    """Start the waiting process of a job and return whether it started; warn if it cannot, so the others still do."""
    try:
        return start_waiter(job) is not None
    except OSError as error:
        warnings.warn(f"job {job.number} of run {Path(job.run).name} cannot start: {error}", stacklevel=3)
        return False


def _state(run: Path) -> str:
    """State of a run, or "damaged" if it cannot be read."""
    try:
        return read_status(run)["state"]
    except (ValueError, OSError):
        return "damaged"


def _step(run: Path) -> int:
    """Step of a run; 0 if it cannot be read, as the training writes it again."""
    try:
        return read_status(run)["step"]
    except (ValueError, OSError):
        return 0


def _error(run: Path) -> str:
    """Why a run failed or cannot be read."""
    try:
        return read_status(run).get("error") or "see its log.txt"
    except (ValueError, OSError) as error:
        return str(error)


def _remove(job: Job) -> None:
    for file in (job.file, job.started, job.lock):
        file.unlink(missing_ok=True)


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


if __name__ == "__main__":
    wait_for_turn(sys.argv[1])
