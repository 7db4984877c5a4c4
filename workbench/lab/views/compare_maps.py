"""Token maps of several runs and targets side by side."""

from collections.abc import Sequence

from workbench.config import DataConfig
from workbench.lab.progress import Report
from workbench.lab.snippets import snippet
from workbench.lab.sources import RunLike, Steps, check_grids, choose
from workbench.lab.view import View
from workbench.lab.views.maps import MAPS_MB, NINE_TIMES, SHORTEN, layers_that_fit, maps_view
from workbench.runs.weak import WeakLike


def compare_maps(
    runs: Sequence[RunLike],
    images: int | Sequence[int] = 6,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = NINE_TIMES,
    steps: Steps = None,
    w: tuple[float, float] = (0.0, 30.0),
    components: int = 8,
    data: DataConfig | None = None,
    page_mb: float = MAPS_MB,
    pictures: bool = True,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """Token maps of runs and alignment targets side by side, on the same images and noise.

    Targets are computed for the first run: "vae" (the latent), "effnet-lite0" and "dinov2-s|b|l|g" (image encoders),
    "layersync" (a deeper layer of the run) and "sra" (its EMA model at a less noisy time). They do not depend on the
    layer or on w. Each run and target has its own basis, whose first three directions are Procrustes-aligned with the
    first run's on the same tokens. A click on a token shows, in each column, its similarity to the tokens of that run
    or target; features of two runs are not compared with each other. What each run predicts stands beside the image.

    Args:
        runs: Runs, their folders or names, and names of targets; at least two in all, one of them a run.
        images: Number of images, one of each class in turn, or row numbers.
        layers: Layers; by default all of a small model, else as many as the page has room for.
        times: Noise levels t in 0..1.
        steps: Training steps of the checkpoints, or "all" that the runs have in common; the last of these by default.
        w: Range of the guidance scale.
        components: Number of principal components in each basis.
        data: Image set, for imported runs.
        page_mb: Largest size of the page, in megabytes.
        pictures: Whether to show what the models were given and what they predict, as of `wb.maps`.
        weak: Weak model of all runs to guide against, as of `wb.maps`; a step is each run's own.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As `wb.maps`, and for runs that were trained on different images or have different grids of tokens.

    Examples:
        >>> view = wb.compare_maps([wb.zoo("plain"), "vae"], images=2, layers=[8], times=[0.5])
        >>> view.save_html("compare.html").name
        'compare.html'
    """
    given = dict(locals())
    room = layers_that_fit(page_mb, components)
    subject = choose(runs, images=images, layers=layers, times=times, steps=steps, data=data, weak=weak, room=room)
    if len(subject.titles) < 2:
        raise ValueError(f"got {subject.titles[0]} alone; a comparison needs a run and at least one other, or a target")
    check_grids(subject)
    code = snippet(compare_maps, runs, given)
    return maps_view(subject, w, components, pictures, page_mb, f"runs, {SHORTEN}", code, progress)
