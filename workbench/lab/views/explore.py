"""Scatter plot, measures and token maps of a run in one linked view."""

from collections.abc import Sequence

from workbench.config import DataConfig
from workbench.features.grid import LABELS
from workbench.lab.measured import heat_pane, scales_of
from workbench.lab.progress import Report, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, snippet
from workbench.lab.sources import RunLike, choose_measured
from workbench.lab.view import View
from workbench.lab.views.embedding import Scattered, check_methods, mapped_rows
from workbench.lab.views.maps import SHORTEN, check_components, check_maps_fit, maps_pane, start_of
from workbench.lab.views.separability import measured
from workbench.runs.weak import WeakLike


def explore(
    run: RunLike,
    images: int | Sequence[int] = 600,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    stops: Sequence[float] = (0.0, 1.0, 5.0, 15.0, 30.0),
    methods: Sequence[str] = ("pca",),
    step: int | None = None,
    mapped: int | Sequence[int] = 6,
    objects: int | None = None,
    components: int = 8,
    seed: int = 0,
    data: DataConfig | None = None,
    page_mb: float = PAGE_MB,
    pictures: bool = True,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """The scatter of `wb.embedding`, token maps of `wb.maps` and heat maps of `wb.separability` in one view.

    All three share the sliders, and all measures are of the features with the true label (other labels: `wb.leakage`).
    kNN is leave-one-out in the plot, its table and the heat maps. A lasso in the plot shows its images, and with "all
    images" the token maps of those that are mapped. A click on a cell of the heat maps sets layer, t and w, a click on
    a token shows what is like it.

    Args:
        run: A run, its folder or its name.
        images: Number of images, balanced over the classes, or row numbers.
        layers: Layers; by default four, evenly spread.
        times: Noise levels t in 0..1.
        stops: Guidance scales at which measures, kNN and embeddings are computed; 0 and 1 are added.
        methods: Any of "pca", "tsne" and "umap".
        step: Training step of the checkpoint; the last by default.
        mapped: Number of images with token maps (the first ones), or their row numbers.
        objects: Number of images on which object and background are measured, as of `wb.separability`.
        components: Number of principal components in the basis.
        seed: Seed of noise, splits and methods.
        data: Image set, for an imported run.
        page_mb: Largest size of the page, in megabytes.
        pictures: Whether to show what the model was given and what it predicts, as of `wb.maps`; at the `stops`.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As these three.

    Examples:
        >>> view = wb.explore(wb.zoo("guided"), images=100, layers=[8], times=[0.5], stops=[0.0, 1.0, 10.0], mapped=2)
        >>> view.save_html("explore.html").name
        'explore.html'
    """
    given = dict(locals())
    check_components(components)
    subject = choose_measured(given)
    shown, scales = mapped_rows(subject, mapped), scales_of(stops, "stops")
    check_methods(subject, methods, scales)
    check_maps_fit(subject.of(shown), components, page_mb, f"images, mapped, {SHORTEN}")
    with reported(progress) as report:
        grids = subject.grids(report, "features", tuple(LABELS), pooling="mean")
        scatter = Scattered(subject, grids, scales, seed).pane(methods, report)
        right = {"true": scatter.arrays["correct"][0, 0]}
        heat = heat_pane(measured(subject, grids[0][0], scales, objects, seed, report), right=right)
        numbers = [subject.rows.index(row) for row in shown]
        predicted = sorted(scales, key=lambda scale: scale != 1) if pictures else ()
        beside = (scatter, heat)
        maps = maps_pane(subject.of(shown), components, report, page_mb, beside, numbers, stops=predicted)
    panes = [scatter, maps, heat]
    axes = subject.axes((min(scales), max(scales)), scales) | {"image": subject.image_axis(shown)}
    start = start_of(subject) | {"method": methods[-1]}
    title = f"Features of {subject.titles[0]}{subject.against}"
    return bounded_view(
        title,
        panes,
        axes,
        page_mb=page_mb,
        shorten=f"images, mapped, {SHORTEN}",
        snippet=snippet(explore, run, given),
        made=subject.made,
        start=start,
    )
