"""Runs as they train, in a terminal: a panel a run, redrawn twice a second; nothing here touches the training."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from workbench.cli.terminal import Console, on_one_line, shown
from workbench.runs.curves import Curves, read_curves
from workbench.runs.state import LIVE, last_log_lines
from workbench.runs.store import Run
from workbench.words import duration

_REFRESH = 0.5  # seconds
_SHARE = 30  # reading takes a thirtieth of the time at most
_BLOCKS = "▁▂▃▄▅▆▇█"
_FIRST = ("loss", "denoise", "alignment", "gradient_norm")  # the rest follow as they are named
_COLOURS = {"running": "green", "paused": "yellow", "lost": "red", "failed": "red"}


def watch_runs(runs: Sequence[Run], once: bool = False) -> None:
    """Draw the runs until q, Ctrl-C or, with ``once``, straight away; ends by itself when none of them can go on."""
    console, read = Console(), _Reader()
    if once:
        console.print(view(runs, console.width))
        return
    with Live(view(runs, console.width, read), console=console, auto_refresh=False) as live, _keys() as pressed:
        while not pressed("q", _REFRESH) and any(map(_may_go_on, runs)):
            live.update(view(runs, console.width, read), refresh=True)
        live.update(view(runs, console.width, read), refresh=True)


def view(runs: Sequence[Run], width: int, read: Callable[[Run], Curves] = read_curves) -> Group:
    """The picture of the runs for a terminal of ``width`` characters."""
    return Group(*(_panel(run, width, read) for run in runs))


class _Reader:
    """`read_curves` that takes little of a core: only when something was logged, and the longer it takes the less."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Curves, tuple, float]] = {}

    def __call__(self, run: Run) -> Curves:
        try:
            found = os.stat(run.folder / "metrics.jsonl")
            mark = (found.st_size, found.st_ino)
        except FileNotFoundError:
            mark = ()
        since = time.monotonic()
        drawn, old, due = self._known.get(run.name, (None, None, 0.0))
        if drawn is None or not drawn.complete or (mark != old and since >= due):
            drawn = read_curves(run)
            now = time.monotonic()
            self._known[run.name] = (drawn, mark, now + _SHARE * (now - since))
        return drawn


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a curve in ``width`` blocks: the mean of each stretch, from its lowest to its highest."""
    values = [value for value in values if value == value and abs(value) != float("inf")]
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * number // width for number in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _may_go_on(run: Run) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return run.status["state"] in (*LIVE, "created")
    return False


def _panel(run: Run, width: int, read: Callable[[Run], Curves]) -> Panel:
    name = on_one_line(run.name)
    try:
        lines, state = _lines(run, width, read)
    except (ValueError, OSError) as error:  # a damaged run hides none of the others
        return Panel(Text(shown(str(error))), title=Text(name))
    colour = _COLOURS.get(state, "blue")
    return Panel(Group(*lines), title=Text.assemble(f"{name} - ", (state, colour)), border_style=colour)


def _lines(run: Run, width: int, read: Callable[[Run], Curves]) -> tuple[list[Text | Table], str]:
    """What the panel of a run shows, and the run's state."""
    status, drawn = run.status, read(run)
    lines = [Text(_head(run, status)), _curves(drawn, width)]
    scores = {r["metric"]: r["value"] for r in run.results if r.get("layer") is None}
    if scores:
        lines.append(Text(on_one_line("   ".join(f"{name} {value:.4g}" for name, value in scores.items()))))
    if status.get("answer"):
        answer = status["answer"]
        lines.append(Text(shown(f"{answer['what']} at step {answer['step']:,}: {answer['result']}")))
    said = [status[key] for key in ("error", "remark") if status.get(key)]
    lines += [Text(shown(text), style="red") for text in said]
    log = last_log_lines(run.folder, 3)
    lines += [Text(on_one_line(line), style="dim", no_wrap=True, overflow="ellipsis") for line in log]
    return lines, status["state"]


def _head(run: Run, status: dict) -> str:
    steps = status.get("steps") or run.config.training.steps
    parts = [f"step {status['step']:,} of {steps:,}"]
    rate = status.get("rate")
    if rate:
        parts.append(f"{rate * run.config.training.batch:,.1f} images/s, {1000 / rate:,.0f} ms a step")
    if rate and status["state"] == "running":
        parts.append(f"{duration((steps - status['step']) / rate)} left")
    if status.get("seconds"):
        parts.append(f"{duration(status['seconds'])} trained")
    return "   ".join(parts)


def _curves(drawn: Curves, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    names = [name for name in _FIRST if name in drawn.curves]
    names += [name for name in drawn.curves if name not in (*_FIRST, "images_per_second", "seconds")]
    for name in names:
        _, values = drawn.curves[name]
        if len(values):
            label = on_one_line(name.replace("_", " "))
            table.add_row(label, f"{values[-1]:.4g}", sparkline(values.tolist(), max(10, width - 45)))
    return table


@contextlib.contextmanager
def _keys() -> Iterator:
    """A function that waits some seconds and says whether a key was pressed; without a keyboard it only waits."""
    if not sys.stdin.isatty():
        yield lambda key, seconds: bool(time.sleep(seconds))
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def pressed(key: str, seconds: float) -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(ready) and sys.stdin.read(1) == key

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
