"""The lens as a view: what the model would draw if it stopped at a layer, with sliders for noise level and image."""

from collections.abc import Sequence
from typing import Literal

from workbench.config import DataConfig
from workbench.lab.lens import lens
from workbench.lab.progress import Report
from workbench.lab.snippets import PAGE_MB, snippet
from workbench.lab.sources import RunLike
from workbench.lab.view import View
from workbench.runs.weak import WeakLike


def lens_view(
    run: RunLike,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    tuned: bool = True,
    images: int = 6,
    fit: int = 150,
    held: int = 50,
    label: Literal["true", "null"] = "true",
    w: float | int = 1.0,
    weak: WeakLike = None,
    step: int | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
    page_mb: float = PAGE_MB,
    progress: Report | None = None,
) -> View:
    """What the model would draw if it stopped at a layer: `wb.lens` with sliders, also as a page.

    A column for each layer, beside what the model was given and the image; a row for the raw and one for the tuned
    lens. Below each picture stands the mean squared error of the predicted clean latent, over all held-out images.

    Args:
        run: The run, or its name or folder.
        layers: Layers, counted from 1; 0 is the patch embedding. By default up to nine, evenly spaced.
        times: Noise levels t in 0..1.
        tuned: Fit the tuned lens too.
        images: Number of images to show, of the held-out ones, balanced over the classes.
        fit: Number of images to fit on, the first of the training set.
        held: Number of held-out images, the next ones.
        label: "true" for f_c or "null" for f_u.
        w: Guidance scale of the features, f_u + w (f_c - f_u), Eq. 3. The lenses are those of w = 1.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`.
        step: Training step; the last by default.
        data: The image set, if it is not the run's own; required for an imported run.
        seed: Seed of the noise.
        page_mb: Largest size of the page, in megabytes; pictures get smaller to fit.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As `wb.lens`, and for a page that is too large.

    Examples:
        >>> view = wb.lens_view(wb.zoo("guided"), layers=[4, 12], times=[0.5], images=2, fit=20, held=4)
        >>> view.save_html("lens.html").name
        'lens.html'
    """
    given = dict(locals())
    seen = lens(
        run,
        layers,
        times,
        tuned=tuned,
        images=images,
        fit=fit,
        held=held,
        label=label,
        w=w,
        weak=weak,
        step=step,
        data=data,
        seed=seed,
        progress=progress,
    )
    return seen.view(page_mb, snippet(lens_view, run, given))
