"""Client side of run control: pause, resume, save, stop or change an option of a run, from any process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.files import is_locked
from workbench.runs.history import me, read_history, record_event, settings_of
from workbench.runs.state import LIVE, STARTER_LOCK, TRAINER_LOCK, TRAINING
from workbench.runs.store import Run, open_run
from workbench.training import queue
from workbench.training.launch import Launched, is_leaving, relaunch
from workbench.training.mailbox import is_outstanding, send

_PATIENCE = 10.0  # seconds to wait for an answer, which comes after the current step


@dataclass(frozen=True)
class Answer:
    """Result of a command: "done ...", "refused: ..." or, if the trainer has not answered in time, "sent ...".

    ``step`` is the training step at the answer, ``seconds`` how long it took.
    """

    what: str
    result: str
    step: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}: {self.result}, at step {self.step:,}, after {self.seconds:.1f} s"


class Control:
    """Pause, resume, save, stop or change one run from another process.

    Each method returns an ``Answer`` (what, result, step, seconds waited) and is recorded in the run's
    ``history.jsonl``.

    Args:
        run: A run, its folder or its name.
        patience: Seconds to wait for the answer; 0 only sends.

    Raises:
        ValueError: If no process trains the run, or for an option or value that cannot be set.

    Examples:
        >>> config = wb.load_config("demo/plain", ["data.name=digits", "backbone.size=pico", "training.batch=8"])
        >>> record = next(wb.fit(config))  # one record; then the generator is closed and the run stops
        >>> run = next(run for run in wb.find_runs() if run.config == config)
        >>> wb.Control(run).set("learning_rate", 5e-4).result  # takes effect when the run is resumed
        'done: learning_rate 0.003 -> 0.0005'
    """

    def __init__(self, run: Run | str | Path, patience: float = _PATIENCE):
        self.run = run if isinstance(run, Run) else open_run(run)
        self.patience = patience

    def pause(self) -> Answer:
        """Pause after the current step. Everything stays in memory; nothing is saved."""
        return self._ask("pause")

    def checkpoint(self) -> Answer:
        """Save a checkpoint after the current step."""
        return self._ask("checkpoint")

    def stop(self) -> Answer:
        """Save after the current step and end; a queued run is removed from the queue."""
        if self.run.status["state"] == "queued":
            queue.cancel(self.run.folder.resolve())
            return Answer("stop", "done: removed from the queue", self.run.status["step"], 0.0)
        return self._ask("stop")

    def resume(self) -> Answer | Launched:
        """Continue a paused run, or relaunch one that ended before its last step.

        Waits up to `patience` seconds for a stop that has not been answered yet, and for the old process to save and
        exit; ValueError if that process is there 20 seconds later.
        """
        deadline, status = time.monotonic() + self.patience, self.run.status
        while self._is_stopping(status) and time.monotonic() < deadline:
            time.sleep(0.02)
            status = self.run.status
        if is_leaving(status):
            return relaunch(self.run)
        if status["state"] == "paused":
            return self._ask("resume")
        raise ValueError(f"run {self.run.name} is {status['state']}; only a run that is paused or ended early resumes")

    def _is_stopping(self, status: Mapping[str, Any]) -> bool:
        """Whether a stop was sent but not answered, or the process that was stopped is still there."""
        folder = self.run.folder
        if not is_leaving(status):
            return is_outstanding("stop", folder, status)
        return any(is_locked(folder / lock) for lock in (STARTER_LOCK, TRAINER_LOCK))

    def set(self, option: str, value: Any) -> Answer:
        """Change learning_rate, stop_step, log_every or checkpoint_every from the next step on.

        The change is kept across resumes. If the run is not training, it takes effect at the step from which the run
        resumes. Raises ValueError for any other option, an invalid value, and a run that has finished.
        """
        settings = settings_of(self.run.config, read_history(self.run.folder))
        value = settings.check(option, value)
        status = self.run.status
        if status["state"] == "finished":
            raise ValueError(f"run {self.run.name} finished at step {status['step']:,}: {option} can no longer change")
        if status["state"] in LIVE:
            return self._ask("set", option=option, value=value)
        with self.run.lock():
            step = max((c.step for c in self.run.checkpoints if c.resumable), default=0)
            old = settings.at(step)[option]
            record_event(self.run.folder, step, "set", me(), option=option, old=old, new=value)
        return Answer("set", f"done: {option} {old} -> {value}", step, 0.0)

    def _ask(self, what: str, **options: Any) -> Answer:
        status = self.run.status
        if status["state"] not in LIVE:
            raise ValueError(f"run {self.run.name} is {status['state']} at step {status['step']}: no process trains it")
        number, since = send(self.run.folder, what, **options), time.monotonic()
        while time.monotonic() < since + self.patience:
            status = self.run.status
            answer = status.get("answer") or {"number": 0}
            waited = time.monotonic() - since
            if answer["number"] >= number:
                result = answer["result"] if answer["number"] == number else "done"
                return Answer(what, result, answer["step"], waited)
            if status["state"] not in LIVE:
                ended = f"{status['state']} before answering"
                return Answer(what, ended, status["step"], waited)
            time.sleep(0.02)
        busy = status["state"] if status["state"] not in TRAINING else "in the middle of a step"
        return Answer(what, f"sent, not answered yet: the run is {busy}", status["step"], time.monotonic() - since)
