"""Commands that list runs and carry them in and out: runs, import, export, presets."""

from rich.console import Console
from rich.table import Table

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
