"""The command that builds a report of the paper's figures and tables.

The exit code is 1 if one of them failed, or if one requested with --only lacks runs.
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
    """Build the paper's figures and tables from the existing runs: pages, images, LaTeX tables and a PDF."""

    scale: Annotated[Literal["demo", "laptop", "scenes", "paper"], tyro.conf.Positional] = "laptop"
    """Whose runs are shown. Those of scenes ship with the package."""
    only: str = ""
    """Build only these, such as fig4,table1, or the module path of your own, such as mypkg.rates. If runs are missing
    for one of them, the command fails."""
    out: Path = Path("reports/out")
    """Output folder; pages are written to a subfolder named after the scale."""
    workers: Processes | None = None
    """Number of notebooks executed in parallel; by default half of the cores plus one."""
    score: bool = False
    """First compute missing scores, such as those of earlier steps: seconds to minutes per run."""
    force: bool = False
    """Rebuild figures and tables even if their inputs are unchanged."""
    small: bool = False
    """Write only images, tables and JSON, as for a repository: no views, executed notebooks or PDF."""

    def execute(self) -> None:
        from workbench.reporting import paper

        only = paper.chosen(self.only.split(","))
        from workbench.reporting.build.assemble import assemble
        from workbench.reporting.build.make import Made, make

        start, console = time.monotonic(), Console()
        failed: list[Made] = []
        incomplete: list[Made] = []
        folder = self.out / self.scale
        with bars(console) as update:
            for made in make(self.scale, runs_root(), folder, only, self.workers, score=self.score, force=self.force):
                update("report", made.done, made.total, f"{made.name} {made.state}")
                if made.state in ("failed", "incomplete"):
                    (failed if made.state == "failed" else incomplete).append(made)
        command = f"workbench report {self.scale}"
        command += f" --out {self.out}" if str(self.out) != "reports/out" else ""
        command += "".join(f" --{name}" for name in ("score", "small") if getattr(self, name))
        index = assemble(self.scale, folder, command, runs_root(), small=self.small)
        console.print(f"{index} in {time.monotonic() - start:.0f} s", soft_wrap=True)
        for made in incomplete:
            print(f"workbench: {made.name} cannot be shown yet. {made.reason}", file=sys.stderr)
        for made in failed:
            print(f"workbench: {made.name} failed: {made.reason}", file=sys.stderr)
        if failed or (self.only and incomplete):
            sys.exit(1)
