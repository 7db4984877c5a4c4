"""Latency of the live panels and what they cost a real training, compared with goals."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import harness
import numpy as np
from browsing import Notebook, chromium, find_chromium, jupyter, opened, until, versions
from costs import Figure, compared, lags, timed
from rich.box import SIMPLE
from rich.table import Table
from trained import Trained, training

from workbench.cli.arguments import Overrides, Repeats
from workbench.cli.terminal import Console
from workbench.config import Config, load_config
from workbench.config.ranges import Count, Range
from workbench.files import read_json, write_json
from workbench.lab.watching.live import LivePanel
from workbench.lab.watching.table import table_rows
from workbench.runs.store import Run, prepare_run
from workbench.training.attend import CommandHandler
from workbench.training.automatic import by_machine
from workbench.training.control import Answer, Control
from workbench.training.mailbox import StopSignals
from workbench.training.state import accelerate

PANELS = 3
# Seconds, and % of a step. An answer may take a whole step where that is longer.
DRAWN, SLOWDOWN, OPENED, LISTED, ANSWERED = 0.5, 2.0, 1.0, 0.5, 2.0
# A training without end and without checkpoints. Few images, because the step time does not depend on their number.
# Every step is logged, which is a heavier load on the panels than the preset's every tenth.
_ENDLESS = (
    *("data.limit=256", "training.log_every=1", "training.steps=10000000"),
    *("training.checkpoint_every=10000000", "training.milestone_every=10000000"),
)
_BLOCK = 5.0  # seconds
_PATIENT = 120.0  # seconds to wait for an answer
_OPENINGS, _LISTINGS, _ANSWERS, _POLLS = 3, 5, 5, 1000
_LAG, _THREE, _LONG = 0, 1, 2  # cells
_CELLS = (
    "import workbench as wb\nlong = {long!r}\npanel = wb.watch({run!r})\npanel",
    "from workbench.lab.watching.live import LivePanel\n"
    "panels = [LivePanel([wb.open_run({run!r})]) for _ in range({panels})]\ndisplay(*panels)",
    "panel = wb.watch(long.pop())\npanel",
)
# Panels in a process of their own, like an idle kernel. Their messages are serialised and dropped.
_KERNEL = """import json, sys
from pathlib import Path
from workbench.lab.watching.live import LivePanel
from workbench.runs.store import Run
panels = []
for line in sys.stdin:
    for panel in panels:
        panel.close()
    panels = [LivePanel([Run(Path(sys.argv[1]))]) for _ in range(int(line))]
    for panel in panels:
        panel.send = json.dumps
    print(len(panels), flush=True)
"""


def missing_browser() -> str:
    """Reason why no browser can be used here; empty if one can."""
    try:
        find_chromium()
    except ValueError as error:
        return str(error)
    return ""


def bench_console(
    overrides: Sequence[str] = (),
    *,
    seconds: float = 60.0,
    logged: int = 1_000_000,
    listed: int = 200,
    say: harness.Say = print,
) -> Iterator[Figure]:
    """Measure the panels beside a training of demo/plain with `overrides`; the training ends with the measurement.

    `seconds` is the duration of the latency measurement, and of the blocks without and with panels, in a kernel and in
    JupyterLab each. `logged` is the number of steps of the run that is opened, `listed` that of the runs in the table.
    All folders are temporary. Yields rows as they are measured. ValueError for numbers that are too small, and if the
    training or the browser fails.
    """
    if seconds < 1 or logged < 2 or listed < 1:
        raise ValueError(
            f"seconds is {seconds:g}, logged {logged}, listed {listed}; allowed are 1 or more, 2 or more, 1 or more"
        )
    config = load_config("demo/plain", [*_ENDLESS, *overrides])
    with tempfile.TemporaryDirectory(prefix="workbench-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        say(f"{listed} runs")
        yield from _listing(config, folder / "many", listed)
        say(f"{logged:,} steps")
        long = _copies(_long_run(config, folder / "long", logged), 2 * _OPENINGS)
        yield _first_state(long[:_OPENINGS])
        say("starting a training")
        with training(config, folder / "runs") as trained:
            say("panels in a kernel")
            with _kernel(trained.run) as show:
                yield from _slowdown(trained, "kernel", show, seconds)
            missing = missing_browser()
            yield from _skipped(missing) if missing else _in_jupyter(trained, long[_OPENINGS:], folder, seconds, say)
            say("pause and stop")
            yield from _answers(trained)
        yield _poll(trained)


def _listing(config: Config, root: Path, count: int) -> Iterator[Figure]:
    first = prepare_run(config, root)
    _log(first, 70)
    first.append("results.jsonl", {"metric": "fd-clf64", "value": 9.0, "step": 70})
    first.write_status("finished", 70, steps=70)
    record = read_json(first.folder / "provenance.json")
    for number in range(1, count):
        folder = root / f"{config.name}-{number:08d}"
        shutil.copytree(first.folder, folder)
        changed = {"fingerprint": f"{number:016x}", "created": record["created"] + number}
        write_json(folder / "provenance.json", record | changed)

    def listed(rebuild: bool) -> float:
        if rebuild:
            (root / ".index.json").unlink(missing_ok=True)
        since = time.perf_counter()
        found = len(table_rows(root))
        taken = time.perf_counter() - since
        assert found == count, (found, count)
        return taken

    for what, rebuild in (("runs listed, first time", True), ("runs listed, indexed", False)):
        yield timed(what, "s", [listed(rebuild) for _ in range(_LISTINGS)], LISTED, f"{count} runs")


def _long_run(config: Config, root: Path, steps: int) -> Run:
    run = prepare_run(config, root)
    _log(run, steps)
    run.write_status("finished", steps, steps=steps)
    return run


def _copies(run: Run, count: int) -> list[Run]:
    """Hard-linked copies of a run, one for each opening, because parsed metrics are cached beside the run."""
    folders = [run.folder.with_name(f"{run.name}-{number}") for number in range(count)]
    for folder in folders:
        folder.mkdir()
        for name in ("config.yaml", "provenance.json", "status.json", "metrics.jsonl"):
            os.link(run.folder / name, folder / name)
    return [Run(folder) for folder in folders]


def _log(run: Run, steps: int) -> None:
    """Write metrics as a training does."""
    with (run.folder / "metrics.jsonl").open("w") as file:
        file.writelines(
            f'{{"step": {step}, "loss": {1 / step + 0.3123456789}, "denoise": {1 / step + 0.2123456789}, '
            f'"alignment": null, "gradient_norm": 1.2345678, "images_per_second": 80.12345, "seconds": {step / 10}}}\n'
            for step in range(1, steps + 1)
        )


def _first_state(runs: Sequence[Run]) -> Figure:
    def opening(run: Run) -> float:
        since = time.perf_counter()
        panel = LivePanel([run])
        taken = time.perf_counter() - since
        panel.close()
        return taken

    return timed("long run, first state", "s", [opening(run) for run in runs], OPENED, _unread(runs))


def _unread(runs: Sequence[Run]) -> str:
    return f"{runs[0].status['step']:,} logged steps, not read before, {len(runs)} times"


@contextmanager
def _kernel(run: Run) -> Iterator[Callable[[int], None]]:
    """Yields show(count), which opens that many panels in another process."""
    command = [sys.executable, "-c", _KERNEL, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def show(count: int) -> None:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise ValueError("the process with the panels has ended")

        try:
            yield show
        finally:
            process.kill()


def _slowdown(trained: Trained, where: str, show: Callable[[int], None], seconds: float) -> Iterator[Figure]:
    """Blocks in the order without, with, with, without panels, which cancels a steady drift."""
    count = min(12, max(2, round(seconds / _BLOCK)))
    blocks = []
    for pair in range(count):
        for watched in (False, True) if pair % 2 == 0 else (True, False):
            show(PANELS if watched else 0)
            blocks.append(trained.block(watched, seconds / count))
    show(0)
    about = f"{count} pairs of {seconds / count:.3g} s" + "".join(f", beside {name}" for name in trained.beside)
    yield from compared(blocks, where, SLOWDOWN, about)


def _skipped(why: str) -> Iterator[Figure]:
    for what, unit, goal in (
        ("line to curve drawn", "s", DRAWN),
        ("slowdown, browser", "%", SLOWDOWN),
        ("long run, first paint", "s", OPENED),
    ):
        yield Figure(what, unit, None, goal=goal, about=f"skipped: {why}")


def _in_jupyter(
    trained: Trained, long: Sequence[Run], folder: Path, seconds: float, say: harness.Say
) -> Iterator[Figure]:
    places = {"run": str(trained.run.folder), "long": [str(run.folder) for run in long], "panels": PANELS}
    cells = [cell.format(**places) for cell in _CELLS]
    probe = (Path(__file__).parent / "console.js").read_text()
    say("starting JupyterLab")
    with (
        chromium() as browser,
        jupyter(folder, trained.run.folder.parent) as server,
        opened(browser, server, folder, cells, probe) as notebook,
    ):
        say("lines drawn")
        yield _drawn(trained, notebook, seconds)

        def show(count: int) -> None:
            notebook.ask("for one in globals().pop('panels', []):\n    one.close()")
            if count:
                notebook.run(_THREE)
                curves = notebook.view(_THREE).locator(".wb-live:has(.wb-curve)")
                until(notebook.page, lambda: curves.count() == count, "the panels")

        say("panels in a browser")
        yield from _slowdown(trained, "browser", show, seconds)
        # A paused trainer leaves the cores to the next measurement.
        _answered(Control(trained.run, patience=_PATIENT).pause())
        say("a long run in the browser")
        times = []
        for _ in long:
            times.append(notebook.page.evaluate("(index) => window.benchOpened(index)", _LONG))
            notebook.ask("panel.close()")
            notebook.page.wait_for_timeout(1000)  # its thread may read on for a moment
        yield timed("long run, first paint", "s", times, OPENED, _unread(long))
        _answered(Control(trained.run, patience=_PATIENT).resume())


def _drawn(trained: Trained, notebook: Notebook, seconds: float) -> Figure:
    page = notebook.page
    notebook.run(_LAG)
    until(page, lambda: page.locator(".wb-live .wb-curve").count() > 0, "a curve")
    page.evaluate("() => window.benchFollow()")
    lines = trained.wait_for(5, seconds)
    drawn: list[tuple[int, float]] = []

    def all_shown() -> bool:
        drawn[:] = [(int(step), float(at)) for step, at in page.evaluate("() => window.benchDrawn")]
        return bool(drawn) and drawn[-1][0] >= lines[-1].step

    until(page, all_shown, "the curve of the last line")
    times = lags([(line.step, line.written) for line in lines], drawn)
    notebook.ask("panel.close()")
    return timed("line to curve drawn", "s", times, DRAWN, f"{len(times)} lines, to the frame that shows them")


def _answers(trained: Trained) -> Iterator[Figure]:
    control, step = Control(trained.run, patience=_PATIENT), trained.step
    goal, about = max(ANSWERED, step), f"or one step, which takes {step:.3g} s"
    paused = []
    for _ in range(_ANSWERS):
        trained.wait_for(1, 0.3)
        paused.append(_answered(control.pause()))
        _answered(control.resume())
    yield timed("pause answered", "s", paused, goal, about)
    yield timed("stop answered", "s", [_answered(control.stop())], goal, about)


def _answered(answer: Answer) -> float:
    if not answer.result.startswith("done"):
        raise ValueError(f"{answer.what} failed: {answer.result}")
    return answer.seconds


def _poll(trained: Trained) -> Figure:
    """Its own work, whatever else the machine does: what a trainer does between two steps when nobody asks anything."""
    handler = CommandHandler(
        trained.run, trained.run.config, accelerate(by_machine(trained.run.config)), StopSignals(), lambda _: None
    )
    times = []
    for _ in range(20):
        since = time.thread_time()
        for _ in range(_POLLS):
            handler.poll(0)
        times.append(1e6 * (time.thread_time() - since) / _POLLS)
    share = 1e-4 * float(np.median(times)) / trained.step
    return timed("control poll", "µs", times, None, f"{share:.2g} % of a step of {1e3 * trained.step:.3g} ms")


@dataclass(frozen=True)
class TrainingConsole:
    """Measure how soon the training console answers and what watching costs a training, beside the goals."""

    overrides: Overrides = ()
    """Dotted options of the training, which is that of demo/plain, such as backbone.size=small."""
    seconds: Annotated[float, Range(above=0, at_most=86_400)] = 60.0
    """Of lines that are drawn, and of blocks without panels and as many with, in a kernel and in a browser each."""
    report: Path | None = None
    """Also write the figures, with the machine, versions and load, to this JSON file."""
    logged: Count = 1_000_000
    """Steps of the long run that is opened."""
    listed: Repeats = 200
    """Runs that are listed."""

    def execute(self) -> None:
        harness.check_report(self.report)
        before, console = harness.load_average(), Console()
        drawing = {} if missing_browser() else versions()
        options = {"seconds": self.seconds, "logged": self.logged, "listed": self.listed}
        with harness.saying(console) as say:
            found = list(bench_console(self.overrides, **options, say=say))
        console.print(_table(found))
        about: dict[str, list[str]] = {}
        for row in found:
            about.setdefault(row.about, []).append(row.what)
        for text, names in about.items():
            console.print(f"{'; '.join(names)}: {text}.", soft_wrap=True)
        console.print(
            "Slowdown and CPU are means of pairs of blocks, three panels beside none, with their 95 % interval; one "
            "that\n"
            'holds the goal is "unclear": a quieter machine or more --seconds tells. "kernel" is the panels in a '
            "process\n"
            'of their own, "browser" those that JupyterLab and Chromium show on this machine.',
            soft_wrap=True,
        )
        if before:
            console.print(f"Load of the machine: {before[0]:.1f} before, {harness.load_average()[0]:.1f} after.")
        rows = [asdict(row) for row in found]
        figures = {
            "console": rows,
            "overrides": list(self.overrides),
            **options,
            "load": [before, harness.load_average()],
        }
        harness.write_report(self.report, figures, drawing)


def _table(rows: Sequence[Figure]) -> Table:
    table = Table("", "measured", "p95 or interval", "goal", "met", box=SIMPLE, padding=(0, 1))
    table.columns[0].no_wrap = True
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.3g} {row.unit}"
        other = "" if row.p95 is None else f"{row.p95:.3g}"
        within = other if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
        table.add_row(row.what, value, within, "" if row.goal is None else f"{row.goal:.3g} {row.unit}", row.met)
    return table


if __name__ == "__main__":
    harness.main(TrainingConsole)
