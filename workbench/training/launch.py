"""Start training in a process of its own: at once or through the queue, with one or several ranks."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import workbench
from workbench.config import FREE, Config, load_config, to_dict
from workbench.config.teachers import override
from workbench.files import is_locked
from workbench.runs.history import me, read_history, record_event, settings_of
from workbench.runs.state import LIVE, STARTER_LOCK, TRAINER_LOCK, TRAINING, last_log_lines
from workbench.runs.store import Run, prepare_run, run_fingerprint, runs_root
from workbench.training import queue as jobs
from workbench.training.mailbox import LAST_COMMAND, last_number
from workbench.training.slots import CPU, take, take_slots

_LAUNCHED = "WORKBENCH_LAUNCHED"  # environment variable with the run folder of a launched process
_LEAVING = 20.0  # seconds to wait for a stopping process to exit
_children: list[subprocess.Popen] = []  # kept so that finished ones are reaped


@dataclass(frozen=True)
class Launched:
    """Result of `launch`; ``state`` is the run's state when `launch` returned.

    ``attached`` is True if the run already had a process and nothing was started. ``beside`` names the runs that share
    its device. ``failed`` is the reason why it ended at once, with the last lines of its log.
    """

    run: Run
    pid: int | None
    state: str
    attached: bool = False
    beside: tuple[str, ...] = ()
    failed: str | None = None

    def __str__(self) -> str:
        if self.failed:
            return f"{self.run.name} failed: {self.failed}"
        text = f"{self.run.name}: {self.state}"
        text += f", process {self.pid}" if self.pid else ""
        text += "; already launched, nothing was started" if self.attached else ""
        return text + (f"; {', '.join(self.beside)} trains on the same device" if self.beside else "")


def launch(
    config: Config,
    *,
    processes: int = 1,
    root: Path | None = None,
    queue: bool = False,
    devices: Sequence[int] | None = None,
    detach: bool = True,
    after: Run | None = None,
    patience: float = 5.0,
) -> Launched:
    """Train a configuration in a process of its own, which outlives this one.

    Returns once the run trains, waits in the queue or has failed. The output of the process goes to ``log.txt`` in the
    run folder. If the run already has a process, nothing is started.

    Args:
        config: What to train.
        processes: Processes that share the CPU, or take a GPU each.
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        queue: Wait for a free device, and for runs that were queued earlier.
        devices: Numbers of the GPUs that may be used; all by default.
        detach: False waits until the training has ended.
        after: A run that has to finish first, such as the teacher.
        patience: Seconds to wait until the run trains, is queued or fails.

    Returns:
        A ``Launched`` record with ``run``, ``pid``, ``state``, ``attached`` (it already had a process), ``beside``
        (names of runs on the same device) and ``failed`` (the reason, or None). It prints as one sentence.

    Raises:
        ValueError: For a teacher that was never launched, a batch that the processes cannot share, a missing device,
            or a ``config.yaml`` that was changed after the run was created.

    Examples:
        >>> small = ["data.name=digits", "backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> config = wb.load_config("demo/plain", small)
        >>> run = wb.trained(config, progress=lambda stage, done, total: None)
        >>> wb.launch(config).state  # the run is finished, so nothing is started
        'finished'
    """
    config.training.check_processes(processes)
    if after is not None and not queue:
        raise ValueError("a run that starts after another one has to wait in the queue: pass queue=True")
    possible = candidates(devices, processes)
    root = (root or runs_root()).resolve()
    run = prepare_run(config, root)
    from workbench.runs.models import check_current  # with PyTorch, which no other command on a run needs

    check_current(run)
    if run.status["state"] == "finished":
        return Launched(run, None, "finished", attached=True)
    overrides = _overrides(config, run, root)
    starter = _take_over(run)
    status = run.status
    if starter is None:
        return Launched(run, status.get("pid"), status["state"], attached=True)
    order = _order(run, root, processes, overrides, possible, after)
    record_event(
        run.folder,
        status["step"],
        "launch",
        processes=processes,
        queue=queue,
        devices=list(devices) if devices else None,
        after=order["after"],
    )
    try:
        jobs.forget(run.folder)
        process, beside = (_queue if queue else _start)(run, order, starter, detach)
    finally:  # from here on only the new process holds the lock
        os.close(starter)
    _children[:] = [child for child in (*_children, process) if child.poll() is None]
    return _wait(run, process, beside, patience if detach else float("inf"), detach)


def relaunch(run: Run, patience: float = 5.0) -> Launched:
    """Resume a run that ended early from its newest checkpoint, with the options of its last launch."""
    how: dict = {}
    history = read_history(run.folder)
    settings_of(run.config, history)  # raises here, not in the log of the new process, if the history is invalid
    for event in history:
        if event["what"] in ("launch", "train"):
            how |= {key: event[key] for key in ("processes", "queue", "devices", "after") if key in event}
    after = Run(Path(how.pop("after"))) if how.get("after") else None
    return launch(run.config, root=run.folder.parent, patience=patience, **{**how, "after": after})


def note_failed_start(error: BaseException) -> None:
    """Set the run's status to "failed"; for a launched process that fails before training starts."""
    folder = os.environ.get(_LAUNCHED)
    if folder and os.environ.get("RANK", "0") == "0":
        run = Run(Path(folder))
        status = run.status
        if status["state"] == "starting":
            run.write_status("failed", status["step"], error=str(error))


def candidates(devices: Sequence[int] | None, processes: int) -> tuple[str, ...]:
    """Names of the devices that may be used, such as "gpu0"; ValueError if there are too few."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [text.strip() for text in visible.split(",")] if visible and count else [str(n) for n in range(count)]
    absent = [number for number in devices or () if str(number) not in there]
    if absent:
        raise ValueError(f"GPU {absent[0]} is not available; available: {', '.join(there) or 'none'}")
    chosen = [str(number) for number in devices] if devices else there
    if chosen and processes > len(chosen):
        raise ValueError(f"{processes} processes need {processes} GPUs; got {len(chosen)}: {', '.join(chosen)}")
    return tuple(f"gpu{number}" for number in chosen) or (CPU,)


def is_leaving(status: Mapping) -> bool:
    """Whether the process that holds the run has ended or is stopping."""
    stopping = (status.get("answer") or {}).get("what") == "stop"
    return status["state"] not in LIVE or (status["state"] in TRAINING and stopping)


def _take_over(run: Run) -> int | None:
    """Acquire the launcher lock, waiting for an exiting process to release it; None if the run is already live.

    Raises ValueError if that process has not exited after 20 seconds.
    """
    deadline = time.monotonic() + _LEAVING
    while True:
        starter = take(run.folder / STARTER_LOCK)
        if starter is not None and not is_locked(run.folder / TRAINER_LOCK):
            return starter
        if starter is not None:
            os.close(starter)
        status = run.status
        if status["state"] == "finished" or not is_leaving(status):
            return None
        if time.monotonic() > deadline:
            raise ValueError(
                f"run {run.name} is {status['state']}, but process {status.get('pid')} still holds it after "
                f"{_LEAVING:.0f} s: try again later, or end that process"
            )
        time.sleep(0.1)


def _order(
    run: Run, root: Path, processes: int, overrides: list[str], possible: tuple[str, ...], after: Run | None
) -> dict:
    """Fields of a queue job: what a process needs to train the run, now or after a reboot."""
    more = ["--processes", str(processes)] if processes > 1 else []
    return {
        "run": str(run.folder),
        "command": (sys.executable, "-m", "workbench", "train", str(run.folder / "config.yaml"), *overrides, *more),
        "environment": _environment(run, root),
        "cwd": os.getcwd(),
        "candidates": possible,
        "needed": 1 if possible == (CPU,) else processes,
        "after": str(after.folder.resolve()) if after else None,
    }


def _overrides(config: Config, run: Run, root: Path) -> list[str]:
    """Overrides for options outside the fingerprint whose value differs from ``config.yaml``.

    Raises ValueError if ``config.yaml`` no longer has the run's fingerprint.
    """
    file = run.folder / "config.yaml"
    stored = load_config(file)
    if run_fingerprint(stored, root) != run.fingerprint:
        raise ValueError(f"{file} was changed after the run was created: its fingerprint is not {run.fingerprint}")
    new, old = to_dict(config), to_dict(stored)
    options = [(section, key) for section, _, key in (option.partition(".") for option in FREE) if key in new[section]]
    return [
        override(f"{section}.{key}", new[section][key])
        for section, key in options
        if new[section][key] != old[section][key]
    ]


def _environment(run: Run, root: Path) -> dict[str, str]:
    packages = [str(Path(workbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    own = {key: value for key, value in os.environ.items() if key.startswith(("WORKBENCH_", "OMP_", "HF_"))}
    own.pop("WORKBENCH_PROCESSES", None)
    return {
        **own,
        "PYTHONPATH": os.pathsep.join(filter(None, packages)),
        "WORKBENCH_RUNS": str(root),
        _LAUNCHED: str(run.folder),
        LAST_COMMAND: str(last_number(run.folder)),
    }


def _queue(run: Run, order: Mapping, starter: int, detach: bool) -> tuple[subprocess.Popen, tuple[str, ...]]:
    """Submit the job and start its waiting process; jobs that lost their process get a new one."""
    jobs.resume(everything=False)
    process = jobs.start_waiter(jobs.submit(**order, by=me()), starter)
    assert process is not None  # this process holds the starter's lock
    return process, ()


def _start(run: Run, order: Mapping, starter: int, detach: bool) -> tuple[subprocess.Popen, tuple[str, ...]]:
    """Start training on the least used devices; returns the process and the runs on the same devices."""
    slots = take_slots(order["candidates"], order["needed"], run.folder, force=True)
    assert slots is not None  # forced
    status = run.status
    run.write_status("starting", status["step"])
    with (run.folder / "log.txt").open("ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(order['command'])}\n".encode())
        log.flush()
        process = subprocess.Popen(
            order["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=order["cwd"],
            env=jobs.surroundings(order["environment"], slots.environment),
            start_new_session=detach,
            pass_fds=(starter, *slots.handles),
        )
    for handle in slots.handles:
        os.close(handle)
    return process, slots.beside


def _wait(run: Run, process: subprocess.Popen, beside: tuple[str, ...], patience: float, detach: bool) -> Launched:
    """Wait up to ``patience`` seconds until the run trains, is queued or fails."""
    deadline, wanted = time.monotonic() + patience, ("running", "finished") if detach else ()
    while time.monotonic() < deadline and process.poll() is None and run.status["state"] not in wanted:
        if run.status["state"] == "queued" and detach:
            break
        time.sleep(0.1)
    process.poll()
    status = run.status
    if process.returncode is None or status["state"] not in ("failed", "lost", "starting"):
        return Launched(run, process.pid if status["state"] in LIVE else None, status["state"], False, beside)
    why = status.get("error") or status.get("remark") or f"exit code {process.returncode}"
    log = "\n".join(last_log_lines(run.folder, 10))
    return Launched(run, None, status["state"], False, beside, f"{why}\n{log}")


_SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def train_in_processes(processes: int, arguments: Sequence[str]) -> int:
    """Run ``workbench train`` under torchrun with ``processes`` ranks; returns its exit code.

    Each rank checks that all of them started. The cores are shared between the ranks.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {**os.environ, "WORKBENCH_PROCESSES": str(processes)}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    # Large models take longer to save than the 30 seconds after which torchrun kills its ranks.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *torchrun, "-m", "workbench", "train", *arguments]
    with subprocess.Popen(command, env=environment, preexec_fn=partial(die_with_parent, signal.SIGTERM)) as launcher:
        # Ctrl-C reaches torchrun and the ranks directly; a second signal would interrupt their checkpoint.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # torchrun would die of SIGUSR1
            signal.signal(number, lambda *_: launcher.terminate())
        return launcher.wait()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process the signal ``number`` when its parent dies; a no-op elsewhere.

    torchrun starts its workers in sessions of their own, so killing the launcher's process group misses them. Without
    this they would wait for each other indefinitely and keep the run locked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))
