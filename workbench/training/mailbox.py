"""``control.json``: what people ask of a run that trains, numbered, written by them and read by the trainer."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.files import hold_lock, read_json, write_json
from workbench.runs.history import me

COMMANDS = ("pause", "resume", "checkpoint", "stop", "set")
_KEPT = 100  # of the newest commands
_PATIENCE = 10.0  # seconds: whoever writes holds the lock for milliseconds


@dataclass(frozen=True)
class Command:
    """One of ``COMMANDS``; "set" has an option and its value."""

    number: int
    what: str
    by: str
    time: float
    options: Mapping[str, Any] = field(default_factory=dict)


def send(folder: Path, what: str, **options: Any) -> int:
    """Add a command to the run's ``control.json`` and return its number; the trainer answers in ``status.json``."""
    with hold_lock(folder / ".control-lock", _PATIENCE):
        commands = _read(folder)
        number = last_number(folder) + 1
        commands.append(Command(number, what, me(), time.time(), options))
        write_json(folder / "control.json", {"commands": [asdict(command) for command in commands[-_KEPT:]]})
    return number


def last_number(folder: Path) -> int:
    """The number of the newest command, 0 if there was none."""
    return max((command.number for command in _read(folder)), default=0)


class Mailbox:
    """The trainer's side: ``new()`` gives the commands after the number ``heard``, at the cost of one stat if none."""

    def __init__(self, folder: Path, heard: int):
        self._folder, self._heard = folder, heard
        self._file, self._seen = os.fspath(folder / "control.json"), None

    def new(self) -> tuple[Command, ...]:
        """The commands that came since the last call, in order."""
        try:
            found = os.stat(self._file)
        except OSError:
            return ()
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if mark == self._seen:
            return ()
        self._seen = mark
        with contextlib.suppress(ValueError, OSError):  # damaged by hand: training goes on
            commands = tuple(command for command in _read(self._folder) if command.number > self._heard)
            self._heard = max((command.number for command in commands), default=self._heard)
            return commands
        return ()


def _read(folder: Path) -> list[Command]:
    file = folder / "control.json"
    if not file.is_file():
        return []
    try:
        return [Command(**command) for command in read_json(file)["commands"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
