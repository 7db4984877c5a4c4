"""Show training runs in a terminal, one panel per run, updated twice a second. Training is not affected."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
_SHARE = 30  # reading takes at most 1/30 of the time
_BLOCKS = "▁▂▃▄▅▆▇█"
_FIRST = ("loss", "denoise", "alignment", "gradient_norm")  # the others follow in the order of the file
_COLOURS = {"running": "green", "paused": "yellow", "lost": "red", "failed": "red"}


def watch_runs(runs: Sequence[Run], once: bool = False) -> None:
    """Show the runs until q or Ctrl-C is pressed or none can train any more; with ``once``, print them once."""
    console, read = Console(), _Reader()
    if once:
        console.print(view(runs, console.width))
        return
    with Live(view(runs, console.width, read), console=console, auto_refresh=False) as live, _keys() as pressed:
        while not pressed("q", _REFRESH) and any(map(_may_train, runs)):
            live.update(view(runs, console.width, read), refresh=True)
        live.update(view(runs, console.width, read), refresh=True)


def view(runs: Sequence[Run], width: int, read: Callable[[Run], Curves] = read_curves) -> Group:
    """Panels of the runs for a terminal of ``width`` characters."""
    return Group(*(_panel(run, width, read) for run in runs))


class _Reader:
    """Cached `read_curves`: reads a file again only if it has changed, and less often the longer reading takes."""

    def __init__(self) -> None:
        self._cache: dict[str, tuple[Curves, tuple[int, ...], float]] = {}

    def __call__(self, run: Run) -> Curves:
        version: tuple[int, ...] = ()
        with contextlib.suppress(FileNotFoundError):
            stat = os.stat(run.folder / "metrics.jsonl")
            version = (stat.st_size, stat.st_ino)
        start = time.monotonic()
        curves, old, due = self._cache.get(run.name, (None, None, 0.0))
        if curves is None or not curves.complete or (version != old and start >= due):
            curves = read_curves(run)
            now = time.monotonic()
            self._cache[run.name] = (curves, version, now + _SHARE * (now - start))
        return curves


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a curve as ``width`` block characters: the mean of each interval, between the lowest and highest mean."""
    values = [value for value in values if value == value and abs(value) != float("inf")]
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * number // width for number in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _may_train(run: Run) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return run.status["state"] in (*LIVE, "created")
    return False


def _panel(run: Run, width: int, read: Callable[[Run], Curves]) -> Panel:
    name = on_one_line(run.name)
    try:
        lines, state = _lines(run, width, read)
    except (ValueError, OSError) as error:  # the other runs are still shown
        return Panel(Text(shown(str(error))), title=Text(name))
    colour = _COLOURS.get(state, "blue")
    return Panel(Group(*lines), title=Text.assemble(f"{name} - ", (state, colour)), border_style=colour)


def _lines(run: Run, width: int, read: Callable[[Run], Curves]) -> tuple[list[Text | Table], str]:
    """Lines of the panel of a run, and the run's state."""
    status, curves = run.status, read(run)
    lines: list[Text | Table] = [Text(_head(run, status)), _curves(curves, width)]
    scores = {r["metric"]: r["value"] for r in run.results if r.get("layer") is None and r.get("weak") is None}
    if scores:
        lines.append(Text(on_one_line("   ".join(f"{name} {value:.4g}" for name, value in scores.items()))))
    if status.get("answer"):
        answer = status["answer"]
        lines.append(Text(shown(f"{answer['what']} at step {answer['step']:,}: {answer['result']}")))
    problems = [status[key] for key in ("error", "remark") if status.get(key)]
    lines += [Text(shown(text), style="red") for text in problems]
    log = last_log_lines(run.folder, 3)
    lines += [Text(on_one_line(line), style="dim", no_wrap=True, overflow="ellipsis") for line in log]
    return lines, status["state"]


def _head(run: Run, status: Mapping[str, Any]) -> str:
    steps = status.get("steps") or run.config.training.steps
    parts = [f"step {status['step']:,} of {steps:,}"]
    rate = status.get("rate")
    if rate:
        parts.append(f"{rate * run.config.training.batch:,.1f} images/s, {1000 / rate:,.0f} ms per step")
    if rate and status["state"] == "running":
        parts.append(f"{duration((steps - status['step']) / rate)} left")
    if status.get("seconds"):
        parts.append(f"{duration(status['seconds'])} trained")
    return "   ".join(parts)


def _curves(curves: Curves, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    names = [name for name in _FIRST if name in curves.curves]
    names += [name for name in curves.curves if name not in (*_FIRST, "images_per_second", "seconds")]
    for name in names:
        _, values = curves.curves[name]
        if len(values):
            label = on_one_line(name.replace("_", " "))
            table.add_row(label, f"{values[-1]:.4g}", sparkline(values.tolist(), max(10, width - 45)))
    return table


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[str, float], bool]]:
    """A function that waits up to some seconds for a key and returns whether it was pressed; without a terminal it only
    waits.
    """
    if not sys.stdin.isatty():
        yield _never_pressed
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


def _never_pressed(key: str, seconds: float) -> bool:
    time.sleep(seconds)
    return False
