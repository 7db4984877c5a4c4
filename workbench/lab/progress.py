"""How long the work before a view takes: bars in a terminal, a line or two a stage elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.words import duration

Report = Callable[[str, int, int], None]  # stage, done, total

_TIMED, _WORTH_A_LINE = 2.0, 8.0  # seconds: how long a stage is watched, and what is left of it


@contextmanager
def reported(progress: Report | None) -> Iterator[Report]:
    """`progress` itself, or what shows it: bars with the time left, or lines where they would fill a notebook."""
    console = Console()
    if progress is not None:
        yield progress
    elif console.is_terminal and not console.is_jupyter:
        text = [TextColumn(form, markup=False) for form in ("{task.description:<16}", "{task.completed}/{task.total}")]
        columns = (text[0], BarColumn(), text[1], TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            tasks: dict[str, int] = {}

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield update
    else:
        yield Lines().update


@dataclass
class Lines:
    """One line when it is known how long a stage will take, if that is long, and one when it is done."""

    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    _began: dict[str, tuple[float, int]] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def update(self, stage: str, done: int, total: int) -> None:
        """Take note of a stage. Its first piece, which models are loaded for, does not count."""
        now = self.clock()
        began, first = self._began.setdefault(stage, (now, done))
        if stage not in self._said and done > first and now - began >= _TIMED:
            left = (now - began) * (total - done) / (done - first)
            if left > _WORTH_A_LINE:
                self._said.add(stage)
                self.say(
                    f"{stage}: {done:,} of {total:,}, about {duration(left)} left; kept, so the next time is quick"
                )
        if done == total and stage in self._said:
            self._said.discard(stage)
            self.say(f"{stage}: done in {duration(now - began)}")


def part_of(report: Report, stage: str, number: int, parts: int, each: int) -> Callable[[int, int], None]:
    """What a function that counts its own work calls, as one of several equal parts of a stage, of `each` pieces."""

    def update(done: int, total: int) -> None:
        report(stage, number * each + each * done // max(total, 1), parts * each)

    return update
