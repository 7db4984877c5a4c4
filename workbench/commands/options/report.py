"""Options of the command that makes the paper's figures and tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import Processes


@dataclass(frozen=True)
class Report:
    """Make the paper's figures and tables from the runs there are: pages, pictures, tables for LaTeX and one PDF."""

    scale: Annotated[Literal["demo", "laptop", "paper"], tyro.conf.Positional] = "laptop"
    only: str = ""
    """Some of them, such as fig4,table1. One that cannot be made of the runs there are is then a failure."""
    out: Path = Path("reports/out")
    """Pages go into a folder of the scale's name in it."""
    workers: Processes | None = None
    """Notebooks executed at a time; half of the cores and one, by default."""
    score: bool = False
    """Score first what an exhibit shows and was not scored, such as steps before the last: seconds to minutes a run."""
    force: bool = False
    """Make anew what nothing changed for."""
    small: bool = False
    """Without views, executed notebooks and the PDF: pictures, tables and JSON, as a repository keeps them."""
