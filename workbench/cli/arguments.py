"""Types of the arguments of commands, and the checks before a command runs.

A number has its range in its annotation, and a text that names a run, a preset or a file says so there. The checks read
these annotations. Nothing heavy is imported here, so that a mistake is answered at once.
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
    """What a text of the command line names."""

    RUN = "run"
    CONFIG = "preset or YAML file"
    FILE = "file"


@dataclass(frozen=True)
class Ending:
    """The endings that the name of a file may have."""

    allowed: tuple[str, ...]


@dataclass(frozen=True)
class OneOf:
    """The values that a text may have. Another one is refused in a sentence, with the nearest of these."""

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
        """Do what the command is for and print what came of it; ValueError for a mistake of the user."""


_MAY_BE_EMPTY = ("--text", "--filter")  # notes that are cleared, and all runs


def check_arguments(arguments: Sequence[str], commands: Collection[str]) -> None:
    """ValueError for a command that does not exist, and for an empty argument, as an unset shell variable leaves it."""
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
    """ValueError for a number outside its range, and for a run, preset or file that is not there."""
    from workbench.runs.store import open_run

    hints = typing.get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        what = f"--{field.name.replace('_', '-')}"
        for value, marks in _values(hints[field.name], getattr(command, field.name)):
            for mark in marks:
                if isinstance(mark, Range):
                    mark.check(what, value)
                elif mark is Names.RUN and "=" not in value:  # else an override, where a run may be left out
                    open_run(value)
                elif mark is Names.CONFIG:
                    load_config(value, getattr(command, "overrides", ()))
                elif mark is Names.FILE and not Path(value).exists():
                    raise ValueError(f"there is no file {value}")
                elif isinstance(mark, Ending):
                    refuse_unknown("the ending of a checkpoint's name", Path(value).suffix, mark.allowed)
                elif isinstance(mark, OneOf):
                    refuse_unknown(field.name, value, mark.allowed)


def check_data_path(config: Config) -> None:
    """ValueError if the images are not where the configuration says."""
    if config.data.path is not None and not Path(config.data.path).exists():
        raise ValueError(f"there is no file or folder data.path {config.data.path}")


def _values(hint: Any, value: Any, marks: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every single value of an option with what its annotation says of it; nothing where none is given."""
    if value is None:
        return
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        yield from _values(arguments[0], value, (*marks, *hint.__metadata__))
    elif isinstance(value, tuple):
        for item in value:
            yield from _values(arguments[0], item, marks)
    elif type(None) in arguments:
        yield from _values(next(one for one in arguments if one is not type(None)), value, marks)
    else:
        yield value, marks
