"""Commands that look at runs and carry them in and out: list, score, compare, import, export, presets."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from workbench.commands.bars import bars
from workbench.config import presets as preset_names
from workbench.runs.store import Run, find_runs, open_run, runs_root


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
    from workbench.config import from_dict, parse_overrides, to_dict
    from workbench.evaluation.suite import score

    run = open_run(command.run)
    changes = parse_overrides(f"sampling.{change.removeprefix('sampling.')}" for change in command.overrides)
    tree = to_dict(run.config)
    settings = from_dict({**tree, "sampling": {**tree["sampling"], **changes.get("sampling", {})}}).sampling
    step = run.checkpoint(command.step).step
    console = Console()
    with bars(console) as update:
        records = score(run, step, settings, lambda done, total: update("generate", done, total))
    table = Table("metric", "value", "95 % interval", "real images", "n")
    for r in records:
        interval = f"{r['low']:.3f} .. {r['high']:.3f}" if "low" in r else ""
        floor = f"{r['floor']:.4g}" if "floor" in r else ""
        table.add_row(r["metric"], f"{r['value']:.4g}", interval, floor, str(r["n_generated"]))
    console.print(table)


def compare(command) -> None:
    """What scores of runs support, in a table and in words."""
    from workbench.evaluation.compare import compare as compared

    runs = [open_run(reference) for reference in command.runs]
    found = compared(runs, metrics=command.metric, step=command.step, force=command.force)
    console = Console()
    for number, group in enumerate(found.groups):
        seeds = ", ".join(map(str, group.runs))
        console.print(f"{group.label}: seeds {seeds}{'' if number else ' (baseline)'}", soft_wrap=True, highlight=False)
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("metric", "step", "run", "difference", "95 % interval", "Holm's p"):
        table.add_column(name, no_wrap=name != "run")
    for row in found.rows:
        table.add_row(*_compared(row))
    console.print(table)
    how: dict[str, list[str]] = {}
    for metric, measured in found.how.items():
        shown = {k: v for k, v in measured.items() if k not in ("detector_hash", "reference", "layer", "t")}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
        how.setdefault(text, []).append(metric)
    lines = []
    for row in found.rows:
        values = [" ".join(f"{value:.4g}" for value in seeds.values()) for seeds in (row.first, row.second)]
        lines.append(f"{row.sentence} By seed: {row.baseline} {values[0]}, {row.other} {values[1]}.")
    lines += [f"Note: {note}." for note in found.notes]
    lines += [f"Measured with {text}: {', '.join(metrics)}." for text, metrics in how.items()]
    lines.append(
        "Differences are run - baseline by training seed; each interval is of its row alone and takes them as normal."
    )
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


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


def _compared(row) -> list[str]:
    interval = row.paired.interval
    return [
        row.metric,
        f"{row.step:,}",
        row.other,
        f"{row.paired.mean:+.3g}",
        f"{interval.low:.2g} .. {interval.high:.2g}" if interval else "",
        "" if row.adjusted is None else f"{row.adjusted:.2g}",
    ]


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
