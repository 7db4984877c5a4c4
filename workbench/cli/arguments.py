"""Types of command arguments, and their checks before a command is executed.

Annotations hold the range of a number, and whether a string names a run, a preset or a file; the checks read them.
Nothing heavy is imported here, so that errors are reported quickly.
"""

import difflib
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import tyro

from workbench.config import Config, load_config, refuse_unknown
from workbench.config.ranges import Range


class Names(Enum):
    """What a string argument names."""

    RUN = "run"
    CONFIG = "preset or YAML file"
    FILE = "file"


@dataclass(frozen=True)
class Ending:
    """Allowed suffixes of a file name."""

    allowed: tuple[str, ...]


@dataclass(frozen=True)
class OneOf:
    """Allowed values of a string argument; the error for another value names the closest one."""

    allowed: tuple[str, ...]


Overrides = Annotated[tuple[str, ...], tyro.conf.Positional]
Reference = Annotated[str, tyro.conf.Positional]
RunReference = Annotated[str, tyro.conf.Positional, Names.RUN]
ConfigReference = Annotated[str, tyro.conf.Positional, Names.CONFIG]

Processes = Annotated[int, Range(at_least=1, at_most=4096)]
Repeats = Annotated[int, Range(at_least=1, at_most=100_000)]
Device = Annotated[int, Range(at_least=0, at_most=1023)]


@runtime_checkable
class Command(Protocol):
    """A command: a frozen dataclass whose fields are its arguments and whose docstring is its help.

    The method is not called ``run``, because many commands have an argument of that name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def execute(self) -> None:
        """Execute the command and print its result; ValueError for a user error."""


_MAY_BE_EMPTY = ("--text", "--filter")  # to clear the notes, and to list all runs


def check_arguments(arguments: Sequence[str], commands: Collection[str]) -> None:
    """Raise ValueError for an unknown command, and for an empty argument, such as an unset shell variable."""
    if arguments and arguments[0] not in commands and not arguments[0].startswith("-"):
        longer = [name for name in commands if name.startswith(f"{arguments[0]}-")]
        near = longer or difflib.get_close_matches(arguments[0][:100], commands, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`workbench --help` lists the commands"
        raise ValueError(f"the command {arguments[0][:100]!r} is not known; {hint}")
    for before, argument in pairwise(["workbench", *arguments]):
        name, equals, value = argument.partition("=")
        if not (equals and name.startswith("--")) or "." in name:
            name, value = before, argument
        if not value.strip() and name not in _MAY_BE_EMPTY:
            raise ValueError(f"the value after {name} is empty; is a shell variable not set?")


def check_command(command: Command) -> None:
    """Raise ValueError for a number outside its range, and for a run, preset or file that does not exist."""
    from workbench.runs.store import open_run

    hints = typing.get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        option = f"--{field.name.replace('_', '-')}"
        for value, metadata in _values(hints[field.name], getattr(command, field.name)):
            for item in metadata:
                if isinstance(item, Range):
                    item.check(option, value)
                elif item is Names.RUN and "=" not in value:  # with "=" it is an override: the run is optional
                    open_run(value)
                elif item is Names.CONFIG:
                    load_config(value, getattr(command, "overrides", ()))
                elif item is Names.FILE and not Path(value).exists():
                    raise ValueError(f"there is no file {value}")
                elif isinstance(item, Ending):
                    refuse_unknown("the ending of a checkpoint's name", Path(value).suffix, item.allowed)
                elif isinstance(item, OneOf):
                    refuse_unknown(field.name, value, item.allowed)


def check_data_path(config: Config) -> None:
    """Raise ValueError if ``data.path`` or ``data.masks`` does not exist."""
    for option in ("path", "masks"):
        path = getattr(config.data, option)
        if path is not None and not Path(path).exists():
            raise ValueError(f"there is no file or folder data.{option} {path}")


def _values(hint: Any, value: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each value of an option with the metadata of its annotation; None is skipped."""
    if value is None:
        return
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield from _values(arguments[0], value, (*metadata, *hint.__metadata__))
    elif isinstance(value, tuple):
        for item in value:
            yield from _values(arguments[0], item, metadata)
    elif type(None) in arguments:
        yield from _values(next(kind for kind in arguments if kind is not type(None)), value, metadata)
    else:
        yield value, metadata
