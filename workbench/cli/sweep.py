"""The command that executes sweeps, shows progress bars or lines, and prints the scores and failures at the end."""

import contextlib
import shlex
import sys
import time
from collections import Counter
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

_EVERY = 30.0  # seconds between lines without a terminal


@dataclass(frozen=True)
class Sweep:
    """Train and score every row and seed of a YAML file, each in a notebook that is kept. Finished rows are skipped.

    Run the command again to continue after a stop, a kill or a failure.
    """

    file: Annotated[Path, tyro.conf.Positional, Names.FILE]
    workers: Processes | None = None
    """Number of rows executed in parallel, which share the cores. By default one per GPU, or one per two cores."""
    only: tuple[str, ...] = ()
    """Execute only these rows and their teachers."""
    dry_run: bool = False
    """Only print which rows are finished, which would be trained, and the estimated time."""
    executor: Literal["processes", "submitit", "dask", "ray"] = "processes"
    """Execute rows in processes of this command, as Slurm jobs (submitit), or on a running dask or Ray cluster."""
    address: str | None = None
    """The dask scheduler or Ray head, such as tcp://host:8786. All machines need access to the folder of the runs."""
    job_options: tuple[str, ...] = ()
    """KEY=VALUE of each job, such as timeout_min=600 slurm_partition=gpu (submitit) or num_gpus=1 (Ray)."""

    def execute(self) -> None:
        from workbench.reporting.sweep.specification import load_sweep

        spec = load_sweep(self.file)  # errors are raised before anything heavy is imported
        from workbench.reporting.sweep.executors import opened
        from workbench.reporting.sweep.records import sweep_folder
        from workbench.reporting.sweep.schedule import run_sweep
        from workbench.training.mailbox import StopSignals

        if self.dry_run:
            self._show_plan(spec)
            return
        console, progress = Console(), None
        folder = sweep_folder(runs_root().resolve(), spec.name).folder
        pool = opened(self.executor, folder, self.address, self.job_options)
        with pool as executor, StopSignals() as signals, _shown(console) as show:

            def stop() -> bool:
                return signals.requested

            for progress in run_sweep(spec, executor, workers=self.workers, only=self.only, stop=stop):
                show(progress)
        assert progress is not None
        self._conclude(console, spec, progress)

    def _conclude(self, console: Console, spec: "SweepSpec", progress: "Progress") -> None:
        """Print the scores and the failures with their notebooks, and exit with code 1 if a row failed."""
        from workbench.files import read_json
        from workbench.reporting.sweep.records import sweep_folder

        place = sweep_folder(runs_root(), spec.name)
        rows = read_json(place.results)["rows"]
        if rows:
            console.print(_scores(rows))
        console.print(f"{len(rows)} results: {place.results}", soft_wrap=True, highlight=False)
        for outcome in progress.failures:
            console.print(outcome.id, end="", highlight=False, style="red")
            console.print(str(outcome).removeprefix(outcome.id), soft_wrap=True, highlight=False)
            if outcome.notebook and outcome.state == "failed":
                console.print(f"  record: {outcome.notebook}", soft_wrap=True, highlight=False)
        if progress.stopping:
            command = shlex.join(["workbench", "sweep", *sys.argv[2:]])
            console.print(f"stopped; training is saved. To continue: {command}", soft_wrap=True, highlight=False)
            raise KeyboardInterrupt
        if progress.failures:
            failed = sum(outcome.state == "failed" for outcome in progress.failures)
            left = len(progress.failures) - failed
            print(
                f"workbench: {failed} of {progress.total} rows failed, {left} were skipped; "
                "run the command again to retry them",
                file=sys.stderr,
            )
            sys.exit(1)

    def _show_plan(self, spec: "SweepSpec") -> None:
        """Print the table of a dry run."""
        from workbench.reporting.sweep.progress import row_states
        from workbench.reporting.sweep.records import sweep_folder
        from workbench.reporting.sweep.schedule import default_workers
        from workbench.reporting.sweep.specification import plan

        root = runs_root().resolve()
        rows = row_states(plan(spec, root, self.only), sweep_folder(root, spec.name), root)
        table = Table(box=SIMPLE, pad_edge=False)
        for name in ("row", "seed", "method", "exists", "teacher of", "time"):
            table.add_column(name, overflow="fold", no_wrap=name not in ("row", "exists"))
        for row in rows:
            job = row.job
            time_left = "" if row.there == "finished" else "unknown" if row.seconds is None else duration(row.seconds)
            name = " = ".join(job.names) if job.names else f"{job.id} (teacher only)"
            students = f"{row.teaches} rows" if row.teaches > 1 else "1 row" if row.teaches else ""
            seed, method = str(job.training.seed), job.training.config.objective.name
            table.add_row(on_one_line(name), seed, method, row.there, students, time_left)
        console = Console()
        (console if console.is_terminal else Console(width=200)).print(table)
        known = [row.seconds for row in rows if row.seconds is not None]
        unknown = len(rows) - len(known)
        requested = len(spec.rows) if not self.only else len(self.only)
        count = f"{requested} rows x {len(spec.seeds)} seeds: {len(rows)} notebooks"
        total = f"about {duration(sum(known))} of work" if known or not unknown else "time unknown"
        more = f", and {unknown} of unknown length" if unknown and known else ""
        workers = default_workers() if self.workers is None else self.workers
        shared = f", at best divided by the {workers} workers" if workers > 1 else ""
        console.print(f"{count}; {total}{more}{shared}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Any]:
    """Yields a function that shows progress: a bar and a line per active row, or lines without a terminal."""
    lines = _Lines(console)
    if not console.is_terminal:
        yield lines.update
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def update(progress: "Progress") -> None:
            lines.print_ended(progress)
            live.update(_picture(progress))

        yield update


def _picture(progress: "Progress") -> Group:
    bar = Table.grid(padding=(0, 1))
    head = f"{progress.done:.1f} of {progress.total} rows"
    bar.add_row(head, ProgressBar(progress.total, progress.done, width=40), _left(progress))
    waiting = [Text(f"  {_queued(progress)}")] if progress.queued else []
    return Group(bar, *(Text(on_one_line(f"  {row}")) for row in progress.active), *waiting)


def _queued(progress: "Progress") -> str:
    """How many rows wait in the queue of a cluster, by state."""
    counts = Counter(progress.queued.values())
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _left(progress: "Progress") -> str:
    if progress.stopping:
        return "stopping: rows save their training"
    return "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"


class _Lines:
    """Prints a line for each row that starts or ends, and from time to time the progress of all."""

    def __init__(self, console: Console):
        self.console, self.ended, self.due = console, 0, time.monotonic() + _EVERY
        self.started: set[str] = set()

    def update(self, progress: "Progress") -> None:
        for row in progress.active:
            if row.id not in self.started:
                self.started.add(row.id)
                self._print(f"{row.id}: started")
        self.print_ended(progress)
        if time.monotonic() > self.due:
            self.due = time.monotonic() + _EVERY
            self._print(f"{progress.done:.1f} of {progress.total} rows {_left(progress)}".rstrip())
            for row in progress.active:
                self._print(f"  {row}")
            if progress.queued:
                self._print(f"  {_queued(progress)}")

    def print_ended(self, progress: "Progress") -> None:
        """Print the rows that ended since the last call."""
        for outcome in progress.ended[self.ended :]:
            if not outcome.before:
                self._print(str(outcome))
        if not self.ended and (before := sum(outcome.before for outcome in progress.ended)):
            self._print(f"{before} of {progress.total} rows were already finished")
        self.ended = len(progress.ended)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _scores(rows: Sequence[dict[str, Any]]) -> Table:
    scored = {name for row in rows for name in row["scores"]}
    names = columns(scored) or in_order(scored)[:4]
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("row", "seed", "run", *names):
        table.add_column(name, overflow="fold")
    for row in rows:
        values = (f"{row['scores'][name]:.4g}" if name in row["scores"] else "" for name in names)
        table.add_row(on_one_line(row["row"]), str(row["seed"]), on_one_line(row["run"]), *values)
    return table
