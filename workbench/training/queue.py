"""The machine's queue of trainings: a JSON file a job, taken in the order of submission, one job a slot.

A job waits in a small process of its own that then becomes the training. Its place is held by a file lock, which the
kernel frees at any death; the job's file stays until its training ends, so a restart of the machine loses nothing. This
file imports nothing heavy: it is what waits.
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
_FIELDS = {"number": str, "run": str, "command": list, "environment": dict, "cwd": str, "candidates": list}
_FIELDS |= {"needed": int, "submitted": float, "by": str}
_POLL = 0.5  # seconds between looks whether it is one's turn


@dataclass(frozen=True)
class Job:
    """A training that waits or runs: ``needed`` of the devices ``candidates``, after the run folder ``after``."""

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
        """Held by the process that waits and, once it trains, by the training."""
        return self.file.with_suffix(".lock")

    @property
    def started(self) -> Path:
        """Made when the training starts; it names its devices and this start of the machine."""
        return self.file.with_suffix(".started")


@dataclass(frozen=True)
class Place:
    """A job as the queue shows it; ``state`` is "training", "waiting", "after RUN", "no process" or "damaged: WHY".

    ``job`` is None where its file cannot be read; ``name`` is then that of the file, else the run's.
    """

    name: str
    job: Job | None
    state: str
    devices: tuple[str, ...]


def submit(**record) -> Job:
    """Add a job at the end of the queue and start nothing; `start_waiter` does."""
    with hold_queue():
        # Never used twice, and in order even if the clock is put back.
        newest = max((int(path.stem) for path in _files()), default=0)
        job = Job(f"{max(newest + 1, time.time_ns())}", submitted=time.time(), **record)
        write_json(job.file, asdict(job))
    return job


def jobs() -> list[Job]:
    """The jobs in order, without those whose training is over, which are removed, and without damaged ones."""
    found = []
    for path in _files():
        with contextlib.suppress(ValueError, OSError):
            job = _job(path)
            if _is_over(job):
                _remove(job)
            else:
                found.append(job)
    return found


def places() -> list[Place]:
    """The queue, in order; a job that cannot be read is a place that says why."""
    with hold_queue():
        whole = {job.number: job for job in jobs()}
        return [_place(path, whole.get(path.stem)) for path in _files()]


def forget(run: Path) -> None:
    """Remove the jobs of a run that is launched anew; those that wait or train stay."""
    with hold_queue():
        for job in jobs():
            if Path(job.run) == run and not is_locked(job.lock):
                _remove(job)


def cancel(run: Path) -> None:
    """Take the run's waiting job out of the queue; ValueError if there is none or it trains already."""
    with hold_queue():
        found = [job for job in jobs() if Path(job.run) == run]
        if not found:
            unread = damaged_jobs()
            hint = f"; it holds damaged jobs, which may be its: {', '.join(unread)}" if unread else ""
            raise ValueError(f"run {run.name} is not in the queue {queue_folder()}{hint}")
        if found[0].started.is_file() and is_locked(found[0].lock):
            raise ValueError(f"run {run.name} is training already: `workbench stop {run.name}`")
        _remove(found[0])
        with contextlib.suppress(ValueError):  # a damaged status stays as it is
            step = read_status(run)["step"]
            write_status(run, "stopped" if step else "created", step, remark="taken out of the queue")


def damaged_jobs() -> list[str]:
    """Names of the job files that cannot be read."""
    return [path.name for path in _files() if not _is_readable(path)]


def discard(name: str) -> None:
    """Remove a job file that cannot be read, one of `damaged_jobs`."""
    with hold_queue():
        for ending in (".json", ".started", ".lock"):
            path = (queue_folder() / name).with_suffix(ending)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def resume(everything: bool = True) -> list[Job]:
    """Start a waiting process for each job without one, in order, and return those jobs.

    Without ``everything`` a training that died on a machine that is still up is left alone: it would die again.
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
    """The process that waits for the job's turn and becomes its training; None if the run has a process already."""
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
    """The environment of a launched process: that of who launches it, and ``more``.

    It writes into a file. Jupyter and others ask the programs they start for colours all the same: that is left out.
    """
    own = {key: value for key, value in os.environ.items() if key not in _COLOURS and not key.startswith("TTY_")}
    for given in more:
        own |= given
    return own | {"NO_COLOR": "1"}


def wait_for_turn(number: str) -> None:
    """Wait until it is the job's turn, then become its training; return if the job was cancelled or cannot run."""
    lock = take(queue_folder() / f"{number}.lock")
    if lock is None:
        return
    (queue_folder() / f"{number}.started").unlink(missing_ok=True)  # of an earlier time
    while True:
        with hold_queue():
            job = next((job for job in jobs() if job.number == number), None)
            if job is None:
                (queue_folder() / f"{number}.lock").unlink(missing_ok=True)
                return
            if is_locked(Path(job.run) / TRAINER_LOCK):  # somebody could not wait
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
    """Slots for the job, unless it has to wait or an earlier one that could start waits for the same devices."""
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
    """Why the job can never run."""
    if job.after is None:
        return None
    name = Path(job.after).name
    if not (Path(job.after) / "status.json").is_file():
        return f"it was to start after run {name}, which is gone"
    if _state(Path(job.after)) == "failed":
        return f"it was to start after run {name}, which failed: {_error(Path(job.after))}"
    return None


def _is_over(job: Job) -> bool:
    """Whether nothing is left to do: the run is gone, or its training came to an end of its own."""
    if not Path(job.run).is_dir():
        return True
    if is_locked(job.lock) or not job.started.is_file():
        return False
    return _state(Path(job.run)) not in (*LIVE, "lost", "damaged")


def _files() -> list[Path]:
    """The files of jobs, in order."""
    return sorted(path for path in queue_folder().glob("[0-9]*.json") if path.stem.isdecimal() and path.stem.isascii())


def _job(path: Path) -> Job:
    """The job in a file; ValueError naming the file if it is damaged."""
    record = read_json(path, SMALL)
    check_fields(record, path, _FIELDS, {"after": str})
    if record.keys() != Job.__dataclass_fields__.keys():
        raise damaged(path, f"a job has {', '.join(Job.__dataclass_fields__)}; it has {', '.join(record)[:200]}")
    texts = [*record["command"], *record["candidates"], *record["environment"].values()]
    if record["number"] != path.stem or not record["command"] or not all(isinstance(text, str) for text in texts):
        raise damaged(path, "its number, command, devices or environment are not those of a job")
    return Job(**{**record, "command": tuple(record["command"]), "candidates": tuple(record["candidates"])})


def _is_readable(path: Path) -> bool:
    with contextlib.suppress(ValueError):
        _job(path)
        return True
    return False


def _place(path: Path, job: Job | None) -> Place:
    try:
        job = job or _job(path)
    except ValueError as error:
        return Place(path.name, None, f"damaged: {error}", ())
    name, state = Path(job.run).name, _state(Path(job.run))
    if state == "damaged":
        return Place(name, job, f"damaged: {_error(Path(job.run))}", ())
    if not is_locked(job.lock):
        return Place(name, job, "no process", ())
    if job.started.is_file():
        return Place(name, job, "training", tuple(_start(job)["devices"]))
    return Place(name, job, "waiting" if _may_start(job) else f"after {Path(job.after).name}", job.candidates)


def _start(job: Job) -> dict:
    """The devices that a job's training took, and the start of the machine; neither if that cannot be read."""
    try:
        record = read_json(job.started, SMALL)
        check_fields(record, job.started, {"devices": list, "boot": str})
        return {"devices": [str(device) for device in record["devices"]], "boot": record["boot"]}
    except ValueError:
        return {"devices": [], "boot": ""}


def _starts(job: Job) -> bool:
    """Start the waiting process of a job; one that cannot start hinders no other."""
    try:
        return start_waiter(job) is not None
    except OSError as error:
        warnings.warn(f"job {job.number} of run {Path(job.run).name} does not start: {error}", stacklevel=3)
        return False


def _state(run: Path) -> str:
    """The state of a run, "damaged" if it cannot be read."""
    try:
        return read_status(run)["state"]
    except (ValueError, OSError):
        return "damaged"


def _step(run: Path) -> int:
    """The step of a run, 0 if it cannot be read: the training will say it anew."""
    try:
        return read_status(run)["step"]
    except (ValueError, OSError):
        return 0


def _error(run: Path) -> str:
    """Why a run failed, or cannot be read."""
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
