"""Label-leakage controls: the guided feature under four label conditions, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from workbench.config import DataConfig
from workbench.diffusion.guidance import guide
from workbench.features.grid import LABELS, FeatureGrid
from workbench.lab.coordinates import Coordinates, joint_coordinates
from workbench.lab.measured import heat_pane, scales_of
from workbench.lab.neighbours import right_by_neighbours
from workbench.lab.panes import Axis, Pane
from workbench.lab.panes.scatter import ScatterPane
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, snippet
from workbench.lab.sources import Pair, RunLike, Subject, choose_measured, tokens_of_grid
from workbench.lab.view import View
from workbench.lab.views.embedding import correct_at, mapped_rows, neighbours_of, scatter_meta
from workbench.lab.views.maps import SHORTEN, check_components, check_maps_fit, pane_of, start_of
from workbench.lab.views.separability import SCALES, measured
from workbench.runs.weak import WeakLike

# Label modes of f_u and f_c for each control.
VERSIONS = {
    "null label": ("null", "null"),
    "true label": ("null", "true"),
    "wrong label": ("null", "wrong"),
    "label only": ("noise-null", "noise-true"),
}

# The measures of each control, by the true classes and by the given labels.
MEASURED = {
    "null label": ("null", "null"),
    "true label": ("true", "true"),
    "wrong label": ("wrong_by_true", "wrong_by_given"),
    "label only": ("label_only", "label_only"),
}


def leakage(
    run: RunLike,
    images: int | Sequence[int] = 600,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    scales: Sequence[float] = SCALES,
    step: int | None = None,
    mapped: int | Sequence[int] = 6,
    objects: int | None = None,
    components: int = 8,
    seed: int = 0,
    data: DataConfig | None = None,
    page_mb: float = PAGE_MB,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """Label-leakage controls: the guided feature with the null, true and wrong label, and with the label over noise.

    Token maps have one column per control, in one basis. The scatter plot (PCA) and the heat maps show the control that
    "label" chooses, by the true classes or by the given labels: points with their kNN accuracy (leave-one-out, the same
    in the heat maps), the other measures (with those of `wb.measure_objects` if the images have masks) and the share of
    explained variance that is due to the label. In the token maps, the wrong label of an image is that of another
    mapped image. Where "label only" is above chance, the label has leaked into the feature.

    With a weak model to guide against, both models are given the label of the control, in "null label" the null label.

    Args:
        run: A run, its folder or its name.
        images: Number of images, balanced over the classes, or row numbers.
        layers: Layers; by default four, evenly spread.
        times: Noise levels t in 0..1.
        scales: Guidance scales w.
        step: Training step of the checkpoint; the last by default.
        mapped: Number of images with token maps (the first ones), or their row numbers.
        objects: Number of images on which object and background are measured, as of `wb.separability`.
        components: Number of principal components in the basis.
        seed: Seed of noise, splits and subsets.
        data: Image set, for an imported run.
        page_mb: Largest size of the page, in megabytes.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As `wb.maps`, `wb.measure_grid` and `wb.measure_objects`.

    Examples:
        >>> view = wb.leakage(
        ...     wb.zoo("guided"), images=100, layers=[8], times=[0.5], scales=[0.0, 1.0, 10.0], mapped=2
        ... )
        >>> len(view.panes)
        3
    """
    given = dict(locals())
    check_components(components)
    subject = choose_measured(given)
    shown, stops = mapped_rows(subject, mapped), scales_of(scales)
    check_maps_fit(subject.of(shown), components, page_mb, f"images, mapped, {SHORTEN}", len(VERSIONS))
    with reported(progress) as report:
        ((means,),) = subject.grids(report, "features", tuple(LABELS), pooling="mean")
        maps = _maps(subject.of(shown), components, report)
        scatter = _scatter(subject, means, stops, report)
        heat = heat_pane(
            measured(subject, means, scales, objects, seed, report),
            "Measures",
            right=_right_by_version(scatter.arrays),
            follows=list(MEASURED.values()),
        )
    panes = [maps, scatter, heat]
    hint = "Label that the network was given with the image; label only: with noise as image"
    axes = {"source": Axis("label", list(VERSIONS), hint=hint)} | subject.axes((min(stops), max(stops)), stops)
    axes |= {"image": subject.image_axis(shown)}
    title = f"Label leakage in features of {subject.titles[0]}{subject.against}"
    start = start_of(subject) | {"source": "wrong label"}
    return bounded_view(
        title,
        panes,
        axes,
        page_mb=page_mb,
        shorten=f"images, mapped, {SHORTEN}",
        snippet=snippet(leakage, run, given),
        made=subject.made,
        start=start,
    )


def _maps(subject: Subject, components: int, report: Report) -> Pane:
    ((tokens,),) = subject.grids(report, "token features", tuple(LABELS))
    pane = pane_of(subject, _coordinates(subject, tokens, components, report))
    wrong = [subject.images.classes[label] for label in tokens.given.tolist()]
    names = [f"{name}, wrong label {other}" for name, other in zip(subject.names, wrong, strict=True)]
    return replace(pane, meta={**pane.meta, "names": names, "joint": True})


def _scatter(subject: Subject, means: FeatureGrid, stops: Sequence[float], report: Report) -> Pane:
    def right(labels: np.ndarray, at: tuple[str, float, int, float]) -> np.ndarray:
        version, t, layer, w = at
        f_u, f_c = _pair(means, version, t, layer)
        return right_by_neighbours(guide(f_u, f_c, w)[:, 0], labels, neighbours_of(subject))

    shape = (len(VERSIONS), 1, len(subject.times), len(subject.layers), len(stops))
    cells = dict(enumerate(product(VERSIONS, subject.times, subject.layers, stops)))
    arrays = _coordinates(subject, means, 2, report).points
    for name, labels in (("correct", subject.labels), ("correct_given", means.given.numpy())):
        arrays[name] = correct_at(shape, cells, partial(right, labels), report)
    arrays |= {"labels": subject.labels.astype(np.uint16), "given": means.given.numpy().astype(np.uint16)}
    arrays["sprite"] = subject.thumbnails()
    return ScatterPane("Images", arrays, scatter_meta(subject))


def _right_by_version(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images that kNN classifies correctly, by the name of the measures' version."""
    right = {}
    for source, (by_true, by_given) in enumerate(MEASURED.values()):
        right[by_true] = arrays["correct"][source, 0]
        if by_given != by_true:
            right[by_given] = arrays["correct_given"][source, 0]
    return right


def _coordinates(subject: Subject, features: FeatureGrid, components: int, report: Report) -> Coordinates:
    """Coordinates of all controls, in one basis per layer."""

    def read(version: int, _: int, t: float, layer: int) -> Pair:
        return _pair(features, list(VERSIONS)[version], t, layer)

    stage = "point coordinates" if features.pooling == "mean" else "token coordinates"
    counted = part_of(report, stage, 0, 1, len(subject.layers))
    return joint_coordinates(read, (len(VERSIONS), 1), subject.times, subject.layers, components, counted)


def _pair(features: FeatureGrid, version: str, t: float, layer: int) -> Pair:
    null, conditioned = VERSIONS[version]
    first = (features, null) if features.weak is None else (features.weak, conditioned)
    return tokens_of_grid(first[0], layer, t, first[1]), tokens_of_grid(features, layer, t, conditioned)
