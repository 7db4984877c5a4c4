"""Token maps of a run, with one column per layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workbench.config import DataConfig
from workbench.features.attention import attending
from workbench.features.extract import NotFiniteFeatures
from workbench.lab.attended import attention_that_fits, stored_attention
from workbench.lab.coordinates import Coordinates, compared_coordinates, joint_coordinates
from workbench.lab.noise import STOPS, noise_pictures
from workbench.lab.panes import Pane
from workbench.lab.panes.attention import AttentionPane
from workbench.lab.panes.maps import MapsPane
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.snippets import bounded_view, cells_that_fit, check_page, page_size, script_size, snippet
from workbench.lab.sources import RunLike, Source, Steps, Subject, choose, guidance_range, tokens_of
from workbench.lab.unit_tokens import unit_tokens
from workbench.lab.view import View
from workbench.runs.weak import WeakLike

NINE_TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_BESIDE = (1 / 6, 1 / 2, 1.0)  # depths, as shares of the whole, of the layers that always have a column
# Half of a page is for the layers that are shown by default, the rest for similarities of tokens.
MAPS_MB = 6.0
_COLOURS = 0.5  # of a page
_SPARE = 0.98  # of a page may be filled: sizes before compression are estimates
_PICTURES = 0.2  # of a page at the most
_ATTENTION = 0.3
SHORTEN = "layers, times, steps, images or components"


def maps(
    run: RunLike,
    images: int | Sequence[int] = 6,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = NINE_TIMES,
    steps: Steps = None,
    w: tuple[float, float] = (0.0, 30.0),
    components: int = 8,
    data: DataConfig | None = None,
    page_mb: float = MAPS_MB,
    pictures: bool = True,
    attention: bool = False,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """Token maps of a run: images beside the colours of f_u + w (f_c - f_u), Eq. 3, with sliders.

    Each layer has one basis of `components` directions, fitted to all its times, steps and images and aligned with that
    of the middle layer. Features are cached beside the run, so that a second call is quick.

    Beside an image stands what the model was given, x_t with the noise of the slider, and the clean image that it
    predicts from it, z_hat = x_t - t v, both decoded. Predictions exist at a few w; the nearest is shown.

    A click on a token, or Enter, shows the cosine similarity of its f_g to all tokens in place of the colours, at any
    w; Shift or "Hold several" holds several. Captions give the share of |f_g|^2 that the page leaves out;
    `wb.similarity` is exact.

    With `weak`, guidance is against a weak model instead of the null label (autoguidance): f_weak + w (f - f_weak),
    both with the class. w = 0 shows the weak model, w = 1 the run itself.

    Args:
        run: A run, its folder or its name.
        images: Number of images, one of each class in turn, or row numbers.
        layers: Layers; by default all of a small model, else as many as the page has room for.
        times: Noise levels t in 0..1.
        steps: Training steps of the checkpoints, or "all"; the last by default.
        w: Range of the guidance scale.
        components: Number of principal components in the basis.
        data: Image set, for an imported run.
        page_mb: Largest size of the page, in megabytes. What the maps leave free is used for pictures and similarities.
        pictures: Whether to show what the model was given and what it predicts, which takes the whole model.
        attention: Whether a second pane shows what a clicked token attends to, in layers and at times that fit.
        weak: The weak model: another run, a step of this run, or both, as (run, step) or "RUN@STEP". None is the null
            label.
        progress: Called with (stage, done, total) instead of showing a progress bar.

    Returns:
        A ``View``, which a notebook displays. ``save_html(file)`` writes a page that works offline, ``save(file)`` a
        PNG, SVG or PDF; both take values such as ``t=0.5, layer=8, w=10.0``.

    Raises:
        ValueError: For a layer or step that does not exist, an untrained null class, a weak model that does not fit or
            is the run itself, and a page of more than `page_mb` megabytes; the message says which arguments to reduce.

    Examples:
        >>> view = wb.maps(wb.zoo("guided"), images=2, layers=[4, 8], times=[0.5])
        >>> view.axes["layer"].values
        (4, 8)
        >>> view.save("maps.png", layer=8, w=10.0).name
        'maps.png'
    """
    given = dict(locals())
    room = layers_that_fit(page_mb, components)
    subject = choose(
        run,
        images=images,
        layers=layers,
        times=times,
        steps=steps,
        data=data,
        weak=weak,
        room=room,
        controls=attention,  # which is shown without the label too
    )
    code = snippet(maps, run, given)
    return maps_view(subject, w, components, pictures, page_mb, SHORTEN, code, progress, attention)


def maps_view(
    subject: Subject,
    w: tuple[float, float],
    components: int,
    pictures: bool,
    page_mb: float,
    shorten: str,
    code: str,
    progress: Report | None,
    attention: bool = False,
) -> View:
    """A view of token maps, and of attention if wanted; `shorten` names the arguments to reduce for a smaller page."""
    w = guidance_range(w)
    title = f"Token maps of {', '.join(subject.titles)}{subject.against}"
    fitting = _attention_that_fits(subject, page_mb) if attention else None
    check_maps_fit(subject, components, page_mb, shorten)
    with reported(progress) as report:
        beside = [] if fitting is None else [attention_pane(subject, *fitting, report)]
        stops = [stop for stop in STOPS if w[0] <= stop <= w[1]] or [w[0]]
        named = "Token maps" if beside else title
        pane = maps_pane(subject, components, report, page_mb, beside, title=named, stops=stops if pictures else ())
    axes = subject.axes(w) | {"image": subject.image_axis(subject.rows)}
    panes, start = [pane, *beside], start_of(subject)
    return bounded_view(
        title, panes, axes, page_mb=page_mb, shorten=shorten, snippet=code, made=subject.made, start=start
    )


def _attention_that_fits(subject: Subject, page_mb: float) -> tuple[list[int], list[float]]:
    """Layers and times whose attention a page has room for; ValueError for attention that cannot be shown."""
    wanted = {subject.layers[subject.nearest_layer(share)] for share in (*_BESIDE, 2 / 3)}
    layers, times = attention_that_fits(subject, sorted(wanted), _ATTENTION * page_mb * 1e6)
    attending(subject.runs[0], layers, subject.steps[0][-1])
    return layers, times


def attention_pane(subject: Subject, layers: Sequence[int], times: Sequence[float], report: Report) -> Pane:
    """What tokens attend to in the first run, at its last step that is shown."""
    counted = part_of(report, "attention", 0, 1, 2 * len(times))
    arrays = {"images": subject.pictures(), "weights": stored_attention(subject, layers, times, counted)}
    if subject.images.has_masks:
        arrays["part"] = (255 * subject.shares()).round().to(torch.uint8).numpy()
        arrays["objects"] = subject.objects()
    return AttentionPane("Attention", arrays, {"names": subject.names, "layers": layers, "times": times})


def maps_pane(
    subject: Subject,
    components: int,
    report: Report,
    page_mb: float,
    beside: Sequence[Pane] = (),
    scattered: Sequence[int] | None = None,
    title: str = "Token maps",
    stops: Sequence[float] = (),
) -> Pane:
    """The token maps of a subject, with similarities in as many directions as a page has room for.

    `beside` are the other panes of the page, `scattered` the numbers of the subject's images in a scatter pane, `stops`
    the guidance scales of predicted images, the most important first; without, there are none.
    """
    check_components(components)
    try:
        grids = subject.grids(report, "token features", last=bool(stops))
    except NotFiniteFeatures as error:
        if error.layer in subject.layers:
            raise
        # Of a run that diverged the layers before can be seen, but it predicts nothing.
        grids, stops = subject.grids(report, "token features"), ()
    sources = subject.sources(grids, report)
    pane = pane_of(subject, coordinates_of(subject, sources, components, report), scattered, title)
    room = _SPARE * page_mb * 1e6 - script_size() - sum(page_size(of.arrays) for of in (pane, *beside))
    if stops:
        made, kept = noise_pictures(subject, grids, stops, min(room, _PICTURES * page_mb * 1e6), report)
        runs = subject.titles[: len(subject.runs)] if len(subject.titles) > 1 else []
        pane = replace(pane, arrays={**pane.arrays, **made}, meta={**pane.meta, "stops": kept, "runs": runs})
        room -= page_size(made)
    counted = part_of(report, "similarities", 0, 1, 100)
    similar = unit_tokens(sources, len(subject.steps[0]), subject.times, subject.layers, room, counted)
    return replace(pane, arrays={**pane.arrays, **similar})


def coordinates_of(
    subject: Subject, sources: Sequence[Source], components: int, report: Report, stage: str = "token coordinates"
) -> Coordinates:
    """Coordinates in one basis per layer, or, of several sources, in one each, aligned with the first source's."""
    steps = len(subject.steps[0])
    counted = part_of(report, stage, 0, 1, len(subject.layers))
    if len(sources) > 1:
        return compared_coordinates(sources, steps, subject.times, subject.layers, components, counted)

    def read(_: int, step: int, t: float, layer: int):
        return sources[0].read(step, t, layer)

    return joint_coordinates(read, (1, steps), subject.times, subject.layers, components, counted)


def pane_of(
    subject: Subject, coordinates: Coordinates, scattered: Sequence[int] | None = None, title: str = "Token maps"
) -> Pane:
    """A maps pane of coordinates: a column for each source if there are several, else for each of a few layers."""
    beside = sorted({subject.nearest_layer(share) for share in _BESIDE})
    columns = "sources" if len(coordinates.u) > 1 else "layers"
    meta = {"names": subject.names, "columns": columns, "layers": beside, "still": subject.still}
    if scattered is not None:
        meta["rows"] = list(map(int, scattered))
    arrays = {"images": subject.pictures(), **coordinates.arrays}
    if subject.images.has_masks:
        arrays["objects"] = subject.objects()
    return MapsPane(title, arrays, meta)


def start_of(subject: Subject) -> dict[str, Any]:
    """Initial position of the sliders: a deep layer that has no column of its own."""
    return {"layer": subject.layers[subject.nearest_layer(2 / 3)]}


def check_components(components: int) -> None:
    """ValueError unless the number of components is from 3 to 32."""
    if not 3 <= components <= 32:
        raise ValueError(f"components is {components}; allowed are 3, one for each colour, to 32")


def check_maps_fit(subject: Subject, components: int, page_mb: float, shorten: str, versions: int = 1) -> None:
    """ValueError, as `check_page`, if the coordinates of the tokens alone need more than a page."""
    several = (versions, len(subject.titles), len(subject.steps[0]), len(subject.times), len(subject.layers))
    shape = (2, *several, len(subject.rows), tokens_of(subject.runs[0]), components)
    check_page({"Token maps": {"coordinates": np.broadcast_to(np.int16(0), shape)}}, page_mb, shorten)


def layers_that_fit(page_mb: float, components: int) -> Callable[[int, int], float]:
    """Number of layers that half a page of token maps has room for, as `room` of `choose`."""
    check_components(components)
    return lambda combinations, tokens: cells_that_fit(_COLOURS * page_mb, 4 * tokens * components) / combinations
