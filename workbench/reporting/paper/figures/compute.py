"""Beyond the paper: the score against the total cost of training, guiding model included.

The score against the total training time, including that of the guiding model. The paper counts only the student's
epochs.

Look for the method that is lowest at a given time, not at a given step.

Curves are not extrapolated beyond their last score.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.costs import seconds_at, teacher_seconds
from workbench.reporting.paper.runs import MAIN, FoundRuns, presets_of, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery
from workbench.reporting.paper.series import Series, series_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of

METHODS = ("plain", "vae", "repa", "layersync", "sra", "dispersive", "guided")


@timed
def compute(
    scale: str = "laptop",
    seeds: Sequence[int] = MAIN,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Frechet distance against training seconds, guiding model included; `evaluate` computes missing scores."""
    found = runs_of(scale, presets_of(scale, (*METHODS, "teacher")), seeds, root, overrides)
    shown = {method: found.runs[method] for method in METHODS if method in found.runs}
    scores = series_of(shown, "fid", detector=DETECTORS[scale], query=ScoreQuery(evaluate=evaluate))
    spent = {method: _spent(found, scores, method) for method in shown if method in scores.values}
    curves = [scores.curve(m, style.NAMES[m], m, {s: spent[m][s][0] for s in spent[m]}) for m in spent]
    axes = ("training seconds, guiding model included", f"{scores.name} (lower is better)")
    draw = partial(style.lines, curves, *axes, width=style.PAGE, floor=scores.floor)
    return Artifact(
        name="compute",
        title="Score against total compute",
        caption=(
            f"Frechet distance of every scored step against training seconds, which for the guided model include those "
            f"of its guiding model ({found.models}; each step counts as the median of its phase, in the fastest "
            f"seed): {scores.how}. Means with 95 % t intervals over seeds."
        ),
        figures={"compute": draw()} if spent else {},
        alts={"compute": _alt(scores, spent)} if spent else {},
        tables={"compute": _table(scores, spent)} if spent else {},
        claims=(_claim(scores, spent),),
        runs=distinct(found.all),
        missing=(*found.missing, *scores.missing),
    )


def _spent(found: FoundRuns, scores: Series, method: str) -> dict[int, tuple[float, float]]:
    """By step, training seconds with the teacher's, and the teacher's."""
    runs = list(found.runs[method].values())
    before = teacher_seconds(runs[0], list(found.runs.get("teacher", {}).values()))
    steps = list(scores.values[method])
    own = seconds_at(runs, steps)
    return {step: (float(seconds) + before, before) for step, seconds in zip(steps, own, strict=True)}


def _table(scores: Series, spent: Mapping[str, Mapping[int, tuple[float, float]]]) -> Table:
    columns = (
        Column("model"),
        Column("step", "count"),
        Column("whole", "number", "seconds"),
        Column("of it the guiding model", "number", "seconds"),
        Column(scores.name, "number", "mean"),
        Column("95 % interval", "text", "over seeds"),
        Column("seeds", "count"),
    )
    lines = []
    for method, by_step in spent.items():
        for step, number in scores.points(method):
            times = (Number(value, 1) for value in by_step[step])
            lines.append((style.NAMES[method], step, *times, number, number.interval, number.n))
    return Table(f"The points of the figure. {scores.how}.", columns, rows_of(lines))


def _claim(scores: Series, spent: Mapping[str, Mapping[int, tuple[float, float]]]) -> Claim:
    """Guided against plain at the guided run's total cost, by seed; plain's curve is interpolated, not extrapolated."""
    text = "Self-Transcendence is better than plain training at equal total compute"
    guided, plain = scores.values.get("guided", {}), scores.values.get("plain", {})
    if "guided" not in spent or "plain" not in spent:
        return claim(text, {}, {}, lower=True, of=scores.name, names=("plain", "ours"))
    last, (cost, _) = max(spent["guided"].items())
    times = [seconds for seconds, _ in spent["plain"].values()]
    if cost > max(times):
        ratio = cost / max(times)
        confidence = f"The guided run with its teacher took {ratio:.2f} times as long as the plain one."
        return Claim(text, "inconclusive: plain was not trained as long", confidence)
    base = {}
    for seed in guided[last]:
        points = sorted((spent["plain"][step][0], values[seed]) for step, values in plain.items() if seed in values)
        if points and points[0][0] <= cost <= points[-1][0]:
            base[seed] = float(np.interp(cost, *np.array(points).T))
    other = {seed: guided[last][seed] for seed in base}
    return claim(text, base, other, lower=True, of=scores.name, names=("plain", "ours"))


def _alt(scores: Series, spent: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    parts = []
    for method, by_step in spent.items():
        values = scores.values[method][max(by_step)]
        parts.append(
            f"{style.NAMES[method]} {sum(values.values()) / len(values):.3g} after {by_step[max(by_step)][0]:.0f} s"
        )
    return f"{scores.name} against training seconds: {', '.join(parts) or 'nothing was scored'}."
