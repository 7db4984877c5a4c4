"""The event history of a run, and the options that may change during training as functions of the step.

``history.jsonl`` has a line per event: time, step, what, by whom, and for a changed option its old and new value.
``config.yaml`` and the fingerprint stay the same. A resumed run reads the changes from here and applies each at its
own step, so a run that was killed and resumed ends with the same weights as an uninterrupted one.
"""

import getpass
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.config import Config, TrainingConfig, coerce, record_options, refuse_unknown
from workbench.config.ranges import FromStep
from workbench.files import append_jsonl, naming
from workbench.runs.records import read_events

_KINDS = {
    **{key: record_options(TrainingConfig)[key] for key in ("learning_rate", "log_every", "checkpoint_every")},
    "stop_step": FromStep,
}


@dataclass(frozen=True)
class Change:
    """``option`` is ``value`` from ``step`` on, the index of the first batch that uses it, counted from 0."""

    step: int
    option: str
    value: float | int


@dataclass(frozen=True)
class Settings:
    """Options that may change during training: initial values and all changes."""

    first: Mapping[str, Any]
    changes: tuple[Change, ...] = ()

    def at(self, step: int) -> dict[str, Any]:
        """The values of the options at a step."""
        return {**self.first, **{change.option: change.value for change in self.changes if change.step <= step}}

    def changed(self, change: Change) -> "Settings":
        """Settings with one more change, which replaces changes of the same option at the same or a later step.

        Such changes exist if a run was killed after them and resumed from an earlier checkpoint.
        """
        kept = [c for c in self.changes if c.option != change.option or c.step < change.step]
        return replace(self, changes=tuple(sorted([*kept, change], key=lambda c: c.step)))

    def check(self, option: str, value: Any) -> float | int:
        """``value`` converted to the option's type; ValueError, with what is allowed, if the option cannot have it."""
        refuse_unknown("an option that cannot change during training:", option, self.first)
        return coerce(option, value, _KINDS[option])


def settings_of(config: Config, history: Iterable[Mapping[str, Any]] = ()) -> Settings:
    """Settings of a configuration with the changes in a history; ValueError if the history is damaged."""
    first = {name: getattr(config.training, name) for name in _KINDS if name != "stop_step"}
    if "stop_step" in config.objective.options:
        first["stop_step"] = config.objective.options["stop_step"]
    settings = Settings(first)
    for event in history:
        if event["what"] == "set":
            try:
                value = settings.check(event["option"], event["new"])
            except ValueError as error:
                raise ValueError(f"history.jsonl is damaged: at step {event['step']} {error}") from error
            settings = settings.changed(Change(event["step"], event["option"], value))
    return settings


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first, without a last line that a crash cut short."""
    return read_events(folder)


def record_event(folder: Path, step: int, what: str, by: str | None = None, **more: Any) -> None:
    """Append an event to ``history.jsonl`` and flush it to disk, before anything that depends on it."""
    append_jsonl(folder / "history.jsonl", {"time": time.time(), "step": step, "what": what, "by": by or me(), **more})
    with naming(folder / "history.jsonl"), (folder / "history.jsonl").open("rb") as file:
        os.fsync(file.fileno())


def me() -> str:
    """The author of an event: "user@host, process N"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{platform.node()}, process {os.getpid()}"
