"""What a trainer does between two steps: hear commands and signals, agree on them with the others, carry them out."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from workbench.config import Config
from workbench.runs.history import Change, read_history, record_event, settings_of
from workbench.runs.store import Run
from workbench.training.mailbox import COMMANDS, HEARD, Command, Mailbox, StopSignals, last_number

_BEAT = 5.0  # seconds between signs of life in status.json
_PAUSE = 0.2  # seconds between questions while paused
_ANSWER = 1.0  # seconds within which several processes ask each other again
_AT_MOST = 100  # steps between such questions, should steps become slow all of a sudden


@dataclass(frozen=True)
class Wishes:
    """What the loop has to do now, and the seconds that passed in a pause."""

    stop: bool = False
    save: bool = False
    redraw: bool = False  # the batches ahead were drawn under other settings
    paused: float = 0.0


@dataclass(frozen=True)
class _Order:
    """A command with the answer to it and, if it is to be obeyed and changes an option, the change."""

    command: Command
    result: str
    change: Change | None = None


class Attendant:
    """Stands between the loop and those who watch it; every process has one, and all do the same at the same step."""

    def __init__(
        self,
        run: Run,
        config: Config,
        accelerator: Accelerator,
        signals: "StopSignals",
        report: Callable[[str], None],
    ):
        self.run, self.accelerator, self.signals, self.report = run, accelerator, signals, report
        history = self._from_main([read_history(run.folder) if accelerator.is_main_process else None])[0]
        self.settings = settings_of(config, history)
        # A run that stopped is not stopped again by what was asked of it then.
        heard = [int(os.environ.get(HEARD) or last_number(run.folder)), *(event.get("command", 0) for event in history)]
        self.mailbox = Mailbox(run.folder, max(heard))
        self.answer: dict | None = None
        self.paused = False
        self._asked = (-1, time.monotonic())
        self._ask_at = 0
        self.beat()

    def attend(self, step: int) -> Wishes:
        """Carry out what was asked before ``step``, the next batch counted from 0; waits here while paused."""
        stop, orders = self._heard(step)
        if not orders and not stop:
            self._beat_when_due("running")
            return Wishes()
        save = redraw = waited = False
        since = time.monotonic()
        while True:
            for order in orders:
                self._obey(order, step)
                stop |= order.command.what == "stop"
                save |= order.command.what == "checkpoint"
                redraw |= order.change is not None and order.change.option == "stop_step"
            if stop or not self.paused:
                break
            waited = True
            time.sleep(_PAUSE)
            self._beat_when_due("paused")
            stop, orders = self._heard(step, always=True)
        self.paused = False
        return Wishes(stop, save, redraw, time.monotonic() - since if waited else 0.0)

    def beat(self) -> None:
        """Note that status.json was just written."""
        self._beat_due = time.monotonic() + _BEAT

    def event(self, step: int, what: str, by: str | None = None, **more) -> None:
        """Add to the run's history, once for all processes."""
        if self.accelerator.is_main_process:
            record_event(self.run.folder, step, what, by, **more)

    def _beat_when_due(self, state: str) -> None:
        if time.monotonic() >= self._beat_due:
            self._say(state)

    def _say(self, state: str) -> None:
        with contextlib.suppress(OSError):  # a disk that is full now may not be when something has to be saved
            self.report(state)
        self.beat()

    def _accept(self, command: Command, step: int) -> "_Order":
        """Check a command and write it into the history, before anybody acts on it: a resume has to know of it."""
        change, more = None, {}
        try:
            if command.what == "set":
                option = command.options["option"]
                value, old = self.settings.check(option, command.options["value"]), self.settings.at(step)[option]
                change, more = Change(step, option, value), {"option": option, "old": old, "new": value}
            elif command.what not in COMMANDS:
                raise ValueError(f"{command.what!r} is not one of {', '.join(COMMANDS)}")
            self.event(step, command.what, command.by, command=command.number, **more)
        except (ValueError, KeyError, OSError) as error:
            return _Order(replace(command, what="refused"), f"refused: {error}")
        return _Order(command, f"done: {option} {old} -> {value}" if change else "done", change)

    def _obey(self, order: "_Order", step: int) -> None:
        what = order.command.what
        if order.change is not None:
            self.settings = self.settings.changed(order.change)
        elif what in ("pause", "resume"):
            self.paused = what == "pause"
        self.answer = {"number": order.command.number, "what": what, "result": order.result, "step": step}
        self._say("paused" if self.paused else "running")

    def _heard(self, step: int, always: bool = False) -> tuple[bool, list["_Order"]]:
        """Whether to stop, and new orders: the same answer in every process.

        Asking makes every process wait for the slowest, so several ask each other about once a second.
        """
        several, main = self.accelerator.num_processes > 1, self.accelerator.is_main_process
        if several and step < self._ask_at and not always:
            return False, []
        orders = [self._accept(command, step) for command in self.mailbox.new()] if main else []
        if not several:
            return self.signals.asked, orders
        (asked_step, asked_time), now = self._asked, time.monotonic()
        pace = (now - asked_time) / max(step - asked_step, 1)
        told = torch.tensor([[float(self.signals.asked), len(orders), pace]], device=self.accelerator.device)
        told = self.accelerator.gather(told)
        self._asked = (step, now)
        self._ask_at = step + min(max(int(_ANSWER / told[:, 2].max().item()), 1), _AT_MOST)
        return bool(told[:, 0].sum() > 0), self._from_main([orders])[0] if told[:, 1].sum() > 0 else []

    def _from_main(self, values: list) -> list:
        return broadcast_object_list(values) if self.accelerator.num_processes > 1 else values
