"""What the command line does: each function serves one command, prints, and leaves the work to the library."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from workbench.config import DataConfig, load_config
from workbench.config import presets as preset_names
from workbench.runs.store import Run, find_runs, open_run, prepare_run, runs_root


def demo(command) -> None:
    """Three runs, their scores and a report."""
    from workbench.reporting.demo import demo_configs, estimate_seconds, run_demo

    console, root = Console(), runs_root()
    configs = demo_configs(command.seed, command.overrides)
    plain = configs["plain"]
    console.print(
        f"[bold]Self-Transcendence, demo edition[/bold]: {plain.data.name}, SiT-{plain.backbone.options['size']}, "
        f"batch {plain.training.batch}\n"
        f"  1. teacher  VAE-aligned, {configs['teacher'].training.steps} steps\n"
        f"  2. plain    no alignment, {plain.training.steps} steps\n"
        f"  3. guided   by the teacher's features at w = {configs['guided'].objective.options['guidance_scale']:g}, "
        f"{configs['guided'].training.steps} steps\n"
        f"  then scores, probes and a report. Runs go to {root}/; Ctrl-C saves, the same command goes on."
    )
    console.print(f"About {estimate_seconds(configs) / 60:.0f} minutes on this machine if nothing is finished yet.")
    finished = None
    with _bars(console) as update:
        for progress in run_demo(root, command.report, command.seed, command.overrides):
            update(progress.stage, progress.done, progress.total, progress.note)
            finished = progress
    if finished is None or finished.stage != "report":
        raise KeyboardInterrupt
    console.print(f"Report: {command.report.resolve()}", soft_wrap=True)


def train(command) -> None:
    """One run, in this process or in several."""
    config = load_config(command.config, command.overrides)
    root = runs_root()
    if command.print_launch:
        from workbench.training.launch import launch_commands

        print(launch_commands([command.config, *command.overrides], command.processes, command.nodes))
        return
    if command.processes > 1:
        from workbench.training.launch import train_in_processes

        sys.exit(train_in_processes(command.processes, [command.config, *command.overrides]))
    if "WORKBENCH_PROCESSES" in os.environ:
        from workbench.training.launch import die_with_parent

        die_with_parent()
    from workbench.training.loop import fit

    console = Console(quiet=os.environ.get("RANK", "0") != "0")
    with _bars(console) as update:
        for record in fit(config, root, lambda done, total: update("encode images", done, total)):
            update(f"train {config.name}", record["step"], config.training.steps, f"loss {record['loss']:.4f}")
    run = prepare_run(config, root)
    console.print(f"{run.status['state']} at step {run.status['step']}: {run.folder}", soft_wrap=True)


def runs(command) -> None:
    """A table of the runs."""
    table = Table("run", "state", "step", "method", "loss", "FD-clf64", "n", "class agreement")
    for run in find_runs():
        try:
            table.add_row(*_row(run))
        except ValueError as error:  # one damaged run must not hide the others
            table.add_row(run.name, f"damaged: {error}")
    Console().print(table if table.row_count else f"no runs in {runs_root()}")


def evaluate(command) -> None:
    """Scores of a run."""
    from dataclasses import replace

    from workbench.evaluation.suite import score

    run = open_run(command.run)
    settings = run.config.sampling
    if command.count is not None:
        settings = replace(settings, count=command.count)
    step = run.checkpoint(command.step).step
    console = Console()
    with _bars(console) as update:
        records = score(run, step, settings, lambda done, total: update("generate", done, total))
    table = Table("metric", "value", "95 % interval", "real images", "n")
    for r in records:
        interval = f"{r['low']:.3f} .. {r['high']:.3f}" if "low" in r else ""
        floor = f"{r['floor']:.4g}" if "floor" in r else ""
        table.add_row(r["metric"], f"{r['value']:.4g}", interval, floor, str(r["n_generated"]))
    console.print(table)


def methods(command) -> None:
    """Presets side by side."""
    import shlex

    from workbench.reporting.methods import compare_methods, write_comparison

    rows, finished, console = (), False, Console()
    with _bars(console) as update:
        for progress in compare_methods(command.presets, command.seeds, runs_root(), command.set):
            update(progress.stage, progress.done, progress.total, progress.note)
            rows, finished = progress.rows, progress.done == progress.total
    words = ["methods", *command.presets, "--seeds", *map(str, command.seeds)]
    words += ["--set", *command.set] if command.set else []
    sampling = load_config(command.presets[0], command.set).sampling
    how = {"images": sampling.count, "sampler": sampling.sampler, "sampler_steps": sampling.steps}
    if rows:
        write_comparison(rows, command.folder, f"workbench {shlex.join(words)}", how)
        console.print(f"{command.folder / 'README.md'}: {len(rows)} methods", soft_wrap=True)
    if not finished:
        raise KeyboardInterrupt


def codec(command) -> None:
    """A codec for 32x32 images."""
    from workbench.data.images import load_images
    from workbench.training.codec import CodecTraining, train_codec

    config = DataConfig(name=command.data, source="embedded")
    settings = CodecTraining(steps=command.steps, seed=command.seed)
    console = Console()
    with _bars(console) as update:
        for record in train_codec(load_images(config, "train"), load_images(config, "test"), command.folder, settings):
            if "step" in record:
                update("train codec", record["step"], record["steps"], f"loss {record['loss']:.4f}")
    console.print(f"{command.folder}: reconstruction {record['reconstruction']}")


def classifier(command) -> None:
    """The detector behind FD-clf64."""
    import torch

    from workbench.data.images import load_images
    from workbench.evaluation.detectors import save_clf64, train_clf64

    config = DataConfig(source="embedded")
    train_set, test_set = load_images(config, "train"), load_images(config, "test")

    def arrays(images):
        return images.batch(range(len(images))), torch.from_numpy(images.labels)

    with _bars(Console()) as update:
        for record in train_clf64(
            *arrays(train_set), *arrays(test_set), classes=10, epochs=command.epochs, seed=command.seed
        ):
            note = f"test accuracy {record['test_accuracy']:.3f}"
            update("train clf64", record["epoch"], record["epochs"], note)
    command.folder.mkdir(parents=True, exist_ok=True)
    save_clf64(record["model"], command.folder, record["record"])


def bench(command) -> None:
    """Ratios of aligned to plain steps, memory, and the cost of the paper's schedule."""
    from dataclasses import asdict

    from workbench.files import write_json
    from workbench.runs.store import machine
    from workbench.training.bench import bench_steps, plain_matmul_share

    section = {"name": command.backbone, "size": command.size, "patch": command.patch or (1, 2)[command.size != "nano"]}
    options = {key: getattr(command, key) for key in ("batch", "repeats", "every", "fast", "precision")}
    options |= {"teacher_precision": command.teacher_precision, "compiled": command.compile}
    with _bars(Console()) as update:
        for done, rounds, found in bench_steps(section, **options):
            update("time steps", done, rounds)
            costs = found
    share = plain_matmul_share(section, command.batch, costs[0].seconds)
    title = f"{command.backbone}-{command.size}/{section['patch']}, batch {command.batch}, median of {command.repeats}"
    table = Table("step", "time", "/ plain", "memory", "1 M steps / plain", "with teacher", title=title)
    for cost in costs:
        ratios = (f"{cost.total:.3f}", f"{cost.total_with_teacher:.3f}")
        table.add_row(
            cost.kind, f"{cost.seconds * 1e3:.0f} ms", f"{cost.ratio:.3f}", f"{cost.memory / 1e6:,.0f} MB", *ratios
        )
    Console().print(table, f"Share of the machine's matrix-product rate in the plain step: {share:.2f}")
    if command.report:
        figures = {"step": [asdict(cost) for cost in costs], "matmul_share": share, "backbone": section, **options}
        write_json(command.report, {**figures, **machine()})


def importfile(command) -> None:
    """A run of a published checkpoint."""
    from workbench.runs.imported import import_run

    run = import_run(
        command.file,
        runs_root(),
        family=command.family,
        weights=command.weights,
        name=command.name,
        codec=command.codec,
        pixel_channels=command.pixel_channels,
        height=command.height,
    )
    origin = run.provenance["origin"]
    Console().print(
        f"{origin['family']}, {origin['layout']} file: {origin['tensors']} tensors, {len(origin['heads'])} more of "
        f"heads kept apart; converted: {origin['converted']}\n{run.folder}",
        soft_wrap=True,
    )


def exportrun(command) -> None:
    """A run's weights for other code."""
    from workbench.runs.imported import export_diffusers, export_run

    run, chosen = open_run(command.run), {"step": command.step, "weights": command.weights}
    if command.family == "diffusers":
        path = export_diffusers(run, command.path, **chosen)
    else:
        path = export_run(run, command.path, family=command.family, **chosen)
    Console().print(f"{run.name} as {command.family}: {path}", soft_wrap=True)


def presets(command) -> None:
    """Names of the presets."""
    print("\n".join(preset_names()))


def _row(run: Run) -> list[str]:
    status, metrics = run.status, run.metrics
    scores = {record["metric"]: record for record in run.results}
    fd, agreement = scores.get("fd-clf64"), scores.get("class-agreement")
    return [
        run.name,
        status["state"],
        f"{status['step']}/{run.config.training.steps}",
        run.config.objective.name,
        f"{metrics[-1]['loss']:.4f}" if metrics else "",
        f"{fd['value']:.2f}" if fd else "",
        str(fd["n_generated"]) if fd else "",
        f"{agreement['value']:.3f}" if agreement else "",
    ]


@contextmanager
def _bars(console: Console) -> Iterator[Callable[..., None]]:
    """Progress bars with time left, one a stage; without a terminal, one line for each tenth of a stage."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks, tenths = {}, {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def update(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)
            tenth = (10 * done // total, note if total == 1 else "")
            if not console.is_terminal and tenths.get(stage) != tenth:
                tenths[stage] = tenth
                console.print(f"{stage}: {done}/{total} {note}", soft_wrap=True)

        yield update
