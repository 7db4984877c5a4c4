"""Commands to a training run: numbered records in ``control.json`` that the trainer polls, and stop signals."""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from workbench.files import damaged, hold_lock, read_json, write_json
from workbench.runs.history import me, read_history
from workbench.runs.records import SMALL, check_fields
from workbench.runs.state import read_status

LAST_COMMAND = "WORKBENCH_LAST_COMMAND"  # environment variable: newest command at launch, later ones are executed
COMMANDS = ("pause", "resume", "checkpoint", "stop", "set")
_FIELDS = {"number": int, "what": str, "by": str, "time": float, "options": dict}
_KEPT = 100  # newest commands that stay in the file
_PATIENCE = 10.0  # seconds to wait for the lock, which a writer holds for milliseconds


@dataclass(frozen=True)
class Command:
    """One of ``COMMANDS``; "set" has ``options`` "option" and "value"."""

    number: int
    what: str
    by: str
    time: float
    options: Mapping[str, Any] = field(default_factory=dict)


def send(folder: Path, what: str, **options: Any) -> int:
    """Append a command to the run's ``control.json`` and return its number; the trainer answers in ``status.json``.

    A damaged file is replaced, with a warning; its commands are lost.
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
    """Number of the newest command, 0 if there is none; if the file is damaged, the newest that was executed."""
    numbers = [0]
    with contextlib.suppress(ValueError):
        return max((command.number for command in _read(folder)), default=0)
    with contextlib.suppress(ValueError):
        numbers += [event.get("command") or 0 for event in read_history(folder)]
    with contextlib.suppress(ValueError, OSError):  # a refused command is answered but not in the history
        numbers.append((read_status(folder).get("answer") or {"number": 0})["number"])
    return max(numbers)


def is_outstanding(what: str, folder: Path, status: Mapping[str, Any]) -> bool:
    """Whether a command such as "stop" was sent and has not been answered, according to the run's ``status``.

    Commands to an earlier process of the run, up to number ``earlier`` of the status, are never answered.
    """
    answered = max((status.get("answer") or {"number": 0})["number"], status.get("earlier") or 0)
    with contextlib.suppress(ValueError):
        return any(command.what == what and command.number > answered for command in _read(folder))
    return False


class Mailbox:
    """Trainer side: `new` returns the commands after number ``last``. Without new commands it costs one stat."""

    def __init__(self, folder: Path, last: int):
        self._folder, self._last = folder, last
        self._file = os.fspath(folder / "control.json")
        self._version: tuple[int, int, int] | None = None

    def new(self) -> tuple[Command, ...]:
        """Commands since the last call, in order."""
        try:
            stat = os.stat(self._file)
        except OSError:
            return ()
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if version == self._version:
            return ()
        self._version = version
        with contextlib.suppress(ValueError, OSError):  # a damaged file does not stop training
            commands = tuple(command for command in _read(self._folder) if command.number > self._last)
            self._last = max((command.number for command in commands), default=self._last)
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


# SIGUSR1 is what batch systems are usually asked to send before a time limit.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """Request a stop after the current step on `STOPS`; a second signal has its previous effect."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        self._before.clear()
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self.requested = True
        signal.signal(number, self._before[number])
