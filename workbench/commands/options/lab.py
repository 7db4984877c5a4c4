"""Options of the commands around the notebooks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import RunReference
from workbench.config.ranges import Count, Range


@dataclass(frozen=True)
class Lab:
    """Open JupyterLab on the notebooks: for this machine alone, with a random token, asking nothing of the network."""

    port: Annotated[int, Range(at_least=0, at_most=65_535)] = 0
    """0 takes any that is free."""
    folder: Path | None = None
    """Where the notebooks are, or are copied to; by default ./notebooks if there is one, else ./workbench-notebooks.
    A notebook that is there is never overwritten."""
    no_browser: bool = False
    """Print the address and open nothing."""


@dataclass(frozen=True)
class Page:
    """Write a view of a run as one HTML file that works offline and without Python: for a class, for a colleague."""

    run: RunReference
    file: Annotated[Path, tyro.conf.Positional]
    view: Literal["maps", "embedding", "separability", "leakage", "samples", "explore"] = "maps"
    images: Count | None = None
    """How many images are shown and measured, or samples a row; each view has its own default."""
