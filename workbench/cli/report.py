"""The command that makes a report of the paper's figures and tables.

Its exit code is 1 if one failed, or if one that was asked for by name cannot be shown.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.cli.arguments import Processes
from workbench.cli.bars import bars
from workbench.cli.terminal import Console
from workbench.runs.store import runs_root


@dataclass(frozen=True)
class Report:
    """Make the paper's figures and tables from the runs there are: pages, pictures, tables for LaTeX and one PDF."""

    scale: Annotated[Literal["demo", "laptop", "paper"], tyro.conf.Positional] = "laptop"
    only: str = ""
    """Some of them, such as fig4,table1, or the module path of one of yours, such as mypkg.rates. One that cannot be
    made of the runs there are is then a failure."""
    out: Path = Path("reports/out")
    """Pages go into a folder of the scale's name in it."""
    workers: Processes | None = None
    """Notebooks executed at a time; half of the cores and one, by default."""
    score: bool = False
    """First score what is shown and was not scored, such as steps before the last: seconds to minutes a run."""
    force: bool = False
    """Make anew what nothing changed for."""
    small: bool = False
    """Without views, executed notebooks and the PDF: pictures, tables and JSON, as a repository keeps them."""

    def execute(self) -> None:
        from workbench.reporting import paper

        only = paper.chosen(self.only.split(","))
        from workbench.reporting.build.assemble import bind
        from workbench.reporting.build.make import make

        began, console, failed, lacking = time.monotonic(), Console(), [], []
        folder = self.out / self.scale
        with bars(console) as update:
            options = {"score": self.score, "force": self.force}
            for one in make(self.scale, runs_root(), folder, only, self.workers, **options):
                update("report", one.done, one.total, f"{one.name} {one.state}")
                if one.state in ("failed", "lacking"):
                    (failed if one.state == "failed" else lacking).append(one)
        again = f"workbench report {self.scale}"
        again += f" --out {self.out}" if str(self.out) != "reports/out" else ""
        again += "".join(f" --{name}" for name in ("score", "small") if getattr(self, name))
        index = bind(self.scale, folder, again, runs_root(), small=self.small)
        console.print(f"{index} in {time.monotonic() - began:.0f} s", soft_wrap=True)
        for one in lacking:
            print(f"workbench: {one.name} cannot be shown yet. {one.reason}", file=sys.stderr)
        for one in failed:
            print(f"workbench: {one.name} failed: {one.reason}", file=sys.stderr)
        if failed or (self.only and lacking):
            sys.exit(1)
