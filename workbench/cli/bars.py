"""Progress bars of the commands."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workbench.cli.terminal import Console, on_one_line

Update = Callable[..., None]  # of (stage, done, total, note="")


@contextmanager
def bars(console: Console) -> Iterator[Update]:
    """Progress bars with remaining time, one per stage; without a terminal, a line per tenth of a stage."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    tenths: dict[str, tuple[int, str]] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars, _logged(console):

        def update(stage: str, done: int, total: int, note: str = "") -> None:
            stage, note = on_one_line(stage), on_one_line(note)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)
            tenth = (10 * done // total, note if total == 1 else "")
            if not console.is_terminal and tenths.get(stage) != tenth:
                tenths[stage] = tenth
                console.print(f"{stage}: {done}/{total} {note}", soft_wrap=True)

        yield update


class _Lines(logging.Handler):
    """Prints log messages of the package above the bars."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), highlight=False, soft_wrap=True)


@contextmanager
def _logged(console: Console) -> Iterator[None]:
    log, handler = logging.getLogger("workbench"), _Lines(console)
    before, log.propagate = (log.level, log.propagate), False
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
