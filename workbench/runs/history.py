"""What was done to a run while it trained, and the options that may change meanwhile, as functions of the step.

``history.jsonl`` has a line for each: time, step, what, by whom; a changed option with its old and new value.
``config.yaml`` and the fingerprint stay; a resumed run reads its changes here and applies each at its own step, so a
run that was killed afterwards ends with the weights of one that was not.
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
    """``option`` is ``value`` from the step ``step`` on: that of the first batch trained with it, counted from 0."""

    step: int
    option: str
    value: float | int


@dataclass(frozen=True)
class Settings:
    """The options that may change while a run trains: their first values and every change, by step."""

    first: Mapping[str, Any]
    changes: tuple[Change, ...] = ()

    def at(self, step: int) -> dict[str, Any]:
        """The options in force at a step."""
        return {**self.first, **{change.option: change.value for change in self.changes if change.step <= step}}

    def changed(self, change: Change) -> "Settings":
        """With one more change; it takes the place of those of the same option that were to come at or after it.

        Those exist when a run was killed after a change and resumed from a checkpoint before it.
        """
        kept = [c for c in self.changes if c.option != change.option or c.step < change.step]
        return replace(self, changes=tuple(sorted([*kept, change], key=lambda c: c.step)))

    def check(self, option: str, value: Any) -> float | int:
        """``value`` as the option's type; ValueError that says what is allowed."""
        refuse_unknown("an option that cannot change while a run trains:", option, self.first)
        return coerce(option, value, _KINDS[option])


def settings_of(config: Config, history: Iterable[Mapping[str, Any]] = ()) -> Settings:
    """The options of a configuration that may change, with the changes that a history holds."""
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
    """Every event of a run, oldest first; a last line cut short by a crash is left out."""
    return read_events(folder)


def record_event(folder: Path, step: int, what: str, by: str | None = None, **more: Any) -> None:
    """Add a line to ``history.jsonl`` and flush it to disk: what follows may depend on it."""
    append_jsonl(folder / "history.jsonl", {"time": time.time(), "step": step, "what": what, "by": by or me(), **more})
    with naming(folder / "history.jsonl"), (folder / "history.jsonl").open("rb") as file:
        os.fsync(file.fileno())


def me() -> str:
    """Who acts: user@host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return f"{user}@{platform.node()}, process {os.getpid()}"
