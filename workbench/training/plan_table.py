"""A plan as rows of text, for a terminal and for the wizard."""

from workbench.runs.state import LIVE
from workbench.training.plan import Plan, Stage
from workbench.training.sizes import size_text
from workbench.words import duration


def table(found: Plan) -> list[tuple[str, ...]]:
    """A plan as rows of text: a heading, then a line for each quantity with a column for each stage and the total."""
    stages = found.stages
    left = [stage for stage in stages if stage.left]
    total = found.seconds
    operations = [stage.operations() for stage in left]
    rows = [
        ("", *(f"{stage.role} ({stage.config.objective.name})" for stage in stages), "in all"),
        ("run", *(_reuse(stage) for stage in stages), ""),
        ("parameters", *(_parameters_text(stage) for stage in stages), ""),
        ("memory", *(_memory_text(stage) for stage in stages), ""),
        ("a step", *(_step_text(stage) for stage in stages), ""),
        ("steps", *(_steps_text(stage) for stage in stages), f"{sum(stage.left for stage in left):,}"),
        ("time", *(duration_text(stage.seconds(stage.done)) if stage.left else "–" for stage in stages),
         duration_text(total)),
        ("arithmetic", *(operations_text(stage.operations()) for stage in stages),
         operations_text(None if None in operations else sum(operations))),
        ("disk", *(size_text(stage.disk) if stage.left else "–" for stage in stages), size_text(found.disk)),
    ]  # fmt: skip
    return rows if len(stages) > 1 else [row[:-1] for row in rows]


def notes(found: Plan) -> list[str]:
    """What the table of a plan does not say: images to encode, the device, who trains there, what stands in the way."""
    said = [f"device: {', '.join(found.devices)}" + (f", {found.processes} processes" if found.processes > 1 else "")]
    if found.encode:
        said.append(f"{found.encode:,} images are encoded first ({size_text(found.latents)})")
    loads = [stage.pace.load for stage in found.stages if stage.pace and stage.left]
    if loads and max(loads) > 0.7:
        said.append(f"measured while the machine's load was {max(loads):.1f}: alone it may be faster")
    return [*said, *found.warnings]


def duration_text(seconds: float | int | None) -> str:
    """Seconds in the unit that suits them."""
    return "not measured" if seconds is None else duration(seconds)


def operations_text(operations: float | int | None) -> str:
    """Floating-point operations with the prefix that leaves one to three digits before the point."""
    if operations is None:
        return "not measured"
    for unit, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if operations >= factor:
            return f"{operations / factor:.3g} {unit}FLOP"
    return f"{operations / 1e9:.3g} GFLOP"


def _reuse(stage: Stage) -> str:
    if stage.run is None:
        return "new"
    at = f", goes on at step {stage.done:,}" if stage.done and not stage.finished and stage.state not in LIVE else ""
    return f"{stage.run.name}: {stage.state}{', reused' if stage.finished else at}"


def _parameters_text(stage: Stage) -> str:
    heads = f" + {stage.size.heads / 1e6:.3g} M of the method" if stage.size.heads else ""
    return f"{stage.size.backbone / 1e6:.3g} M{heads}"


def _memory_text(stage: Stage) -> str:
    return f"{size_text(stage.memory)} (a real step)" if stage.pace else f"{size_text(stage.memory)} + activations"


def _step_text(stage: Stage) -> str:
    if stage.pace is None:
        return "not measured"
    aligned, plain = (_short(seconds) for seconds in (stage.pace.aligned, stage.pace.plain))
    stopped = f", {plain} after the stop" if 0 < stage.size.aligned_steps < stage.steps else ""
    return f"{aligned if stage.size.aligned_steps else plain}{stopped}"


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _steps_text(stage: Stage) -> str:
    return f"{stage.steps:,}" if not stage.done or stage.finished else f"{stage.left:,} of {stage.steps:,}"
