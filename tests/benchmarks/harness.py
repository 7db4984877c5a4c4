"""What the benchmarks share: their command line, the report as JSON, and the line that says what is being measured."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
from rich.text import Text

from workbench import plugins
from workbench.__main__ import execute, refuse
from workbench.cli.arguments import Command
from workbench.cli.terminal import Console, shown
from workbench.files import write_json
from workbench.runs.store import machine
from workbench.training.slots import WAITING

# Threads that spin while they wait would take the cores from other processes. PyTorch reads this when it is imported,
# which is later: the benchmarks import this module first.
for name, value in WAITING.items():
    os.environ.setdefault(name, value)

Say = Callable[[str], None]


def main(kind: type[Command]) -> None:
    """Run a benchmark with the arguments of this process; mistakes and exit codes are those of `workbench`."""
    try:
        arguments = plugins.allow_named(sys.argv[1:])
    except ValueError as error:
        refuse(f"{error}")
    execute(tyro.cli(kind, args=arguments))


def check_report(file: Path | None) -> None:
    """ValueError for the name of a report that is not one of a JSON file."""
    if file and file.suffix != ".json":
        raise ValueError(f"cannot write {file.name!r}; a report ends in .json")


def write_report(file: Path | None, figures: Mapping[str, Any], versions: Mapping[str, str] | None = None) -> None:
    """Write figures with the machine and the versions of packages, those of `versions` too; nothing without a file."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        where = machine()
        where["versions"] |= versions or {}
        write_json(file, {**figures, **where})


@contextmanager
def saying(console: Console) -> Iterator[Say]:
    """A function that shows what is being measured: beside a turning wheel, or without a terminal a line each."""
    with console.status("measuring") as status:
        yield (lambda text: status.update(Text(shown(text)))) if console.is_terminal else console.print


def load_average() -> list[float]:
    """Of 1, 5 and 15 minutes; empty where the system does not say."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []
