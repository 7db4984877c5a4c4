"""The pictures of a view in Python, for a paper: what the browser draws, as matplotlib figures.

A pane is what `Pane.complete` gave, the state has an index for each discrete axis, as in the browser.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange, repeat
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from workbench.lab.charts import draw_heat, draw_scatter
from workbench.lab.components import MapColumn, map_column, map_pixels
from workbench.lab.panes import Axis

_CELL = 1.15  # inches of a map
_SHARE_OF = {None: "of variance", "subspace": "of the subspace", "foreground": "of foreground"}


def draw(
    pane: Mapping[str, Any], arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], axes: Mapping[str, Axis]
) -> Figure:
    """The picture of one pane in one state. ValueError for a kind that there is not."""
    kinds = {"maps": draw_maps, "samples": draw_samples, "scatter": draw_scatter, "heat": draw_heat}
    if pane["kind"] not in kinds:
        raise ValueError(f"pane kind is {pane['kind']!r}; allowed are {', '.join(kinds)}")
    return kinds[pane["kind"]](pane, arrays, state, axes)


def draw_maps(
    pane: Mapping[str, Any], arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], axes: Mapping[str, Axis]
) -> Figure:
    """Images beside the colours of their tokens: rows are images (and components), columns layers or sources."""
    columns = [
        (
            [title, _place(pane, at[0], state, axes)],
            map_column(arrays, at, state.get("w", 0), state["basis"], pane["side"]),
        )
        for title, at in _columns(pane, state, axes)
    ]
    rows = _rows(pane, arrays, state)
    figure = Figure(figsize=(_CELL * (len(columns) + 1), _CELL * len(rows) + 0.75), layout="constrained")
    cells = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for row, (image, component) in zip(cells, rows, strict=True):
        _show(row[0], None if component else _coloured(arrays["images"][image]))
        for axis, (_, column) in zip(row[1:], columns, strict=True):
            pixels = map_pixels(column, component)[image]
            _show(axis, rearrange(pixels, "(h w) c -> h w c", h=pane["side"]))
    many = state["show"] == "all images"
    _caption(cells[-1][0], ["images"] if many else [_image_name(pane, rows[0][0], axes)])
    for axis, (told, column) in zip(cells[-1][1:], columns, strict=True):
        _caption(axis, [*told, *_shares(column), *_range(column, state)])
    return figure


def draw_samples(
    pane: Mapping[str, Any], arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], axes: Mapping[str, Axis]
) -> Figure:
    """Samples: a column for each seed; rows are the steps of one source, or the sources at one step."""
    images, of = arrays["images"], "source" if state["rows"] == "sources" else "step"
    lanes = []
    for each in range(images.shape[0 if of == "source" else 1]):
        at = {"source": state.get("source", 0), "step": state.get("step", 0), of: each}
        name = ("step " if of == "step" else "") + _text(of, at, axes) if of in axes else pane["title"]
        lanes.append((name, images[at["source"], at["step"], state.get("guidance", 0)]))
    names = list(pane.get("names", []))
    figure = Figure(figsize=(1.3 + 0.7 * images.shape[3], 0.7 * len(lanes) + 0.35), layout="constrained")
    cells = figure.subplots(len(lanes), images.shape[3], squeeze=False)
    for row, (name, samples) in zip(cells, lanes, strict=True):
        for axis, image in zip(row, samples, strict=True):
            _show(axis, _coloured(image))
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axis, name in zip(cells[0], names, strict=False):
        axis.set_title(name, fontsize=7)
    return figure


def encoded(figures: Sequence[Figure], ending: str) -> bytes:
    """Figures on white as PNG or SVG (one figure), or as the pages of a PDF; without dates, so equal is equal."""
    buffer = io.BytesIO()
    if ending == "pdf":
        with PdfPages(buffer, metadata={"CreationDate": None}) as pages:
            for figure in figures:
                pages.savefig(figure, facecolor="white", bbox_inches="tight")
    else:
        (figure,) = figures
        metadata = {"Date": None} if ending == "svg" else {"Software": None}
        figure.savefig(buffer, format=ending, dpi=220, facecolor="white", bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _columns(
    pane: Mapping[str, Any], state: Mapping[str, Any], axes: Mapping[str, Axis]
) -> list[tuple[str, tuple[int, int, int, int]]]:
    source, step, t, layer = (state.get(name, 0) for name in ("source", "step", "t", "layer"))
    if pane["columns"] == "sources":
        sources = (
            [axes["source"].text(value) for value in axes["source"].values] if "source" in axes else [pane["title"]]
        )
        return [(title, (each, step, t, layer)) for each, title in enumerate(sources)]
    if "layer" not in axes:
        return [(pane["title"], (source, step, t, each)) for each in pane["layers"]]
    chosen = dict.fromkeys([*pane["layers"], layer])  # that of the slider once, though it may be one of the others
    titles = [f"layer {axes['layer'].text(axes['layer'].values[each])}" for each in chosen]
    return [(title, (source, step, t, each)) for title, each in zip(titles, chosen, strict=True)]


def _rows(
    pane: Mapping[str, Any], arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> list[tuple[int, int | None]]:
    images = [state.get("image", 0)]
    if state["show"] == "all images":
        everything = list(range(len(arrays["images"])))
        numbers = pane.get("rows")
        images = [i for i in everything if numbers is not None and numbers[i] in state["selection"]] or everything
    parts: list[int | None] = {"rgb": [None], "single": [0], "three": [0, 1, 2]}[state["colour"]]
    return [(image, component) for image in images for component in parts]


def _place(pane: Mapping[str, Any], source: int, state: Mapping[str, Any], axes: Mapping[str, Axis]) -> str:
    """t and w, as far as the source changes with them."""
    told = [name for name in ("t", "w") if name in axes and source not in pane["still"][name]]
    return ", ".join(f"{name} {_text(name, state, axes)}" for name in told)


def _shares(column: MapColumn) -> list[str]:
    shown = f"{_percent(column.share)} {_SHARE_OF[column.of]}"
    return [shown] if column.outside is None else [shown, f"{_percent(column.outside)} outside subspace"]


def _range(column: MapColumn, state: Mapping[str, Any]) -> list[str]:
    if state["colour"] != "single" or state["basis"] == "per map":
        return []
    low, high = column.limits[0, 0]
    return [f"viridis: {low:.2g} to {high:.2g}"]


def _percent(share: float) -> str:
    return f"{int(np.floor(100 * share + 0.5))} %"


def _image_name(pane: Mapping[str, Any], image: int, axes: Mapping[str, Axis]) -> str:
    number = axes["image"].text(axes["image"].values[image]) if "image" in axes else str(image)
    names = list(pane.get("names", []))
    return f"image {number}, {names[image]}" if names else f"image {number}"


def _text(name: str, state: Mapping[str, Any], axes: Mapping[str, Axis]) -> str:
    axis = axes[name]
    return axis.text(state[name] if axis.continuous else axis.values[state[name]])


def _coloured(image: np.ndarray) -> np.ndarray:
    return repeat(image, "h w 1 -> h w c", c=3) if image.shape[-1] == 1 else image[..., :3]


def _show(axis: Axes, picture: np.ndarray | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if picture is None:
        axis.patch.set_visible(False)
    else:
        axis.imshow(picture, interpolation="nearest")


def _caption(axis: Axes, lines: Sequence[str]) -> None:
    axis.set_xlabel("\n".join(line for line in lines if line), fontsize=7, loc="left")
