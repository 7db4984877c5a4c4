"""Progress of computing a view: bars in a terminal, one or two lines per stage elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.words import duration

Report = Callable[[str, int, int], None]  # stage, done, total

# Seconds until the time of a stage is estimated, and the shortest remaining time that is printed.
_TIMED, _WORTH_A_LINE = 2.0, 8.0


@contextmanager
def reported(progress: Report | None) -> Iterator[Report]:
    """Yields `progress` or, if it is None, a function that shows bars in a terminal and prints lines in a notebook."""
    console = Console()
    if progress is not None:
        yield progress
    elif console.is_terminal and not console.is_jupyter:
        text = [TextColumn(form, markup=False) for form in ("{task.description:<16}", "{task.completed}/{task.total}")]
        columns = (text[0], BarColumn(), text[1], TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, TaskID] = {}

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield update
    else:
        yield Lines().update


@dataclass
class Lines:
    """Prints the estimated time of a long stage once it is known, and a line when the stage is done."""

    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    _began: dict[str, tuple[float, int]] = field(default_factory=dict)
    _announced: set[str] = field(default_factory=set)

    def update(self, stage: str, done: int, total: int) -> None:
        """Update a stage. Its first item is not timed, because it includes loading models."""
        now = self.clock()
        began, first = self._began.setdefault(stage, (now, done))
        if stage not in self._announced and done > first and now - began >= _TIMED:
            left = (now - began) * (total - done) / (done - first)
            if left > _WORTH_A_LINE:
                self._announced.add(stage)
                self.say(f"{stage}: {done:,} of {total:,}, about {duration(left)} left; cached for the next call")
        if done == total and stage in self._announced:
            self._announced.discard(stage)
            self.say(f"{stage}: done in {duration(now - began)}")


def part_of(report: Report, stage: str, number: int, parts: int, each: int) -> Callable[[int, int], None]:
    """A callback (done, total) for part `number` of `parts` equal parts of a stage, of `each` items each."""

    def update(done: int, total: int) -> None:
        report(stage, number * each + each * done // max(total, 1), parts * each)

    return update
