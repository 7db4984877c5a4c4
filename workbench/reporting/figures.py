"""Figures of the report: losses, scores, samples, token maps and probes of a teacher, a plain and a guided run.

Every function returns a new matplotlib ``Figure``, without windows or global state. Colours, lines and markers are
those of `workbench.lab.palette`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from workbench.evaluation.metrics import get_metric, metric_title
from workbench.evaluation.statistics import measured_alike
from workbench.lab.drawing import coloured, encoded, mosaic
from workbench.lab.palette import GREY, METHODS, look
from workbench.runs.store import Run

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_NAMED = {"teacher": METHODS["vae"], "plain": METHODS["plain"], "guided": METHODS["guided"]}

Record = Mapping[str, Any]  # a score or a logged step
Samples = Mapping[str, Mapping[int, UInt8[np.ndarray, "n c h w"]]]  # by run and step

LOOK: "dict[RcKeyType, Any]" = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Style of each run: fixed for "teacher", "plain" and "guided", other colours for other runs."""
    by_label: dict[str, dict[str, Any]] = {}
    others = 0
    for label in labels:
        by_label[label] = _NAMED.get(label) or look(len(_NAMED) + others)
        others += label not in _NAMED
    return by_label


def series(runs: Mapping[str, Run], metric: str) -> dict[str, list[Record]]:
    """Scores of each run by step, all of one protocol (`measured_alike`); runs without scores are absent."""
    records = {label: [r for r in run.results if r["metric"] == metric] for label, run in runs.items()}
    return {label: list(by_step.values()) for label, by_step in measured_alike(records).records.items()}


def total_seconds(run: Run) -> float:
    """Training time of the whole run in seconds; ValueError if nothing was logged."""
    metrics = run.metrics
    if not metrics:
        raise ValueError(f"run {run.name} has no metrics; train it first")
    return float(metrics[-1]["seconds"])


def compute_seconds(runs: Mapping[str, Run], label: str, steps: Sequence[int]) -> Float[np.ndarray, " s"]:
    """Training seconds to reach each step; for the guided run, with the full training of its teacher.

    Interpolated linearly between logged steps, from 0 at step 0.
    """
    metrics = runs[label].metrics
    known = [0, *(record["step"] for record in metrics)]
    spent = np.interp(steps, known, [0.0, *(record["seconds"] for record in metrics)])
    teacher = total_seconds(runs["teacher"]) if label == "guided" and "teacher" in runs else 0.0
    return np.asarray(spent + teacher, dtype=np.float64)


def loss_curves(runs: Mapping[str, Run]) -> Figure:
    """Denoising loss of every run over training steps and, if any run has one, the alignment loss below.

    Faint: as logged. Strong: running mean over about a twentieth of the records.
    """
    parts = [("denoise", "denoising loss")]
    if any(record["alignment"] is not None for run in runs.values() for record in run.metrics):
        parts.append(("alignment", "alignment loss"))
    looks = styles(runs)
    with rc_context(LOOK):
        figure, axes = _figure(6.0, 0.4 + 2.7 * len(parts), rows=len(parts))
        for axis, (key, name) in zip(axes, parts, strict=True):
            values = []
            for label, run in runs.items():
                records = [record for record in run.metrics if record.get(key) is not None]
                if records:
                    values += _smoothed(axis, label, looks[label], records, key)
            _finish(axis, "training step", name, values)
        axes[0].legend()
    return figure


def score_curves(runs: Mapping[str, Run], metric: str, against: Literal["step", "compute"] = "step") -> Figure:
    """One score of every run over training steps or training time, with the floor in grey.

    "compute" is the training time of the run; for the guided run, with that of its teacher. The floor is the score of
    real images against real images. ValueError for an unknown metric, or one without scores.
    """
    of = get_metric(metric)
    if against not in ("step", "compute"):
        raise ValueError(f"against is {against!r}; allowed are step and compute")
    scores = series(runs, metric)
    if not scores:
        raise ValueError(f"no run has a score {metric!r}")
    xs = {k: np.array([r["step"] for r in v], dtype=np.float64) for k, v in scores.items()}
    name = "training step"
    if against == "compute":
        xs = {k: compute_seconds(runs, k, [r["step"] for r in v]) for k, v in scores.items()}
        divisor, unit = _time_unit(max(float(x.max()) for x in xs.values()))
        xs = {k: x / divisor for k, x in xs.items()}
        name = f"training time in {unit} (guided: teacher's included)"
    with rc_context(LOOK):
        figure, (axis,) = _figure(5.0, 3.6)
        looks = styles(runs)
        values = [v for k, records in scores.items() for v in _scores(axis, k, looks[k], xs[k], records)]
        floors = {r["floor"] for records in scores.values() for r in records if r.get("floor") is not None}
        for floor in floors:
            axis.axhline(floor, color=GREY, linewidth=1.2, zorder=1, label="real vs real (floor)")
        _finish(axis, name, f"{metric_title(metric)} ({of.direction})", [*values, *floors])
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(handles.values(), handles.keys())
    return figure


def sample_grid(samples: Samples, class_names: Sequence[str]) -> Figure:
    """Samples of every method at every step (rows) from the same seeds and labels (columns).

    ``samples[label][step]`` is n c h w with c 1 or 3; ``class_names`` has n names. ValueError if the counts differ.
    """
    rows, names, colours, looks = [], [], [], styles(samples)
    for label, by_step in samples.items():
        for step, images in sorted(by_step.items()):
            if len(images) != len(class_names):
                raise ValueError(f"{label} at step {step} has {len(images)} samples for {len(class_names)} class names")
            rows.append(list(coloured(images)))
            names.append(f"{label}, {step:,}")
            colours.append(looks[label]["color"])
    if not rows:
        raise ValueError("there are no samples to show")
    return mosaic(rows, names, [_breakable(name) for name in class_names], cell=0.72, row_colours=colours)


def probe_by_layer(runs: Mapping[str, Run]) -> Figure:
    """Linear-probe accuracy by layer at the last probed step of each run, with 95 % bands."""
    with rc_context(LOOK):
        figure, (axis,) = _figure(6.0, 3.6)
        looks = styles(runs)
        for label, run in runs.items():
            records = last_probes(run)
            if not records:
                continue
            layers = [r["layer"] for r in records]
            name = f"{label}, step {records[0]['step']:,}"
            axis.plot(layers, [r["value"] for r in records], label=name, **looks[label])
            if all("low" in r and "high" in r for r in records):
                low, high = [r["low"] for r in records], [r["high"] for r in records]
                axis.fill_between(layers, low, high, color=looks[label]["color"], alpha=0.15, linewidth=0)
        if not axis.lines:
            raise ValueError("no run has probe accuracies")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="layer (0: patch embedding)", ylabel="linear probe accuracy")
        axis.legend()
    return figure


def last_probes(run: Run) -> list[dict[str, Any]]:
    """Probe records of the last probed step, by layer; the newest record of each layer."""
    probes = [r for r in run.results if r["metric"] == "probe"]
    last = max((r["step"] for r in probes), default=None)
    by_layer = {r["layer"]: r for r in probes if r["step"] == last}
    return [by_layer[layer] for layer in sorted(by_layer)]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file on white, without a date, so that equal figures are equal bytes."""
    return encoded([figure], "png", 170, tight=False)


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def _smoothed(axis: Axes, label: str, style: Mapping[str, Any], records: Sequence[Record], key: str) -> list[float]:
    steps, values = [r["step"] for r in records], np.array([r[key] for r in records], dtype=np.float64)
    reach = len(values) // 40
    means = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
    axis.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
    axis.plot(steps, means, label=label, markevery=max(1, len(values) // 8), **style)
    return values.tolist()


def _scores(axis: Axes, label: str, style: Mapping[str, Any], xs: np.ndarray, records: Sequence[Record]) -> list[float]:
    values = [float(r["value"]) for r in records]
    axis.plot(xs, values, label=label, zorder=3, **style)
    for x, record in zip(xs, records, strict=True):
        if record.get("low") is not None and record.get("high") is not None:
            axis.plot([x, x], [record["low"], record["high"]], color=style["color"], linewidth=1.2)
    return values


def _finish(axis: Axes, x: str, y: str, values: Sequence[float | int]) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _time_unit(seconds: float) -> tuple[float, str]:
    units = [(3600.0, "hours"), (60.0, "minutes")]
    return next(((size, name) for size, name in units if seconds >= 3 * size), (1.0, "seconds"))


def _breakable(name: str) -> str:
    return name.replace("/", "/ ").replace(", ", ",\n")
