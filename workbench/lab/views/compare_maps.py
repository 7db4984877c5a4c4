"""Token maps of several runs and targets side by side."""

from collections.abc import Sequence

from workbench.config import DataConfig
from workbench.lab.progress import Report, reported
from workbench.lab.recipes import PAGE_MB, check_page, recipe
from workbench.lab.sources import RunLike, Steps, choose
from workbench.lab.view import View
from workbench.lab.views.maps import NINE_TIMES, SHORTEN, maps_pane, room_of_page, view_of


def compare_maps(
    runs: Sequence[RunLike],
    images: int | Sequence[int] = 6,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = NINE_TIMES,
    steps: Steps = None,
    w: tuple[float, float] = (0.0, 30.0),
    components: int = 8,
    data: DataConfig | None = None,
    page_mb: float = PAGE_MB,
    progress: Report | None = None,
) -> View:
    """Token maps of runs and alignment targets side by side, on the same images and noise.

    Targets are of the first run's images and shape: "vae" (the latent), "effnet-lite0", "dinov2-s|b|l|g" (image
    encoders), "layersync" (the run's own deeper layer), "sra" (its EMA model at a less noisy time); they are the same
    at every layer, and w has no meaning for them. Each has a basis of its own, whose first three directions are rotated
    onto the first run's by Procrustes on the same tokens.

    Args:
        runs: Runs (folders, names), and names of targets; the first is a run.
        images: As in `wb.maps`, like all that follow.
        layers: Layers.
        times: Noise levels t in 0..1.
        steps: Steps of checkpoints, or "all" that every run kept; the last common one by default.
        w: Range of the guidance scale.
        components: Directions in each basis.
        data: The image set of an imported run.
        page_mb: Largest size of the page, in megabytes.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As `wb.maps`, and for runs of other images.

    Examples:
        >>> view = wb.compare_maps([wb.zoo("plain"), "vae"], images=2, layers=[8], times=[0.5])
        >>> view.save_html("compare.html").name
        'compare.html'
    """
    given = dict(locals())
    subject = choose(
        runs,
        images=images,
        layers=layers,
        times=times,
        steps=steps,
        data=data,
        room=room_of_page(page_mb, images, components),
    )
    if len(subject.titles) < 2:
        raise ValueError(f"got {list(map(str, runs))}; a comparison needs a run and at least one other run or target")
    with reported(progress) as report:
        pane = maps_pane(subject, components, report, title=f"Token maps of {', '.join(subject.titles)}")
    check_page({"token maps": pane.arrays}, page_mb, f"runs, {SHORTEN}")
    return view_of(subject, pane, w, recipe(compare_maps, runs, given))
