"""Commands about data and speed: encoding, and what steps and reading cost."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from workbench.commands.bars import bars
from workbench.commands.checking import check_data_path
from workbench.commands.terminal import Console, shown
from workbench.config import backbone_sizes, load_config, refuse_unknown
from workbench.runs.store import runs_root


def encode(command) -> None:
    """Latents ahead of training, where ``train`` finds them."""
    config, console = load_config(command.config, command.overrides), Console()
    check_data_path(config)
    import torch

    from workbench.data.encode import encode as encode_images
    from workbench.data.targets import open_targets

    _check_device(command.device)
    with bars(console) as update:
        latents = encode_images(
            config,
            command.split,
            runs_root() / ".latents",
            processes=command.processes,
            device=command.device,
            progress=lambda done, total: update("encode images", done, total),
        )
        # An objective's stored targets too, or the first process of a training would write them alone.
        open_targets(
            config,
            command.split,
            latents,
            runs_root() / ".targets",
            command.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            lambda done, total: update("encode targets", done, total),
        )
    size = sum(shard["bytes"] for shard in latents.index["shards"]) / 1e6
    what = f"{len(latents)} images of {len(latents.classes)} classes, {size:,.0f} MB, checked"
    console.print(f"{what}: {latents.shards.folder}", soft_wrap=True)


def _check_device(name: str | None) -> None:
    """ValueError for a device that images cannot be encoded on, or that this machine does not have."""
    import torch

    if name is None:
        return
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", name):
        raise ValueError(f"--device {name!r} is not known; allowed are such as cpu, cuda and cuda:1")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        problem = f"{error}".splitlines()[0].partition(". ")[0]
        raise ValueError(f"--device {name!r} cannot be used here: {problem}") from error


def benchstep(command) -> None:
    """Ratios of aligned to plain steps, memory, and the cost of the paper's schedule."""
    refuse_unknown("size", command.size, backbone_sizes(command.backbone))
    from dataclasses import asdict

    from workbench.files import write_json
    from workbench.runs.store import machine
    from workbench.training.bench import bench_steps, plain_matmul_share

    if command.repeats < 1:
        raise ValueError(f"repeats must be at least 1; got {command.repeats}")
    section = {"name": command.backbone, "size": command.size, "patch": command.patch or (1, 2)[command.size != "nano"]}
    options = {key: getattr(command, key) for key in ("batch", "repeats", "fast", "precision", "teacher_precision")}
    options |= {"every": command.all, "compiled": command.compile}
    with bars(Console()) as update:
        for done, rounds, found in bench_steps(section, **options):
            update("time steps", done, rounds)
            costs = found
    share = plain_matmul_share(section, command.batch, costs[0].seconds, command.precision)
    title = f"{command.backbone}-{command.size}/{section['patch']}, batch {command.batch}, median of {command.repeats}"
    table = Table("step", "time", "/ plain", "memory", "1 M steps / plain", "with teacher", title=title)
    for cost in costs:
        ratios = (f"{cost.total:.3f}", f"{cost.total_with_teacher:.3f}")
        table.add_row(
            cost.kind, f"{cost.seconds * 1e3:.0f} ms", f"{cost.ratio:.3f}", f"{cost.memory / 1e6:,.0f} MB", *ratios
        )
    Console().print(table, f"Share of the machine's matrix-product rate in the plain step: {share:.2f}")
    if command.report:
        command.report.parent.mkdir(parents=True, exist_ok=True)
        figures = {"step": [asdict(cost) for cost in costs], "matmul_share": share, "backbone": section, **options}
        write_json(command.report, {**figures, **machine()})


def benchloading(command) -> None:
    """Images a second of each way of reading."""
    from workbench.data.bench import bench_loading

    figures = bench_loading(count=command.images, batch=command.batch, repeats=command.repeats, folder=command.folder)
    images, megabytes, batch = (figures.pop(key) for key in ("images", "megabytes", "batch"))
    table = Table("images a second, one process", f"{images} images, {megabytes:,.0f} MB, batch {batch}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g} x" if "/" in name else f"{value:,.0f}")
    Console().print(table)


def benchscores(command) -> None:
    """Seconds of each score beside other programs'."""
    from dataclasses import asdict

    from workbench.evaluation.bench import bench_scores
    from workbench.files import write_json
    from workbench.runs.store import machine

    found, console = [], Console()
    table = Table("score", "program", "seconds", "value")
    with console.status("measuring") as status:
        for timing in bench_scores(dimensions=command.dimensions, count=command.count):
            found.append(timing)
            table.add_row(timing.score, timing.program, f"{timing.seconds:.3g}", f"{timing.value:.12g}")
            status.update(Text(f"{timing.score}, {timing.program}: {timing.seconds:.3g} s"))
    console.print(table)
    if command.report:
        command.report.parent.mkdir(parents=True, exist_ok=True)
        how = {"dimensions": command.dimensions, "count": command.count}
        write_json(command.report, {"scores": [asdict(timing) for timing in found], **how, **machine()})


def benchviews(command) -> None:
    """A table for each run: key press to picture, memory and extraction, beside the goals."""
    from dataclasses import asdict

    from workbench.lab.bench import bench_views, demo_run, load_average, versions
    from workbench.runs.store import open_run

    _check_report(command.report)
    runs = [open_run(run) for run in command.runs] or [demo_run()]
    options = {"presses": command.presses, "images": command.images if command.extraction else 0}
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
    _write_report(command.report, {"views": rows, **options}, before, drawing)


def benchconsole(command) -> None:
    """A table: what the console shows and how soon, and what it costs the training, beside the goals."""
    from dataclasses import asdict

    from workbench.lab.bench import load_average, versions
    from workbench.lab.watching.bench import bench_console, missing_browser

    _check_report(command.report)
    before, console = load_average(), Console()
    drawing = {} if missing_browser() else versions()
    options = {"seconds": command.seconds, "logged": command.logged, "listed": command.listed}
    with _saying(console) as say:
        found = list(bench_console(command.overrides, **options, say=say))
    console.print(_console_table(found))
    about: dict[str, list[str]] = {}
    for row in found:
        about.setdefault(row.about, []).append(row.what)
    for text, names in about.items():
        console.print(f"{'; '.join(names)}: {text}.", soft_wrap=True)
    console.print(
        "Slowdown and CPU are means of pairs of blocks, three panels beside none, with their 95 % interval; one that\n"
        'holds the goal is "unclear": a quieter machine or more --seconds tells. "kernel" is the panels in a process\n'
        'of their own, "browser" those that JupyterLab and Chromium show on this machine.',
        soft_wrap=True,
    )
    if before:
        console.print(f"Load of the machine: {before[0]:.1f} before, {load_average()[0]:.1f} after.")
    rows = [asdict(row) for row in found]
    figures = {"console": rows, "overrides": list(command.overrides), **options}
    _write_report(command.report, figures, before, drawing)


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
