"""Progress of computing a view: bars in a terminal, a bar that goes in a notebook, lines elsewhere."""

import html
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.words import duration

Report = Callable[[str, int, int], None]  # stage, done, total

# Seconds until the time of a stage is estimated, and the shortest remaining time that is printed.
_TIMED, _WORTH_A_LINE = 2.0, 8.0
_SHOWN, _REFRESHED = 1.0, 0.2  # seconds until a notebook shows a bar, and between two pictures of it


@contextmanager
def reported(progress: Report | None) -> Iterator[Report]:
    """Yields `progress` or, if it is None, a function that shows bars; without terminal or notebook it prints lines."""
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
    elif console.is_jupyter:
        with closing(Bar()) as bar:
            yield bar.update
    else:
        yield Lines().update


class _Stages:
    """How long each stage still takes. Its first item is not timed, because it includes loading models."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}

    def spent(self, stage: str, now: float) -> float:
        """Seconds since the stage was heard of first."""
        return now - self._began[stage][0]

    def left(self, stage: str, done: int, total: int, now: float) -> float | None:
        """Seconds left, or None before they can be estimated."""
        began, first = self._began.setdefault(stage, (now, done))
        if done == first or now - began < _TIMED:
            return None
        return (now - began) * (total - done) / (done - first)


def _display(content: str) -> Callable[[str], None]:
    """Show HTML below the cell; returns what shows other HTML in its place."""
    from IPython.display import HTML, display

    handle = display(HTML(content), display_id=True)  # type: ignore[no-untyped-call]
    return lambda content: handle.update(HTML(content))


class Bar:
    """A bar below the cell of a notebook, with the stage and the time left; `close` takes it away.

    Args:
        display: Shows HTML, and returns what replaces it.
        clock: The time in seconds.
    """

    def __init__(
        self,
        display: Callable[[str], Callable[[str], None]] = _display,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._display, self._clock = display, clock
        self._began = clock()
        self._drawn = self._began - _REFRESHED
        self._stages = _Stages()
        self._replace: Callable[[str], None] | None = None

    def update(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done."""
        now = self._clock()
        left = self._stages.left(stage, done, total, now)
        if now - self._began < _SHOWN or now - self._drawn < _REFRESHED:
            return
        self._drawn = now
        time_left = "" if left is None else f", about {duration(left)} left"
        text = f"{html.escape(stage)}: {done:,} of {total:,}{time_left}"
        content = f'<progress value="{done}" max="{max(total, 1)}"></progress> {text}'
        if self._replace is None:
            self._replace = self._display(content)
        else:
            self._replace(content)

    def close(self) -> None:
        """Leave nothing below the cell."""
        if self._replace is not None:
            self._replace("")


@dataclass
class Lines:
    """Prints the estimated time of a long stage once it is known, and a line when the stage is done."""

    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    _stages: _Stages = field(default_factory=_Stages)
    _announced: set[str] = field(default_factory=set)

    def update(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done, if that is worth a line."""
        now = self.clock()
        left = self._stages.left(stage, done, total, now)
        if stage not in self._announced and left is not None and left > _WORTH_A_LINE:
            self._announced.add(stage)
            self.say(f"{stage}: {done:,} of {total:,}, about {duration(left)} left; cached for the next call")
        if done == total and stage in self._announced:
            self._announced.discard(stage)
            self.say(f"{stage}: done in {duration(self._stages.spent(stage, now))}")


def part_of(report: Report, stage: str, number: int, parts: int, each: int) -> Callable[[int, int], None]:
    """A callback (done, total) for part `number` of `parts` equal parts of a stage, of `each` items each."""

    def update(done: int, total: int) -> None:
        report(stage, number * each + each * done // max(total, 1), parts * each)

    return update
