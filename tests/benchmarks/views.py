"""How soon views answer, in a real JupyterLab and in an exported page, beside the goals."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import harness
import numpy as np
import tyro
from browsing import Notebook, chromium, jupyter, opened, until, versions
from rich.box import SIMPLE
from rich.table import Table

from workbench.cli.arguments import Names, Repeats
from workbench.cli.terminal import Console
from workbench.config.ranges import Count
from workbench.data.latents import open_latents
from workbench.features.extract import extract
from workbench.lab.sources import depth_of
from workbench.lab.views.maps import NINE_TIMES
from workbench.runs.store import Run, find_runs, open_run, runs_root


@dataclass(frozen=True)
class Goal:
    """Limits of the median and of the 95th percentile; what is measured once has only the first."""

    unit: str
    p50: float
    p95: float | None = None


FIXED, REFITTED = Goal("ms", 3.0, 16.0), Goal("ms", 16.0, 40.0)
CACHED, BUSY = Goal("ms", 30.0, 50.0), Goal("ms", 40.0, 80.0)
GOALS = {
    "w, fixed": FIXED,
    "w, refitted": REFITTED,
    "w, similarities": FIXED,
    "click on a token": FIXED,
    "t": CACHED,
    "layer": CACHED,
    "step": CACHED,
    "w, fixed, cell running": BUSY,
    "w, refitted, cell running": BUSY,
    "t, cell running": BUSY,
    "layer, cell running": BUSY,
    "step, cell running": BUSY,
    "w, fixed, exported page": FIXED,
    "w, refitted, exported page": REFITTED,
    "w, similarities, exported page": FIXED,
    "click on a token, exported page": FIXED,
    "first paint, warm cache": Goal("s", 1.0),
    "growth of the kernel": Goal("MB", 10.0),
    "growth of the page": Goal("MB", 10.0),
    "extraction": Goal("s", 180.0),
}
_FIRST_PAINTS = 5
_MAPS, _STEPS, _BUSY = 1, 2, 3  # cells
_CELLS = (
    "import workbench as wb\nrun = wb.open_run({run!r})\nwb.maps(run), wb.maps(run, times=[0.3, 0.7], steps='all', "
    "page_mb=50);",
    "view = wb.maps(run)\nview.widget(w=0)",
    "wb.maps(run, times=[0.3, 0.7], steps='all', page_mb=50).widget(w=0)",
    "while True:\n    pass",
)


@dataclass(frozen=True)
class Measured:
    """One row: from a key to the picture written, to the frame that shows it painted, and the goal of the former.

    What is no latency has a median alone. ``met`` is "yes", "written" where the goal holds for what is written
    and not for what is painted, which waits for the screen's next frame, or "no".
    """

    what: str
    unit: str
    p50: float
    p95: float | None
    painted_p50: float | None
    painted_p95: float | None
    goal_p50: float
    goal_p95: float | None
    met: str
    about: str = ""


def demo_run() -> Run:
    """The plain run of the demo among the runs here, the newest; ValueError saying how to make one."""
    found = [run for run in find_runs() if _is_demo(run)]
    if not found:
        raise ValueError(
            f"there is no run of the demo in {runs_root()}: `workbench demo` makes one in ten minutes, "
            "or name another run"
        )
    return found[-1]


def _is_demo(run: Run) -> bool:
    with suppress(ValueError):  # a damaged run is passed over
        return run.config.name == "demo-plain" and bool(run.checkpoints)
    return False


def bench_views(run: Run, *, presses: int = 30, images: int = 2000, say: harness.Say = print) -> Iterator[Measured]:
    """Measure the views of a run in JupyterLab and Chromium, and the extraction of `images` (0 leaves it out).

    `presses` of each slider, ten times as many moves for the growth of memory. The features that views show are kept
    beside the run as ever; notebook, settings and the cache of the extraction lie in a temporary folder. Yields as
    rows are measured. ValueError without Chromium or playwright, for fewer than 2 presses, and if a cell fails.
    """
    if presses < 2 or images < 0:
        raise ValueError(f"presses is {presses}, images {images}; allowed are 2 or more, and 0 or more")
    probe = (Path(__file__).parent / "views.js").read_text()
    cells = [cell.format(run=str(run.folder.resolve())) for cell in _CELLS]
    with tempfile.TemporaryDirectory(prefix="workbench-bench-", ignore_cleanup_errors=True) as name, chromium() as own:
        folder = Path(name)
        say("starting JupyterLab")
        with jupyter(folder, run.folder.parent) as server, opened(own, server, folder, cells, probe) as notebook:
            yield from _in_jupyter(notebook, presses, folder / "page.html", say)
        say("exported page")
        yield from _exported(own, folder / "page.html", presses, probe)
    if images:
        yield _extraction(run, images, say)


def _in_jupyter(notebook: Notebook, presses: int, page: Path, say: harness.Say) -> Iterator[Measured]:
    say("features of the views")
    notebook.run(0)
    say("first paint")
    paints = [_first_paint(notebook) for _ in range(_FIRST_PAINTS)]
    notebook.run(_STEPS)
    notebook.ask(f"view.save_html({str(page)!r}, w=0)")
    yield _row("first paint, warm cache", np.array(paints) / 1e3)
    say("sliders")
    yield from _sliders(notebook, presses, "")
    say("similarities")
    yield from _similarity(notebook.page, notebook.view(_MAPS), presses)
    say("growth of memory")
    yield from _growth(notebook, 10 * presses)
    say("sliders while a cell runs")
    notebook.begin(_BUSY)
    until(notebook.page, lambda: notebook.running(_BUSY), "a cell that runs")
    yield from _sliders(notebook, presses, ", cell running")
    if not notebook.running(_BUSY):
        raise ValueError("the cell that was to run all the while has ended")
    notebook.interrupt(_BUSY)


def _sliders(notebook: Notebook, presses: int, when: str) -> Iterator[Measured]:
    maps, steps = notebook.view(_MAPS), notebook.view(_STEPS)
    yield from _guidance(notebook.page, maps, presses, when)
    for name in ("t", "layer"):
        yield _row(f"{name}{when}", _pressed(notebook.page, maps, name, presses))
    if _slider(steps, "step").count():  # a run may have kept one step alone
        yield _row(f"step{when}", _pressed(notebook.page, steps, "step", presses))


def _guidance(page: Any, view: Any, presses: int, when: str) -> Iterator[Measured]:
    for basis, of in (("refit", "refitted"), ("fixed", "fixed")):
        view.get_by_role("radio", name=basis, exact=True).check(force=True)
        yield _row(f"w, {of}{when}", _pressed(page, view, "w", presses))


def _similarity(page: Any, view: Any, presses: int, when: str = "") -> Iterator[Measured]:
    """Clicks on tokens of a map, one after the other, then w while one is held."""
    token_map = view.locator(".wb-tk-map").nth(1)
    token_map.evaluate("(one) => one.scrollIntoView({ block: 'center' })")  # not below the sliders
    box, found = token_map.bounding_box(), []
    for press in range(presses):
        x, y = (0.1 + 0.8 * (press * step % 7) / 7 for step in (2, 3))
        # Held down for as long as by a hand: what a notebook does about the cell when it goes down is no part of this.
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"], delay=80)
        page.wait_for_timeout(60 + 7 * press % 17)
        found.append(_taken(page))
    yield _row(f"click on a token{when}", np.array(found))
    yield _row(f"w, similarities{when}", _pressed(page, view, "w", presses))
    view.get_by_role("button", name="Clear tokens").click()


def _exported(browser: Any, file: Path, presses: int, probe: str) -> Iterator[Measured]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, offline=True)
    try:
        page = context.new_page()
        page.goto(file.as_uri())
        page.wait_for_selector(".wb-foot")
        page.evaluate(probe)
        yield from _guidance(page, page.locator("body"), presses, ", exported page")
        yield from _similarity(page, page.locator("body"), presses, ", exported page")
    finally:
        context.close()


def _first_paint(notebook: Notebook) -> list[float]:
    """Milliseconds from the command that runs the cell, which makes the view anew from what is cached."""
    notebook.page.evaluate("() => window.benchStart()")
    notebook.run(_MAPS)
    return _taken(notebook.page)


def _slider(view: Any, axis: str) -> Any:
    return view.locator(f".wb-axes input[data-axis='{axis}']")


def _pressed(page: Any, view: Any, name: str, presses: int) -> np.ndarray:
    """Milliseconds to written and to painted, of each press: to the right, and back from the end."""
    slider = _slider(view, name)
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(500)
    low, high, step = (float(slider.get_attribute(of)) for of in ("min", "max", "step"))
    places = round((high - low) / step)
    found = []
    for press in range(presses):
        page.keyboard.press("ArrowRight" if press // places % 2 == 0 else "ArrowLeft")
        # Never in step with the frames of the screen.
        page.wait_for_timeout(60 + 7 * press % 17)
        found.append(_taken(page))
    return np.array(found)


def _taken(page: Any) -> list[float]:
    taken: list[Any] = []

    def there() -> bool:
        taken[:] = [page.evaluate("() => window.benchTaken()")]
        return taken[0] is not None

    until(page, there, "a picture that a slider changes", 20)
    return taken[0]


def _growth(notebook: Notebook, moves: int) -> Iterator[Measured]:
    page, session = notebook.page, notebook.page.context.new_cdp_session(notebook.page)
    slider = _slider(notebook.view(_MAPS), "w")

    def sizes() -> np.ndarray:
        page.wait_for_timeout(500)  # the last state has reached the kernel
        kernel = notebook.ask("import gc, psutil; gc.collect(); print(psutil.Process().memory_info().rss)")
        session.send("HeapProfiler.collectGarbage")
        return np.array([float(kernel), session.send("Runtime.getHeapUsage")["usedSize"]]) / 1e6

    def move(times: int) -> None:
        slider.focus()
        page.keyboard.press("Home")
        for _ in range(times):
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(20)

    move(20)  # what is made once is there now
    before = sizes()
    move(moves)
    for what, grown in zip(("kernel", "page"), sizes() - before, strict=True):
        yield _single(f"growth of the {what}", grown, f"{moves} slider moves")


def _extraction(run: Run, images: int, say: harness.Say) -> Measured:
    layers = list(range(1, depth_of(run) + 1))
    about = f"{images:,} images, {len(layers)} layers, {len(NINE_TIMES)} times, mean tokens of f_c and f_u"
    with tempfile.TemporaryDirectory(prefix="workbench-bench-") as folder:
        root, there = Path(folder), run.folder.parent / ".latents"
        if there.is_dir():
            (root / ".latents").symlink_to(there.resolve())
        open_latents(run.config, "train", root / ".latents")

        def progress(done: int, total: int) -> None:
            if 20 * done // total != 20 * (done - 100) // total:
                say(f"extraction: {100 * done // total} %")

        started = time.perf_counter()
        extract(run, images, layers, NINE_TIMES, pooling="mean", root=root, progress=progress)
        return _single("extraction", time.perf_counter() - started, about)


def _row(what: str, times: np.ndarray) -> Measured:
    """Of times written and painted."""
    goal, presses = GOALS[what], len(times)
    (p50, p95), (painted_p50, painted_p95) = (np.percentile(of, (50, 95)).tolist() for of in times.T)
    met = "yes" if _within(goal, painted_p50, painted_p95) else "written" if _within(goal, p50, p95) else "no"
    return Measured(what, goal.unit, p50, p95, painted_p50, painted_p95, goal.p50, goal.p95, met, f"n = {presses}")


def _single(what: str, value: float, about: str) -> Measured:
    goal = GOALS[what]
    met = "yes" if value <= goal.p50 else "no"
    return Measured(what, goal.unit, float(value), None, None, None, goal.p50, goal.p95, met, about)


def _within(goal: Goal, p50: float, p95: float) -> bool:
    return p50 <= goal.p50 and (goal.p95 is None or p95 <= goal.p95)


@dataclass(frozen=True)
class Views:
    """Measure how soon views answer in JupyterLab and in an exported page, in headless Chromium, beside the goals."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, Names.RUN] = ()
    """The demo's newest plain run by default."""
    report: Path | None = None
    """Also write the figures, with the machine, versions and load, to this JSON file."""
    presses: Repeats = 30
    """Key presses of each slider; ten times as many moves for the growth of memory."""
    extraction: bool = True
    """Also time the extraction of features, into a cache of its own."""
    images: Count = 2000
    """How many images it is of."""

    def execute(self) -> None:
        harness.check_report(self.report)
        runs = [open_run(run) for run in self.runs] or [demo_run()]
        options = {"presses": self.presses, "images": self.images if self.extraction else 0}
        before, found, console = harness.load_average(), {}, Console()
        drawing = versions()
        for run in runs:
            with harness.saying(console) as say:
                found[run.name] = list(bench_views(run, **options, say=say))
            console.print(_table(run.name, found[run.name]))
        console.print(
            "Written: the picture is on its canvas. Painted: the screen's next frame, up to 17 ms later, is made.\n"
            'A goal that holds for what is written alone is "written".',
            soft_wrap=True,
        )
        rows = {name: [asdict(row) for row in measured] for name, measured in found.items()}
        harness.write_report(self.report, {"views": rows, **options, "load": [before, harness.load_average()]}, drawing)


def _table(name: str, rows: Sequence[Measured]) -> Table:
    table = Table("p50 / p95 of", "written", "painted", "goal", "met", title=name, box=SIMPLE, padding=(0, 1))
    table.columns[0].no_wrap = True

    def pair(*values: float | None) -> str:
        return " / ".join(f"{value:.1f}" for value in values if value is not None)

    for row in rows:
        goal = " / ".join(f"{value:g}" for value in (row.goal_p50, row.goal_p95) if value is not None)
        written, painted = pair(row.p50, row.p95), pair(row.painted_p50, row.painted_p95)
        table.add_row(row.what, written, painted, f"{goal} {row.unit}", row.met)
    table.caption = "; ".join(dict.fromkeys(row.about for row in rows))
    return table


if __name__ == "__main__":
    harness.main(Views)
