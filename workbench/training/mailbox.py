"""What people ask of a run that trains: in ``control.json``, numbered, or by a signal; the trainer reads it."""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.files import damaged, hold_lock, read_json, write_json
from workbench.runs.history import me, read_history
from workbench.runs.records import SMALL, check_fields
from workbench.runs.state import read_status

HEARD = "WORKBENCH_HEARD"  # the newest command when the process was launched: later ones are for it
COMMANDS = ("pause", "resume", "checkpoint", "stop", "set")
_FIELDS = {"number": int, "what": str, "by": str, "time": float, "options": dict}
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
    """Add a command to the run's ``control.json`` and return its number; the trainer answers in ``status.json``.

    A damaged file is replaced: what it held cannot be carried out any more.
    """
    with hold_lock(folder / ".control-lock", _PATIENCE):
        try:
            commands = _read(folder)
        except ValueError as error:
            warnings.warn(f"{error}; it is replaced", stacklevel=2)
            commands = []
        number = last_number(folder) + 1
        commands.append(Command(number, what, me(), time.time(), options))
        write_json(folder / "control.json", {"commands": [asdict(command) for command in commands[-_KEPT:]]})
    return number


def last_number(folder: Path) -> int:
    """The number of the newest command, 0 if there was none; of a damaged file, the newest that was carried out."""
    numbers = [0]
    with contextlib.suppress(ValueError):
        return max((command.number for command in _read(folder)), default=0)
    with contextlib.suppress(ValueError):
        numbers += [event.get("command") or 0 for event in read_history(folder)]
    with contextlib.suppress(ValueError, OSError):  # a refused one is answered, but no part of the history
        numbers.append((read_status(folder).get("answer") or {"number": 0})["number"])
    return max(numbers)


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
    if not os.path.lexists(file):
        return []
    record = read_json(file, SMALL)
    check_fields(record, file, {"commands": list})
    for command in record["commands"]:
        if not isinstance(command, dict):
            raise damaged(file, f"a command must be a mapping; it is {type(command).__name__}")
        check_fields(command, file, _FIELDS)
        if command.keys() != _FIELDS.keys():
            raise damaged(file, f"a command has {', '.join(_FIELDS)}; it has {', '.join(map(str, command))[:200]}")
    return [Command(**command) for command in record["commands"]]


class StopSignals:
    """SIGTERM and SIGINT ask for a stop after the current step; a second one acts as it did before."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, self._before[number])
