"""The command that makes an edition of the paper's figures and tables."""

import sys
import time

from workbench.commands.bars import bars
from workbench.commands.terminal import Console
from workbench.runs.store import runs_root


def report(command) -> None:
    """Each exhibit in turn, then the pages; what is not there is listed with what makes it.

    Exit code 1 if one failed, or if one that was asked for by name cannot be shown.
    """
    from workbench.reporting import paper

    only = paper.chosen(command.only.split(","))
    from workbench.reporting.edition.bind import bind
    from workbench.reporting.edition.build import make

    began, console, failed, lacking = time.monotonic(), Console(), [], []
    folder = command.out / command.scale
    with bars(console) as update:
        options = {"score": command.score, "force": command.force}
        for one in make(command.scale, runs_root(), folder, only, command.workers, **options):
            update("report", one.done, one.total, f"{one.name} {one.state}")
            if one.state in ("failed", "lacking"):
                (failed if one.state == "failed" else lacking).append(one)
    again = f"workbench report {command.scale}"
    again += f" --out {command.out}" if str(command.out) != "reports/out" else ""
    again += "".join(f" --{name}" for name in ("score", "small") if getattr(command, name))
    index = bind(command.scale, folder, again, runs_root(), small=command.small)
    console.print(f"{index} in {time.monotonic() - began:.0f} s", soft_wrap=True)
    for one in lacking:
        print(f"workbench: {one.name} cannot be shown yet. {one.reason}", file=sys.stderr)
    for one in failed:
        print(f"workbench: {one.name} failed: {one.reason}", file=sys.stderr)
    if failed or (command.only and lacking):
        sys.exit(1)
