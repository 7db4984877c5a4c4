"""What each command of the command line takes; the options in options/X.py are served by commands/X.py.

Numbers have their range and names of runs, presets and files say so in their annotation: `checking` looks at these
before anything that takes seconds is imported.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import tyro

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


Overrides = Annotated[tuple[str, ...], tyro.conf.Positional]
Reference = Annotated[str, tyro.conf.Positional]
RunReference = Annotated[str, tyro.conf.Positional, Names.RUN]
ConfigReference = Annotated[str, tyro.conf.Positional, Names.CONFIG]

Processes = Annotated[int, Range(at_least=1, at_most=4096)]
Repeats = Annotated[int, Range(at_least=1, at_most=100_000)]
Device = Annotated[int, Range(at_least=0, at_most=1023)]
