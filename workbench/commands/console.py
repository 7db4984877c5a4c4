"""Commands of the training console: watch runs, control them, the queue, the table of runs, tags and trash."""

import contextlib
import time
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from workbench.commands.terminal import Console, on_one_line
from workbench.config import refuse_unknown
from workbench.config.reading import parse_value
from workbench.evaluation.metrics import in_order
from workbench.runs.archive import unpack_records
from workbench.runs.index import RunRow, runs_table
from workbench.runs.shelf import restore as restore_run
from workbench.runs.shelf import set_notes, trashed
from workbench.runs.shelf import trash as trash_run
from workbench.runs.store import open_run, runs_root


def runs(command) -> None:
    """A table of the runs."""
    found = runs_table(runs_root())
    metrics = {name for row in found for name, _ in row.scores}
    scores = in_order(metrics, detail=1)
    rows = [(row, _cells(row, scores)) for row in found]
    rows = [(row, cells) for row, cells in rows if _matches(row, cells, command.filter)]
    column = command.sort.removeprefix("-")
    refuse_unknown(
        "column", column, [*RunRow.__dataclass_fields__, *sorted(metrics - RunRow.__dataclass_fields__.keys())]
    )
    # Runs without a value come last, whichever way it goes.
    known = [(row, cells) for row, cells in rows if row.value(column) is not None]
    known.sort(key=lambda pair: pair[0].value(column), reverse=command.sort.startswith("-"))
    ordered = [*known, *(pair for pair in rows if pair[0].value(column) is None)]
    if not ordered:
        found = f" with {command.filter!r}" if command.filter else ""
        Console().print(f"no runs in {runs_root()}{found}", soft_wrap=True)
        return
    names = ("run", "state", "step", "method", "w", "layers", "seed", "loss", *scores, "cost", "tags")
    shown = [number for number in range(len(names)) if any(cells[number] for _, cells in ordered)]
    table = Table(box=SIMPLE, pad_edge=False)
    for number in shown:
        table.add_column(names[number], overflow="fold")
    for _, cells in ordered:
        table.add_row(*(on_one_line(cells[number]) for number in shown))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def watch(command) -> None:
    """Runs as they train."""
    from workbench.commands.watch import watch_runs

    if not command.runs:
        raise ValueError("name a run to watch; `workbench runs` lists them")
    with contextlib.suppress(KeyboardInterrupt):  # that is how one leaves
        watch_runs([open_run(reference, damaged=True) for reference in command.runs], command.once)


def stop(command) -> None:
    """Save and end."""
    _tell(command.run, "stop")


def pause(command) -> None:
    """Wait."""
    _tell(command.run, "pause")


def checkpoint(command) -> None:
    """Save and go on."""
    _tell(command.run, "checkpoint")


def resume(command) -> None:
    """Go on, in the process that waits or in a new one."""
    from workbench.training.control import Answer, Control

    run = open_run(command.run)
    done = Control(run).resume()
    if isinstance(done, Answer):
        _print(run.name, done)
        return
    if done.failed:
        raise ValueError(f"{done}")
    Console().print(f"{done}", soft_wrap=True)


def setoption(command) -> None:
    """Other options from the next step on."""
    from workbench.training.control import Control

    run = open_run(command.run)
    if not command.changes:
        raise ValueError("name what to change, such as learning_rate=1e-4")
    for change in command.changes:
        option, equals, value = change.removeprefix("training.").removeprefix("objective.").partition("=")
        if not equals:
            raise ValueError(f"a change looks like learning_rate=1e-4; got {change!r}")
        _print(run.name, Control(run).set(option, parse_value(value, option)))


def queue(command) -> None:
    """The queue, in order."""
    from workbench.training.queue import places, queue_folder

    table = Table("", "run", "state", "devices", "waits since", "by")
    for number, place in enumerate(places(), start=1):
        since, by = (_moment(place.job.submitted), place.job.by) if place.job else ("", "")
        cells = (str(number), place.name, place.state, " ".join(place.devices), since, by)
        table.add_row(*map(on_one_line, cells))
    Console().print(table if table.row_count else f"the queue {queue_folder()} is empty", soft_wrap=True)


def queuecancel(command) -> None:
    """A run leaves the queue."""
    from workbench.training.queue import cancel, damaged_jobs, discard

    unread = damaged_jobs()
    for name in (command.run, f"{command.run}.json"):
        if name in unread:
            discard(name)
            Console().print(f"removed the damaged job {name}", soft_wrap=True)
            return
    run = open_run(command.run, damaged=True)
    cancel(run.folder.resolve())
    Console().print(f"{run.name} left the queue", soft_wrap=True)


def queueresume(command) -> None:
    """Those in the queue without a process wait again."""
    from workbench.training.queue import damaged_jobs, resume

    names = [job.run.rpartition("/")[2] for job in resume()]
    unread = damaged_jobs()
    if unread:
        Console().print(
            f"damaged, left alone: {', '.join(unread)}; `workbench queue-cancel` removes one", soft_wrap=True
        )
    Console().print(f"waiting again: {', '.join(names)}" if names else "every job has its process", soft_wrap=True)


def note(command) -> None:
    """Tags and notes."""
    run = open_run(command.run)
    set_notes(run, command.tags, command.text)


def trash(command) -> None:
    """A run goes to the trash."""
    Console().print(f"moved to {trash_run(open_run(command.run, damaged=True), command.force)}", soft_wrap=True)


def restore(command) -> None:
    """A run comes back."""
    root = runs_root()
    if command.name is None:
        Console().print("\n".join(trashed(root)) or f"nothing in the trash of {root}", soft_wrap=True)
    else:
        Console().print(f"{restore_run(command.name, root).folder}", soft_wrap=True)


def unpack(command) -> None:
    """The runs of a file come to the others."""
    root = runs_root()
    Console().print(f"{len(unpack_records(command.file, root))} runs placed in {root}", soft_wrap=True)


def _tell(reference: str, what: str) -> None:
    from workbench.training.control import Control

    run = open_run(reference)
    _print(run.name, getattr(Control(run), what)())


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # no date that a calendar has
        return ""


def _print(name: str, answer) -> None:
    if answer.result.startswith("refused"):
        raise ValueError(f"{name}: {answer.what}: {answer.result}")
    text = f"{name}: {answer.what}: {answer.result}, at step {answer.step:,}, after {answer.seconds:.1f} s"
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
