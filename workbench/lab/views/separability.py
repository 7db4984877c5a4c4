"""Class separability of features over layer, time and guidance scale."""

import warnings
from collections.abc import Sequence

from workbench.config import DataConfig, backbone_sizes
from workbench.evaluation.measures import MeasureGrid, measure_grid, measure_objects
from workbench.evaluation.objects import FEWEST_IMAGES
from workbench.features.grid import LABELS, FeatureGrid
from workbench.lab.measured import heat_pane, scales_of
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, snippet
from workbench.lab.sources import RunLike, Subject, choose_measured, tokens_of
from workbench.lab.view import View
from workbench.lab.views.embedding import mapped_rows
from workbench.lab.views.maps import SHORTEN, check_components, check_maps_fit, maps_pane, start_of
from workbench.runs.weak import WeakLike

SCALES = (0.0, 1.0, 5.0, 10.0, 30.0)
_OBJECT_IMAGES, _OBJECT_BYTES = 200, 4_000_000_000
_LAYERS = 7  # default number of rows of the heat maps


def separability(
    run: RunLike,
    images: int | Sequence[int] = 1000,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
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
    """Heat maps of every measure of `wb.measure_grid`, layer by t and layer by w, with the token maps of a cell.

    Measures are of mean tokens: with the null, the true and a wrong label (by the true and by the given classes), and
    with the label over noise; with 95 % intervals where there are any. A click on a cell sets layer, t and w of the
    token maps. If the images have masks, the measures of `wb.measure_objects` are among them: how well tokens on the
    object separate from its background. The first call takes minutes; everything is cached beside the run.

    Args:
        run: A run, its folder or its name.
        images: Number of images, balanced over the classes, or row numbers.
        layers: Layers; by default seven, evenly spread.
        times: Noise levels t in 0..1.
        scales: Guidance scales w.
        step: Training step of the checkpoint; the last by default.
        mapped: Number of images with token maps (the first ones), or their row numbers.
        objects: Number of images on which object and background are measured (the first ones); by default up to 200 if
            the images have masks. 0 is none.
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
        >>> view = wb.separability(
        ...     wb.zoo("guided"), images=100, layers=[4, 8], times=[0.5], scales=[0.0, 1.0, 10.0], mapped=2
        ... )
        >>> view.save_html("separability.html").name
        'separability.html'
    """
    given = dict(locals())
    check_components(components)
    subject = choose_measured(given, _LAYERS)
    shown, stops = mapped_rows(subject, mapped), scales_of(scales)
    check_maps_fit(subject.of(shown), components, page_mb, f"mapped, {SHORTEN}")
    with reported(progress) as report:
        ((features,),) = subject.grids(report, "features", tuple(LABELS), pooling="mean")
        heat = heat_pane(measured(subject, features, scales, objects, seed, report))
        maps = maps_pane(subject.of(shown), components, report, page_mb, (heat,))
    axes = subject.axes((min(stops), max(stops)), stops) | {"image": subject.image_axis(shown)}
    title = f"Separability of the classes in {subject.titles[0]}{subject.against}"
    return bounded_view(
        title,
        [heat, maps],
        axes,
        page_mb=page_mb,
        shorten=f"mapped, {SHORTEN}",
        snippet=snippet(separability, run, given),
        made=subject.made,
        start=start_of(subject) | {"version": "true"},
    )


def measured(
    subject: Subject, features: FeatureGrid, scales: Sequence[float], objects: int | None, seed: int, report: Report
) -> MeasureGrid:
    """All measures at these scales, in this process: child processes would import a script's main module again."""
    pieces = len(features.layers) * len(features.times) * (len(scales) + 1)
    counted = part_of(report, "measures", 0, 1, pieces)
    few = min(20, max(1, len(features.rows) // 4))
    grid = measure_grid(features, scales=scales, seed=seed, neighbours=few, processes=1, progress=counted)
    if objects is not None:
        return grid.joined(_objects(subject, objects, scales, seed, report), "objects") if objects else grid
    if subject.images.has_masks:
        try:
            return grid.joined(_objects(subject, _object_images(subject), scales, seed, report), "objects")
        except ValueError as error:  # such as objects smaller than a token: the other measures are shown without them
            warnings.warn(f"object and background were not measured: {error}", stacklevel=2)
    return grid


def _objects(subject: Subject, count: int, scales: Sequence[float], seed: int, report: Report) -> MeasureGrid:
    """Measures of object and background on the first images; ValueError if they have no masks."""
    chosen = subject.of(subject.rows[:count])
    shares = chosen.shares()
    ((tokens,),) = chosen.grids(report, "features of objects", tuple(LABELS))
    counted = part_of(report, "measures of objects", 0, 1, len(tokens.layers) * len(tokens.times) * (len(scales) + 1))
    return measure_objects(tokens, shares, scales=scales, seed=seed, processes=1, progress=counted)


def _object_images(subject: Subject) -> int:
    """Images that object and background are measured on by default, so that the cache of their tokens stays small."""
    (run,) = subject.runs
    width = backbone_sizes(run.config.backbone.name)[run.config.backbone.options["size"]].width
    each = 4 * tokens_of(run) * width * len(subject.layers) * len(subject.times) * len(LABELS)
    return min(_OBJECT_IMAGES, len(subject.rows), max(FEWEST_IMAGES, _OBJECT_BYTES // each))
