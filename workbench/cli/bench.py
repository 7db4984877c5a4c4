"""Commands that measure speed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from workbench.cli.arguments import Names, Overrides, Repeats
from workbench.cli.bars import bars
from workbench.cli.terminal import Console, shown
from workbench.config import backbone_sizes, refuse_unknown
from workbench.config.ranges import Count, Patch, Range, Width


@dataclass(frozen=True)
class BenchStep:
    """Time the plain step and guided steps (all methods with --every), in one process and in turn."""

    backbone: str = "sit"
    size: str = "nano"
    patch: Patch | None = None
    """1 for nano, 2 for the others, by default."""
    batch: Repeats = 32
    repeats: Repeats = 7
    all: bool = False
    """Every method, not only the guided steps."""
    fast: bool = False
    """Also the plain step in bfloat16 with compiled blocks."""
    precision: str = "no"
    """Of all steps: no, bf16 or fp16."""
    compile: bool = False
    """Compile the blocks of student and teacher."""
    teacher_precision: str = "ambient"
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""

    def execute(self) -> None:
        refuse_unknown("size", self.size, backbone_sizes(self.backbone))
        from dataclasses import asdict

        from workbench.files import write_json
        from workbench.runs.store import machine
        from workbench.training.bench import bench_steps, plain_matmul_share

        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1; got {self.repeats}")
        section = {"name": self.backbone, "size": self.size, "patch": self.patch or (1, 2)[self.size != "nano"]}
        options = {key: getattr(self, key) for key in ("batch", "repeats", "fast", "precision", "teacher_precision")}
        options |= {"every": self.all, "compiled": self.compile}
        with bars(Console()) as update:
            for done, rounds, found in bench_steps(section, **options):
                update("time steps", done, rounds)
                costs = found
        share = plain_matmul_share(section, self.batch, costs[0].seconds, self.precision)
        title = f"{self.backbone}-{self.size}/{section['patch']}, batch {self.batch}, median of {self.repeats}"
        table = Table("step", "time", "/ plain", "memory", "1 M steps / plain", "with teacher", title=title)
        for cost in costs:
            ratios = (f"{cost.total:.3f}", f"{cost.total_with_teacher:.3f}")
            table.add_row(
                cost.kind, f"{cost.seconds * 1e3:.0f} ms", f"{cost.ratio:.3f}", f"{cost.memory / 1e6:,.0f} MB", *ratios
            )
        Console().print(table, f"Share of the machine's matrix-product rate in the plain step: {share:.2f}")
        if self.report:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            figures = {"step": [asdict(cost) for cost in costs], "matmul_share": share, "backbone": section, **options}
            write_json(self.report, {**figures, **machine()})


@dataclass(frozen=True)
class BenchLoading:
    """Time reading latents in random batches: shards, one file an image, and a memory copy, on generated data."""

    images: Count = 4096
    batch: Repeats = 256
    repeats: Repeats = 9
    folder: Path | None = None
    """On the disk to measure; the system's temporary folder by default."""

    def execute(self) -> None:
        from workbench.data.bench import bench_loading

        figures = bench_loading(count=self.images, batch=self.batch, repeats=self.repeats, folder=self.folder)
        images, megabytes, batch = (figures.pop(key) for key in ("images", "megabytes", "batch"))
        table = Table("images a second, one process", f"{images} images, {megabytes:,.0f} MB, batch {batch}")
        for name, value in figures.items():
            table.add_row(name, f"{value:.3g} x" if "/" in name else f"{value:,.0f}")
        Console().print(table)


@dataclass(frozen=True)
class BenchScores:
    """Time each score beside SciPy and torch-fidelity (extra "test") on the same numbers, one thread each."""

    dimensions: Width = 2048
    count: Count = 5000
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""

    def execute(self) -> None:
        from dataclasses import asdict

        from workbench.evaluation.bench import bench_scores
        from workbench.files import write_json
        from workbench.runs.store import machine

        found, console = [], Console()
        table = Table("score", "program", "seconds", "value")
        with console.status("measuring") as status:
            for timing in bench_scores(dimensions=self.dimensions, count=self.count):
                found.append(timing)
                table.add_row(timing.score, timing.program, f"{timing.seconds:.3g}", f"{timing.value:.12g}")
                status.update(Text(f"{timing.score}, {timing.program}: {timing.seconds:.3g} s"))
        console.print(table)
        if self.report:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            how = {"dimensions": self.dimensions, "count": self.count}
            write_json(self.report, {"scores": [asdict(timing) for timing in found], **how, **machine()})


@dataclass(frozen=True)
class BenchViews:
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
        from dataclasses import asdict

        from workbench.lab.bench import bench_views, demo_run, load_average, versions
        from workbench.runs.store import open_run

        _check_report(self.report)
        runs = [open_run(run) for run in self.runs] or [demo_run()]
        options = {"presses": self.presses, "images": self.images if self.extraction else 0}
        before, found, console = load_average(), {}, Console()
        drawing = versions()
        for run in runs:
            with _saying(console) as say:
                found[run.name] = list(bench_views(run, **options, say=say))
            console.print(_views_table(run.name, found[run.name]))
        console.print(
            "Written: the picture is on its canvas. Painted: the screen's next frame, up to 17 ms later, is made.\n"
            'A goal that holds for what is written alone is "written".',
            soft_wrap=True,
        )
        rows = {name: [asdict(row) for row in measured] for name, measured in found.items()}
        _write_report(self.report, {"views": rows, **options}, before, drawing)


@dataclass(frozen=True)
class BenchConsole:
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
        from dataclasses import asdict

        from workbench.lab.bench import load_average, versions
        from workbench.lab.watching.bench import bench_console, missing_browser

        _check_report(self.report)
        before, console = load_average(), Console()
        drawing = {} if missing_browser() else versions()
        options = {"seconds": self.seconds, "logged": self.logged, "listed": self.listed}
        with _saying(console) as say:
            found = list(bench_console(self.overrides, **options, say=say))
        console.print(_console_table(found))
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
            console.print(f"Load of the machine: {before[0]:.1f} before, {load_average()[0]:.1f} after.")
        rows = [asdict(row) for row in found]
        figures = {"console": rows, "overrides": list(self.overrides), **options}
        _write_report(self.report, figures, before, drawing)


def _check_report(file: Path | None) -> None:
    if file and file.suffix != ".json":
        raise ValueError(f"cannot write {file.name!r}; a report ends in .json")


def _write_report(file: Path | None, figures: dict, before: list[float], drawing: dict[str, str]) -> None:
    """Figures of what draws, with the machine, versions and the load before and after; nothing without a file."""
    from workbench.files import write_json
    from workbench.lab.bench import load_average
    from workbench.runs.store import machine

    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        where = machine()
        where["versions"] |= drawing
        write_json(file, {**figures, "load": [before, load_average()], **where})


@contextmanager
def _saying(console: Console) -> Iterator[Callable[[str], None]]:
    """What is being measured; without a terminal nothing turns, so that it is printed."""
    with console.status("measuring") as status:
        yield (lambda text: status.update(Text(shown(text)))) if console.is_terminal else console.print


def _console_table(rows) -> Table:
    table = Table("", "measured", "p95 or interval", "goal", "met", box=SIMPLE, padding=(0, 1))
    table.columns[0].no_wrap = True
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.3g} {row.unit}"
        other = "" if row.p95 is None else f"{row.p95:.3g}"
        within = other if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
        table.add_row(row.what, value, within, "" if row.goal is None else f"{row.goal:.3g} {row.unit}", row.met)
    return table


def _views_table(name: str, rows) -> Table:
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
