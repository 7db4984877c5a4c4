"""Line charts of the notebooks: measures over training, over guidance and between runs."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from workbench.config import refuse_unknown
from workbench.data.images import load_images
from workbench.evaluation.leakage import VERSIONS
from workbench.evaluation.measures import ENDS, OBJECTS, measure_grid, measure_objects
from workbench.evaluation.metrics import get_metric
from workbench.evaluation.probe import linear_probe
from workbench.evaluation.suite import score
from workbench.features.extract import extract
from workbench.features.grid import LABELS, real_numbers
from workbench.features.masks import object_shares
from workbench.lab import palette
from workbench.lab.measured import MEASURES, chance_levels
from workbench.lab.measured import VERSIONS as NAMES
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.sources import choose_rows
from workbench.lab.view import ENDINGS, checked_path
from workbench.reporting.figures import LOOK, score_curves, styles
from workbench.runs.models import check_null_class
from workbench.runs.store import Run
from workbench.runs.weak import WeakLike, check_weak, find_weak

_SHARES = ("knn", "lda")
_LINE = 36  # characters that fit beside an axis
# Versions of the measures of objects, and the version of the others whose colour they have.
_OF_OBJECTS = {"null": "null", "true": "true", "wrong": "wrong_by_true", "label_only": "label_only"}


class Chart:
    """A figure on white, also on dark pages, where not all colours of the palette could be seen; grey text and axes."""

    def __init__(self, figure: Figure):
        self.figure = figure
        for text in figure.findobj(Text):
            if text.get_color() in ("black", "k"):
                text.set_color(palette.GREY)
        for axis in figure.axes:
            axis.tick_params(which="both", colors=palette.GREY)
            axis.spines[:].set_color(palette.GREY)
            axis.grid(color=palette.GREY, alpha=0.25)

    def save(self, file: str | Path) -> Path:
        """Write the figure as PNG, SVG or PDF on white; return the path. ValueError for another ending."""
        path = checked_path(file, ENDINGS)
        self.figure.savefig(path, facecolor="white", dpi=200)
        return path

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


def probe_over_training(
    run: Run,
    layers: Sequence[int] = (0, 2, 4, 6, 8, 10, 12),
    t: float = 0.5,
    images: int = 600,
    seed: int = 0,
    progress: Report | None = None,
) -> Chart:
    """Linear-probe accuracy of mean tokens by layer, with the null label; one line per checkpoint.

    Bands are 95 % Wilson intervals over held-out images; of more than three lines, only the first and last have one.

    Args:
        run: The run.
        layers: Layers, counted from 1; 0 is the patch embedding.
        t: Noise level in 0..1.
        images: Number of images.
        seed: Seed of noise and splits.
        progress: Called with (stage, done, total).

    Returns:
        A ``Chart`` with a matplotlib ``figure``; ``save(file)`` writes PNG, SVG or PDF.

    Raises:
        ValueError: As `wb.extract`, and for too few images to split.

    Examples:
        >>> chart = wb.probe_over_training(wb.zoo("guided"), layers=[4, 8], images=100)
        >>> chart.save("probe.png").name
        'probe.png'
    """
    shown = {f"step {checkpoint.step:,}": (run, checkpoint.step) for checkpoint in run.checkpoints}
    colours = colormaps["viridis"](np.linspace(0.15, 0.85, len(shown)))
    looks = [{"color": colour, "marker": "o"} for colour in colours]
    return _probes(shown, looks, f"layer of {run.config.name}", layers, t, images, seed, progress)


def probe_of_runs(
    runs: Mapping[str, Run],
    step: int | None = None,
    layers: Sequence[int] = (0, 2, 4, 6, 8, 10, 12),
    t: float = 0.5,
    images: int = 1000,
    seed: int = 0,
    progress: Report | None = None,
) -> Chart:
    """Linear-probe accuracy of mean tokens by layer, with the null label; one line per run.

    All runs get the same images with the same noise.

    Args:
        runs: Runs by their name in the legend.
        step: Training step of the checkpoints; the last of each run by default.
        layers: Layers, counted from 1; 0 is the patch embedding.
        t: Noise level in 0..1.
        images: Number of images.
        seed: Seed of noise and splits.
        progress: Called with (stage, done, total).

    Returns:
        A ``Chart``, as `wb.probe_over_training` returns it.

    Raises:
        ValueError: As `wb.probe_over_training`.

    Examples:
        >>> runs = {"plain": wb.zoo("plain"), "guided": wb.zoo("guided")}
        >>> wb.probe_of_runs(runs, layers=[4, 8], images=100).save("runs.png").name
        'runs.png'
    """
    steps = {name: run.checkpoint(step).step for name, run in runs.items()}
    shown = {f"{name}, step {steps[name]:,}": (run, steps[name]) for name, run in runs.items()}
    return _probes(shown, list(styles(runs).values()), "layer", layers, t, images, seed, progress)


def versions_over_guidance(
    run: Run,
    layer: int = 8,
    t: float = 0.5,
    images: int = 600,
    scales: Sequence[float] = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0),
    measure: str = "knn",
    seed: int = 0,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> Chart:
    """A measure of f_u + w (f_c - f_u), Eq. 3, over w: with the null, true and wrong label, and the label over noise.

    The wrong label is measured by the true and by the given classes. The line of the null label is flat, because it
    does not depend on w. With `weak` it is f_weak + w (f - f_weak), where both have the same label.

    Args:
        run: The run.
        layer: Layer, counted from 1.
        t: Noise level in 0..1.
        images: Number of images.
        scales: Guidance scales w.
        measure: A measure of `wb.measure_grid` or, for images with masks, of `wb.measure_objects` that exists for all
            label modes, such as "knn" or "object_auc".
        seed: Seed of noise and splits.
        weak: A weak model to guide against instead of the null label: another run, a step of this run, or both, as
            (run, step) or "RUN@STEP".
        progress: Called with (stage, done, total).

    Returns:
        A ``Chart``, as `wb.probe_over_training` returns it.

    Raises:
        ValueError: As `wb.extract`, `wb.measure_grid` and `wb.measure_objects`, for a measure without label modes, and
            for a measure of objects on images without masks.

    Examples:
        >>> chart = wb.versions_over_guidance(wb.zoo("guided"), images=100, scales=[0.0, 1.0, 10.0])
        >>> chart.save("versions.png").name
        'versions.png'
    """
    check_null_class(run, "the null label is one of the versions")
    refuse_unknown("measure", measure, MEASURES)
    scales = real_numbers("scales", scales)
    against = None if weak is None else find_weak(weak, run)
    of_objects, rows = measure.startswith(OBJECTS), _rows(run, images)
    shares = object_shares(run, rows) if of_objects else None
    with reported(progress) as report:
        counted = part_of(report, "features", 0, 1, images * len(LABELS))
        features = extract(
            run,
            rows,
            (layer,),
            (t,),
            labels=tuple(LABELS),
            pooling="tokens" if of_objects else "mean",
            seed=seed,
            root=run.folder.parent,
            progress=counted,
            weak=weak,
        )
        counted = part_of(report, "measures", 0, 1, len(scales) + 1)
        few = min(20, max(1, images // 4))
        if shares is None:
            grid = measure_grid(features, scales=scales, neighbours=few, seed=seed, processes=1, progress=counted)
        else:
            grid = measure_objects(features, shares, scales=scales, seed=seed, processes=1, progress=counted)
    figure, axis = _figure()
    for name, looks_as in (_OF_OBJECTS if of_objects else dict(zip(VERSIONS, VERSIONS, strict=True))).items():
        level = grid.array(measure, name)[0, 0]
        label = NAMES.get(name, "wrong label")
        axis.plot(grid.scales, np.broadcast_to(level, len(grid.scales)), label=label, **palette.VERSIONS[looks_as])
    for level in chance_levels(grid, [measure]).values():
        axis.axhline(level, color=palette.GREY, linewidth=1, label="chance")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks(grid.scales, [f"{scale:g}" for scale in grid.scales])
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(grid.scales) - 0.15)
    name = f"{MEASURES[measure]} accuracy" if measure in _SHARES else MEASURES[measure]
    about = f"layer {layer}, t = {t:g}, {run.config.name}{f' against {against.text}' if against else ''}"
    return _finished(figure, axis, f"w ({about})", name)


def objects_over_training(
    run: Run,
    measure: str = "object_auc_same_place",
    layer: int = 8,
    t: float = 0.5,
    scales: Sequence[float] = (0.0, 1.0, 5.0, 10.0, 30.0),
    images: int = 200,
    seed: int = 0,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> Chart:
    """A measure of object against background over training: one line for each w of f_u + w (f_c - f_u), Eq. 3.

    With `weak` the features are f_weak + w (f - f_weak); an own step of the run that is the weak model has no point.

    Bands are 95 % bootstrap intervals over images; of more than three lines, only the first and last have one.

    Args:
        run: A run whose images have masks.
        measure: A measure of `wb.measure_objects` of the true label.
        layer: Layer, counted from 1.
        t: Noise level in 0..1.
        scales: Guidance scales w; 0 is f_u.
        images: Number of images.
        seed: Seed of noise, splits and resamples.
        weak: A weak model to guide against instead of the null label, as of `wb.versions_over_guidance`.
        progress: Called with (stage, done, total).

    Returns:
        A ``Chart``, as `wb.probe_over_training` returns it.

    Raises:
        ValueError: As `wb.extract` and `wb.measure_objects`, and for images without masks.

    Examples:
        >>> small = ["data.name=scenes", "data.size=32", "data.limit=100", "vae.name=identity", "backbone.patch=4"]
        >>> small += ["backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> run = wb.trained(wb.load_config("demo/plain", small), progress=lambda stage, done, total: None)
        >>> wb.objects_over_training(run, images=20).save("objects.png").name
        'objects.png'
    """
    against = None if weak is None else find_weak(weak, run)
    steps = [checkpoint.step for checkpoint in run.checkpoints]
    check_null_class(run, "features are compared with those of the null label")
    if against is not None:
        if against.run.fingerprint == run.fingerprint:
            steps = [step for step in steps if step != against.step]
        check_weak(run, steps, against, (layer,))
    rows = _rows(run, images)
    shares = object_shares(run, rows)
    labels, root, grids = ("null", "true"), run.folder.parent, []
    with reported(progress) as report:
        for number, step in enumerate(steps):
            counted = part_of(report, "features", number, len(steps), images * len(labels))
            features = extract(run, rows, (layer,), (t,), step=step, labels=labels, seed=seed, root=root,
                               progress=counted, weak=weak)  # fmt: skip
            counted = part_of(report, "measures", number, len(steps), len(scales) + 1)
            grids.append(measure_objects(features, shares, scales=scales, seed=seed, processes=1, progress=counted))
    figure, axis = _figure()
    colours = colormaps["viridis"](np.linspace(0.15, 0.85, len(scales)))
    values, low, high = (np.stack([grid.array(measure, "true", of)[0, 0] for grid in grids]) for of in ENDS)
    for number, (scale, colour) in enumerate(zip(grids[0].scales, colours, strict=True)):
        axis.plot(steps, values[:, number], color=colour, marker="o", label=f"w = {scale:g}")
        if len(scales) <= 3 or number in (0, len(scales) - 1):  # more bands would overlap
            axis.fill_between(steps, low[:, number], high[:, number], color=colour, alpha=0.15, linewidth=0)
    for level in chance_levels(grids[-1], [measure]).values():
        axis.axhline(level, color=palette.GREY, linewidth=1, label="chance")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    about = f"layer {layer}, t = {t:g}{f', against {against.text}' if against else ''}"
    return _finished(figure, axis, f"training step of {run.config.name} ({about})", MEASURES[measure])


def scores_over_training(
    runs: Mapping[str, Run],
    metric: str = "fd-clf64",
    against: Literal["step", "compute"] = "step",
    progress: Report | None = None,
) -> Chart:
    """A score of each run at every checkpoint, with the floor of real images; missing scores are computed first.

    Samples are drawn with the sampling options of each run's configuration.

    Args:
        runs: Runs by their name in the legend.
        metric: Name of the score, such as "fd-clf64".
        against: "step", or "compute" for training time; "guided" then includes the training time of "teacher".
        progress: Called with (stage, done, total).

    Returns:
        A ``Chart``, as `wb.probe_over_training` returns it.

    Raises:
        ValueError: For a score that does not exist, and as `wb.score`.

    Examples:
        >>> chart = wb.scores_over_training({"plain": wb.zoo("plain"), "guided": wb.zoo("guided")})
        >>> chart.save("scores.png").name
        'scores.png'
    """
    get_metric(metric)  # before anything is scored
    if against == "compute" and "guided" in runs and "teacher" not in runs:
        raise ValueError(
            f"got the runs {', '.join(runs)}; the compute of guided includes its teacher's seconds: add teacher"
        )
    jobs = [(run, checkpoint.step) for run in runs.values() for checkpoint in run.checkpoints]
    with reported(progress) as report:
        for number, (run, step) in enumerate(jobs):
            score(run, step, run.config.sampling, small_ok=True)
            report("scores", number + 1, len(jobs))
    return Chart(score_curves(runs, metric, against))


def _probes(
    shown: Mapping[str, tuple[Run, int]],
    styles: Sequence[Mapping[str, Any]],
    name: str,
    layers: Sequence[int],
    t: float,
    images: int,
    seed: int,
    progress: Report | None,
) -> Chart:
    """One line with its band for each run and step."""
    if not shown:
        raise ValueError("there are no runs; allowed are one or more, by their name in the legend")
    figure, axis = _figure()
    with reported(progress) as report:
        for number, ((label, (run, step)), style) in enumerate(zip(shown.items(), styles, strict=True)):
            counted = part_of(report, "features", number, len(shown), images)
            features = extract(
                run,
                _rows(run, images),
                layers,
                (t,),
                step=step,
                labels=("null",),
                pooling="mean",
                seed=seed,
                root=run.folder.parent,
                progress=counted,
            )
            probes = [linear_probe(features.read(layer, t), features.true, seed=seed) for layer in layers]
            (line,) = axis.plot(layers, [probe.accuracy for probe in probes], label=label, **style)
            if len(shown) <= 3 or number in (0, len(shown) - 1):  # more bands would overlap
                low, high = [probe.low for probe in probes], [probe.high for probe in probes]
                axis.fill_between(layers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axis, f"{name} (0: patch embedding), t = {t:g}", "linear probe accuracy")


def _rows(run: Run, images: int) -> list[int]:
    """Rows as the views choose them, balanced over the classes, so that their cached features are reused."""
    return choose_rows(load_images(run.config.data, "train").labels, images)


def _figure() -> tuple[Figure, Axes]:
    with rc_context(LOOK):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        return figure, figure.subplots()


def _finished(figure: Figure, axis: Axes, x: str, y: str) -> Chart:
    axis.set(xlabel=x, ylabel="\n".join(textwrap.wrap(y, _LINE)))
    wide = max(len(text) for text in axis.get_legend_handles_labels()[1]) > 25
    figure.legend(loc="outside upper center", ncols=2 if wide else 4, frameon=False)
    return Chart(figure)
