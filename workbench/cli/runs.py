"""Commands that list, watch and control runs, and those for the queue, tags, notes and the trash."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.box import SIMPLE
from rich.measure import Measurement
from rich.table import Table

from workbench.cli.arguments import Names, Reference, RunReference
from workbench.cli.terminal import Console, on_one_line
from workbench.config import refuse_unknown
from workbench.config.reading import parse_value
from workbench.evaluation.metrics import columns
from workbench.runs.archive import unpack_records
from workbench.runs.index import RunRow, runs_table
from workbench.runs.shelf import restore as restore_run
from workbench.runs.shelf import set_notes, trashed
from workbench.runs.shelf import trash as trash_run
from workbench.runs.store import open_run, runs_root

if TYPE_CHECKING:
    from workbench.training.control import Answer, Control


@dataclass(frozen=True)
class Runs:
    """List the runs with state, step, method, options, cost, newest scores and tags."""

    filter: str = ""
    """Show only runs that contain these words, such as a method, a state or a tag."""
    sort: str = "created"
    """Column to sort by, such as step, loss, cost or fd-clf64; a leading - sorts in descending order (--sort=-step)."""

    def execute(self) -> None:
        listed = runs_table(runs_root())
        metrics = {name for row in listed for name, _ in row.scores}
        scores = columns(metrics)
        rows = [(row, _cells(row, scores)) for row in listed]
        rows = [(row, cells) for row, cells in rows if _matches(row, cells, self.filter)]
        column = self.sort.removeprefix("-")
        refuse_unknown(
            "column", column, [*RunRow.__dataclass_fields__, *sorted(metrics - RunRow.__dataclass_fields__.keys())]
        )
        # Runs without a value come last in either order.
        known = [(row, cells) for row, cells in rows if row.value(column) is not None]
        known.sort(key=lambda pair: pair[0].value(column), reverse=self.sort.startswith("-"))
        ordered = [*known, *(pair for pair in rows if pair[0].value(column) is None)]
        if not ordered:
            matching = f" with {self.filter!r}" if self.filter else ""
            Console().print(f"no runs in {runs_root()}{matching}", soft_wrap=True)
            return
        names = ("run", "state", "step", "method", "w", "layers", "seed", "loss", *scores, "cost", "tags")
        filled = [name for number, name in enumerate(names) if any(cells[number] for _, cells in ordered)]
        lines = [dict(zip(names, map(on_one_line, cells), strict=True)) for _, cells in ordered]
        console = Console()
        dropped: list[str] = []
        # What can be looked up elsewhere goes first; the first score is what people sort by.
        for name in ("tags", "layers", "w", "cost", *scores[:0:-1], "seed", "loss", "method", *scores[:1], None):
            table = Table(box=SIMPLE, pad_edge=False)
            for heading in filled:
                table.add_column(heading, overflow="fold")
            for line in lines:
                table.add_row(*(line[heading] for heading in filled))
            needed = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
            if not console.is_terminal:  # a file or another program gets everything, a line for each run
                console = Console(width=max(200, needed))
            if name is None or needed <= console.width:
                break
            if name in filled:
                filled.remove(name)
                dropped.insert(0, name)
        console.print(table)
        if dropped:
            console.print(f"Not shown in {console.width} characters: {', '.join(dropped)}.", soft_wrap=True)


@dataclass(frozen=True)
class Watch:
    """Watch runs train, from any terminal with access to their folders. q or Ctrl-C quits; training continues."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    once: bool = False
    """Print the current state and exit."""

    def execute(self) -> None:
        from workbench.cli.watch import watch_runs

        if not self.runs:
            raise ValueError("name a run to watch; `workbench runs` lists them")
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C quits
            watch_runs([open_run(reference, damaged=True) for reference in self.runs], self.once)


@dataclass(frozen=True)
class Stop:
    """Save a checkpoint after the current step and stop training, or remove the run from the queue."""

    run: RunReference

    def execute(self) -> None:
        _control(self.run, lambda control: control.stop())


@dataclass(frozen=True)
class Pause:
    """Pause training after the current step; it stays in memory and keeps its device."""

    run: RunReference

    def execute(self) -> None:
        _control(self.run, lambda control: control.pause())


@dataclass(frozen=True)
class Checkpoint:
    """Save a checkpoint after the current step and continue training."""

    run: RunReference

    def execute(self) -> None:
        _control(self.run, lambda control: control.checkpoint())


@dataclass(frozen=True)
class Resume:
    """Continue a paused training, or launch a stopped, lost or failed one again with the options of its last launch."""

    run: RunReference

    def execute(self) -> None:
        from workbench.training.control import Answer, Control

        run = open_run(self.run)
        result = Control(run).resume()
        if isinstance(result, Answer):
            _print(run.name, result)
            return
        if result.failed:
            raise ValueError(f"{result}")
        Console().print(f"{result}", soft_wrap=True)


@dataclass(frozen=True)
class SetOption:
    """Change learning_rate, stop_step, log_every or checkpoint_every from the next step on, also after a resume."""

    run: RunReference
    changes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Changes, such as learning_rate=1e-4."""

    def execute(self) -> None:
        from workbench.training.control import Control

        run = open_run(self.run)
        if not self.changes:
            raise ValueError("name an option to change, such as learning_rate=1e-4")
        for change in self.changes:
            option, equals, value = change.removeprefix("training.").removeprefix("objective.").partition("=")
            if not equals:
                raise ValueError(f"a change must have the form learning_rate=1e-4; got {change!r}")
            _print(run.name, Control(run).set(option, parse_value(value, option)))


@dataclass(frozen=True)
class Queue:
    """List the queue of this machine: order, run, state and devices."""

    def execute(self) -> None:
        from workbench.training.queue import entries, queue_folder

        table = Table("", "run", "state", "devices", "submitted", "by")
        for number, entry in enumerate(entries(), start=1):
            since, by = (_moment(entry.job.submitted), entry.job.by) if entry.job else ("", "")
            cells = (str(number), entry.name, entry.state, " ".join(entry.devices), since, by)
            table.add_row(*map(on_one_line, cells))
        Console().print(table if table.row_count else f"the queue {queue_folder()} is empty", soft_wrap=True)


@dataclass(frozen=True)
class QueueCancel:
    """Remove a waiting run from the queue."""

    run: Reference

    def execute(self) -> None:
        from workbench.training.queue import cancel, damaged_jobs, discard

        damaged = damaged_jobs()
        for name in (self.run, f"{self.run}.json"):
            if name in damaged:
                discard(name)
                Console().print(f"removed the damaged job {name}", soft_wrap=True)
                return
        run = open_run(self.run, damaged=True)
        cancel(run.folder.resolve())
        Console().print(f"{run.name} left the queue", soft_wrap=True)


@dataclass(frozen=True)
class QueueResume:
    """Restart the waiting processes of the queue after a reboot or a kill."""

    def execute(self) -> None:
        from workbench.training.queue import damaged_jobs, resume

        names = [job.run.rpartition("/")[2] for job in resume()]
        damaged = damaged_jobs()
        if damaged:
            Console().print(
                f"damaged and skipped: {', '.join(damaged)}; `workbench queue-cancel` removes one", soft_wrap=True
            )
        Console().print(f"waiting again: {', '.join(names)}" if names else "every job has a process", soft_wrap=True)


@dataclass(frozen=True)
class Note:
    """Set tags and notes of a run."""

    run: Reference
    tags: tuple[str, ...] | None = None
    text: str | None = None

    def execute(self) -> None:
        run = open_run(self.run)
        set_notes(run, self.tags, self.text)


@dataclass(frozen=True)
class Trash:
    """Move a run to the trash folder of the runs. Runs that are training, or are teachers of others, are refused."""

    run: Reference
    force: bool = False
    """Also move a run that is the teacher of another."""

    def execute(self) -> None:
        Console().print(f"moved to {trash_run(open_run(self.run, damaged=True), self.force)}", soft_wrap=True)


@dataclass(frozen=True)
class Restore:
    """Restore a run from the trash; without a name, list the trash."""

    name: Annotated[str | None, tyro.conf.Positional] = None

    def execute(self) -> None:
        root = runs_root()
        if self.name is None:
            Console().print("\n".join(trashed(root)) or f"the trash of {root} is empty", soft_wrap=True)
        else:
            Console().print(f"{restore_run(self.name, root).folder}", soft_wrap=True)


@dataclass(frozen=True)
class Unpack:
    """Unpack the runs of a report's runs.zip, which have no weights, so that its tables can be rebuilt."""

    file: Annotated[Path, tyro.conf.Positional, Names.FILE]

    def execute(self) -> None:
        root = runs_root()
        Console().print(f"{len(unpack_records(self.file, root))} runs unpacked into {root}", soft_wrap=True)


def _control(reference: str, ask: "Callable[[Control], Answer]") -> None:
    from workbench.training.control import Control

    run = open_run(reference)
    _print(run.name, ask(Control(run)))


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # not a valid date
        return ""


def _print(name: str, answer: "Answer") -> None:
    if answer.result.startswith("refused"):
        raise ValueError(f"{name}: {answer.what}: {answer.result}")
    text = f"{name}: {answer}"
    Console().print(text, soft_wrap=True, highlight=False)


def _matches(row: RunRow, cells: list[str], text: str) -> bool:
    shown = " ".join([*cells, row.backbone, row.notes, row.fingerprint]).lower()
    return all(word in shown for word in text.lower().split())


def _cells(row: RunRow, scores: Sequence[str]) -> list[str]:
    def number(value: float | int | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.name,
        f"damaged: {row.damage}" if row.damage else row.state,
        f"{row.step}/{row.steps}" if row.steps else str(row.step),
        row.method,
        number(row.guidance_scale, "g"),
        "<-".join(map(str, row.layers)),
        number(row.seed, "d"),
        number(row.loss, ".4f"),
        *(number(row.value(metric), ".4g") for metric in scores),
        f"{row.cost:,.0f} s" if row.cost is not None else "",
        " ".join(row.tags),
    ]
