"""A run in the hands of those who watch it: pause, resume, save, stop, change an option. From anywhere."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.runs.history import me, read_history, record_event, settings_of
from workbench.runs.state import LIVE, TRAINING
from workbench.runs.store import Run, open_run
from workbench.training import queue
from workbench.training.launch import Launched, is_leaving, relaunch
from workbench.training.mailbox import send

_PATIENCE = 10.0  # seconds that an answer is waited for: it comes after the step that is being computed


@dataclass(frozen=True)
class Answer:
    """What the trainer said to a command: "done" at a step, "refused: ..." or, after too long, "sent"."""

    what: str
    result: str
    step: int
    seconds: float


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
        >>> record = next(wb.fit(config))  # one record, then the generator is left and the run is stopped
        >>> run = next(run for run in wb.find_runs() if run.config == config)
        >>> wb.Control(run).set("learning_rate", 5e-4).result  # holds when the run is resumed
        'done: learning_rate 0.001 -> 0.0005'
    """

    def __init__(self, run: Run | str | Path, patience: float = _PATIENCE):
        self.run = run if isinstance(run, Run) else open_run(run)
        self.patience = patience

    def pause(self) -> Answer:
        """Wait after the current step, with everything kept in memory and nothing saved."""
        return self._ask("pause")

    def checkpoint(self) -> Answer:
        """Save after the current step."""
        return self._ask("checkpoint")

    def stop(self) -> Answer:
        """Save after the current step and end; a run that waits in the queue leaves it."""
        if self.run.status["state"] == "queued":
            queue.cancel(self.run.folder.resolve())
            return Answer("stop", "done: taken out of the queue", self.run.status["step"], 0.0)
        return self._ask("stop")

    def resume(self) -> Answer | Launched:
        """Let a paused run go on; launch one that ended before its last step again, exactly as it was.

        Right after a stop it waits until the process is gone, which saves first; ValueError if that takes 20 seconds.
        """
        status = self.run.status
        if is_leaving(status):
            return relaunch(self.run)
        if status["state"] == "paused":
            return self._ask("resume")
        raise ValueError(f"run {self.run.name} is {status['state']}; resume is for one that is paused or ended early")

    def set(self, option: str, value: Any) -> Answer:
        """Change learning_rate, stop_step, log_every or checkpoint_every from the next step on, resumes included.

        Of a run that nobody trains, it holds from the step that it will resume from. Raises ValueError for another
        option or value, with what is allowed, and for a run that has finished.
        """
        settings = settings_of(self.run.config, read_history(self.run.folder))
        value = settings.check(option, value)
        status = self.run.status
        if status["state"] == "finished":
            raise ValueError(
                f"run {self.run.name} finished at step {status['step']:,}: no step is left that {option} could change"
            )
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
            raise ValueError(f"run {self.run.name} is {status['state']} at step {status['step']}: nobody trains it")
        number, since = send(self.run.folder, what, **options), time.monotonic()
        while time.monotonic() < since + self.patience:
            status = self.run.status
            answer = status.get("answer") or {"number": 0}
            waited = time.monotonic() - since
            if answer["number"] >= number:
                result = answer["result"] if answer["number"] == number else "done"
                return Answer(what, result, answer["step"], waited)
            if status["state"] not in LIVE:
                ended = f"{status['state']} before it answered"
                return Answer(what, ended, status["step"], waited)
            time.sleep(0.02)
        busy = status["state"] if status["state"] not in TRAINING else "in the middle of a step"
        return Answer(what, f"sent, not answered yet: the run is {busy}", status["step"], time.monotonic() - since)
