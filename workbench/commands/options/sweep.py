"""Options of the command that executes sweeps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import Names, Processes


@dataclass(frozen=True)
class Sweep:
    """Train and score every row and seed of a YAML file, each as a notebook that is kept; what exists is not repeated.

    After a stop, a kill or a failure the same command goes on.
    """

    file: Annotated[Path, tyro.conf.Positional, Names.FILE]
    workers: Processes | None = None
    """Rows at a time, which share the cores: by default one for each GPU, else one for every two cores."""
    only: tuple[str, ...] = ()
    """Only these rows, and the teachers that they need."""
    dry_run: bool = False
    """Print what exists, what would be trained and for how long, and start nothing."""
    executor: Literal["processes", "dask"] = "processes"
    """Who executes the rows: processes of this command, or a running cluster of dask (`pip install distributed`)."""
    address: str | None = None
    """Scheduler of that cluster, whose machines see the folder of the runs, such as tcp://host:8786."""
