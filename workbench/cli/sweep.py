"""The command that executes sweeps: bars in a terminal, lines elsewhere, and at the end a table and what failed."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workbench.cli.arguments import Names, Processes
from workbench.cli.terminal import Console, on_one_line
from workbench.evaluation.metrics import columns, in_order
from workbench.runs.store import runs_root
from workbench.words import duration

if TYPE_CHECKING:
    from workbench.reporting.sweep.progress import Progress
    from workbench.reporting.sweep.specification import SweepSpec

_EVERY = 30.0  # seconds between lines where there is no terminal


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

    def execute(self) -> None:
        from workbench.reporting.sweep.specification import load_sweep

        spec = load_sweep(self.file)  # what is wrong is said before anything heavy is imported
        from workbench.reporting.sweep.schedule import run_sweep
        from workbench.training.mailbox import StopSignals

        if self.dry_run:
            self._show_plan(spec)
            return
        console, progress = Console(), None
        with self._pool() as executor, StopSignals() as signals, _shown(console) as show:
            options = {"workers": self.workers, "only": self.only, "stop": lambda: signals.requested}
            for progress in run_sweep(spec, executor, **options):
                show(progress)
        assert progress is not None
        self._conclude(console, spec, progress)

    def _conclude(self, console: Console, spec: "SweepSpec", progress: "Progress") -> None:
        """The scores, what failed and where its record is; the exit code."""
        from workbench.files import read_json
        from workbench.reporting.sweep.records import place_of

        place = place_of(runs_root(), spec.name)
        found = read_json(place.results)["rows"]
        if found:
            console.print(_scores(found))
        console.print(f"{len(found)} results: {place.results}", soft_wrap=True, highlight=False)
        for outcome in progress.failures:
            console.print(outcome.id, end="", highlight=False, style="red")
            console.print(str(outcome).removeprefix(outcome.id), soft_wrap=True, highlight=False)
            if outcome.notebook and outcome.state == "failed":
                console.print(f"  record: {outcome.notebook}", soft_wrap=True, highlight=False)
        if progress.stopping:
            again = shlex.join(["workbench", "sweep", *sys.argv[2:]])
            console.print(f"stopped; what was trained is saved. To go on: {again}", soft_wrap=True, highlight=False)
            raise KeyboardInterrupt
        if progress.failures:
            failed = sum(outcome.state == "failed" for outcome in progress.failures)
            left = len(progress.failures) - failed
            print(
                f"workbench: {failed} of {progress.total} rows failed, {left} were left out; "
                "the same command tries them again",
                file=sys.stderr,
            )
            sys.exit(1)

    def _show_plan(self, spec: "SweepSpec") -> None:
        """The table of a dry run."""
        from workbench.reporting.sweep.progress import standings
        from workbench.reporting.sweep.records import place_of
        from workbench.reporting.sweep.schedule import default_workers
        from workbench.reporting.sweep.specification import plan

        root = runs_root().resolve()
        found = standings(plan(spec, root, self.only), place_of(root, spec.name), root)
        table = Table(box=SIMPLE, pad_edge=False)
        for name in ("row", "seed", "method", "there is", "teaches", "time"):
            table.add_column(name, overflow="fold", no_wrap=name not in ("row", "there is"))
        for each in found:
            job = each.job
            time_left = (
                "" if each.there == "finished" else "unknown" if each.seconds is None else duration(each.seconds)
            )
            name = " = ".join(job.names) if job.names else f"{job.id} (only teaches)"
            teaches = f"{each.teaches} rows" if each.teaches > 1 else "1 row" if each.teaches else ""
            seed, method = str(job.training.seed), job.training.config.objective.name
            table.add_row(on_one_line(name), seed, method, each.there, teaches, time_left)
        console = Console()
        (console if console.is_terminal else Console(width=200)).print(table)
        known, unknown = [each.seconds for each in found if each.seconds is not None], len(found)
        unknown -= len(known)
        asked = len(spec.rows) if not self.only else len(self.only)
        count = f"{asked} rows x {len(spec.seeds)} seeds: {len(found)} notebooks"
        total = f"about {duration(sum(known))} of work" if known or not unknown else "time unknown"
        more = f", and {unknown} of unknown length" if unknown and known else ""
        workers = default_workers() if self.workers is None else self.workers
        shared = f", at best divided by the {workers} workers" if workers > 1 else ""
        console.print(f"{count}; {total}{more}{shared}", soft_wrap=True, highlight=False)

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Any]:
        """The executor that was asked for; None for the sweep's own."""
        if self.address is not None and self.executor != "dask":
            raise ValueError("--address is the scheduler of a dask cluster: add --executor dask")
        if self.executor == "processes":
            yield None
            return
        if self.address is None:
            raise ValueError("--executor dask needs --address: the scheduler of a running dask cluster")
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError("--executor dask needs a package: pip install distributed") from error
        with Client(self.address, timeout=20) as client:
            yield client.get_executor(pure=False)


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Any]:
    """What shows progress: a bar and a line for each row at work, or lines where there is no terminal."""
    lines = _Lines(console)
    if not console.is_terminal:
        yield lines.update
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def update(progress: "Progress") -> None:
            lines.say_ended(progress)
            live.update(_picture(progress))

        yield update


def _picture(progress: "Progress") -> Group:
    bar = Table.grid(padding=(0, 1))
    head = f"{progress.done:.1f} of {progress.total} rows"
    bar.add_row(head, ProgressBar(progress.total, progress.done, width=40), _left(progress))
    return Group(bar, *(Text(on_one_line(f"  {each}")) for each in progress.active))


def _left(progress: "Progress") -> str:
    if progress.stopping:
        return "stopping: rows save what they have"
    return "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"


class _Lines:
    """A line for each row that begins or ends, and now and then one for all."""

    def __init__(self, console: Console):
        self.console, self.begun, self.ended, self.due = console, set(), 0, time.monotonic() + _EVERY

    def update(self, progress: "Progress") -> None:
        for each in progress.active:
            if each.id not in self.begun:
                self.begun.add(each.id)
                self._print(f"{each.id}: begun")
        self.say_ended(progress)
        if time.monotonic() > self.due:
            self.due = time.monotonic() + _EVERY
            self._print(f"{progress.done:.1f} of {progress.total} rows {_left(progress)}".rstrip())
            for each in progress.active:
                self._print(f"  {each}")

    def say_ended(self, progress: "Progress") -> None:
        """Rows that ended since."""
        for outcome in progress.ended[self.ended :]:
            if not outcome.before:
                self._print(str(outcome))
        if not self.ended and (before := sum(outcome.before for outcome in progress.ended)):
            self._print(f"{before} of {progress.total} rows were finished before")
        self.ended = len(progress.ended)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _scores(rows: Sequence[dict[str, Any]]) -> Table:
    names = {name for row in rows for name in row["scores"]}
    names = columns(names) or in_order(names)[:4]
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("row", "seed", "run", *names):
        table.add_column(name, overflow="fold")
    for row in rows:
        values = (f"{row['scores'][name]:.4g}" if name in row["scores"] else "" for name in names)
        table.add_row(on_one_line(row["row"]), str(row["seed"]), on_one_line(row["run"]), *values)
    return table
