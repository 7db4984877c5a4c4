"""Trainer side of run control: poll commands and signals between steps, agree across ranks, apply them."""

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
from workbench.training.mailbox import COMMANDS, LAST_COMMAND, Command, Mailbox, StopSignals, last_number

_HEARTBEAT = 5.0  # seconds between updates of status.json
_PAUSE = 0.2  # seconds between polls while paused
_ANSWER = 1.0  # seconds between polls with several ranks
_AT_MOST = 100  # steps between such polls, in case steps suddenly become slow


@dataclass(frozen=True)
class Actions:
    """What the loop has to do after a poll; ``paused`` is the time spent paused, in seconds."""

    stop: bool = False
    save: bool = False
    redraw: bool = False  # batches drawn ahead are outdated, as a setting changed
    paused: float = 0.0


@dataclass(frozen=True)
class _Order:
    """A checked command, the answer to it and, for an accepted "set", the change."""

    command: Command
    result: str
    change: Change | None = None


class CommandHandler:
    """Applies commands and stop signals to a running loop; each rank has one, and all act at the same step."""

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
        # Commands to an earlier process of this run, such as its stop, are not executed again.
        last = int(os.environ.get(LAST_COMMAND) or last_number(run.folder))
        self.earlier = max([last, *(event.get("command", 0) for event in history)])  # the newest of those
        self.mailbox = Mailbox(run.folder, self.earlier)
        self.answer: dict | None = None
        self.paused = False
        self._polled = (-1, time.monotonic())
        self._poll_at = 0
        self.reset_heartbeat()

    def poll(self, step: int) -> Actions:
        """Execute new commands before ``step``, the next batch counted from 0; blocks while paused."""
        stop, orders = self._new_orders(step)
        if not orders and not stop:
            self._heartbeat("running")
            return Actions()
        save = redraw = waited = False
        since = time.monotonic()
        while True:
            for order in orders:
                self._execute(order, step)
                stop |= order.command.what == "stop"
                save |= order.command.what == "checkpoint"
                redraw |= order.change is not None and order.change.option == "stop_step"
            if stop or not self.paused:
                break
            waited = True
            time.sleep(_PAUSE)
            self._heartbeat("paused")
            stop, orders = self._new_orders(step, always=True)
        self.paused = False
        return Actions(stop, save, redraw, time.monotonic() - since if waited else 0.0)

    def reset_heartbeat(self) -> None:
        """Delay the next heartbeat; call it after status.json was written."""
        self._heartbeat_due = time.monotonic() + _HEARTBEAT

    def event(self, step: int, what: str, by: str | None = None, **more) -> None:
        """Append an event to the run's history; only the main process writes."""
        if self.accelerator.is_main_process:
            record_event(self.run.folder, step, what, by, **more)

    def _heartbeat(self, state: str) -> None:
        if time.monotonic() >= self._heartbeat_due:
            self._report(state)

    def _report(self, state: str) -> None:
        with contextlib.suppress(OSError):  # a full disk may have room again by the next checkpoint
            self.report(state)
        self.reset_heartbeat()

    def _check(self, command: Command, step: int) -> "_Order":
        """Check a command and record it in the history before it is executed, as a resume relies on the history."""
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

    def _execute(self, order: "_Order", step: int) -> None:
        what = order.command.what
        if order.change is not None:
            self.settings = self.settings.changed(order.change)
        elif what in ("pause", "resume"):
            self.paused = what == "pause"
        self.answer = {"number": order.command.number, "what": what, "result": order.result, "step": step}
        self._report("paused" if self.paused else "running")

    def _new_orders(self, step: int, always: bool = False) -> tuple[bool, list["_Order"]]:
        """Whether to stop, and the new orders; the same result on every rank.

        The gather makes each rank wait for the slowest, so with several ranks it runs about once a second.
        """
        several, main = self.accelerator.num_processes > 1, self.accelerator.is_main_process
        if several and step < self._poll_at and not always:
            return False, []
        orders = [self._check(command, step) for command in self.mailbox.new()] if main else []
        if not several:
            return self.signals.requested, orders
        (polled_step, polled_time), now = self._polled, time.monotonic()
        pace = (now - polled_time) / max(step - polled_step, 1)
        local = torch.tensor([[float(self.signals.requested), len(orders), pace]], device=self.accelerator.device)
        ranks = self.accelerator.gather(local)
        self._polled = (step, now)
        self._poll_at = step + min(max(int(_ANSWER / ranks[:, 2].max().item()), 1), _AT_MOST)
        return bool(ranks[:, 0].sum() > 0), self._from_main([orders])[0] if ranks[:, 1].sum() > 0 else []

    def _from_main(self, values: list) -> list:
        return broadcast_object_list(values) if self.accelerator.num_processes > 1 else values
