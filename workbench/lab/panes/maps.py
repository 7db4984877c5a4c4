"""Token maps: images and the colours of their tokens, with one column per layer or per source."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure

from workbench.features.similarity import SEVERAL
from workbench.lab.components import MapColumn, map_column, map_pixels
from workbench.lab.drawing import coloured, show_picture, wrapped
from workbench.lab.noise import ARRAYS as NOISE
from workbench.lab.panes import Arrays, AxesByName, Meta, Pane, State, fixed, image_name, nearest_stop, text_of
from workbench.lab.similarity_maps import (
    COSINES,
    LETTERS,
    Pictures,
    SimilarityMap,
    draw_similarity,
    outline_object,
)
from workbench.lab.unit_tokens import ARRAYS as UNIT_TOKENS
from workbench.lab.unit_tokens import left_out, stored_similarity

_CELL = 1.15  # inches of a map
_NEAREST = "the nearest that is stored"
_SHARE_OF = {None: "of variance", "subspace": "of the subspace", "foreground": "of foreground"}
# Components of the rows of an image, by the option "colour"; None is all three as red, green and blue.
_ROWS: dict[str, list[int | None]] = {"rgb": [None], "single": [0], "three": [0, 1, 2]}


class MapsPane(Pane):
    """Token maps; with the arrays of `unit_tokens` also the similarity of tokens to those in the state's `tokens`.

    With the arrays of `noise`, what the model was given and what it predicts stand beside the images. `objects` is 1
    where an image shows its object, whose outline is drawn. Entries of `meta`, all optional:

    `columns`: "layers" (default) or "sources". `layers`: indices of the layers that have a column, beside that of the
    slider. `names`: of the images. `rows`: the number of each image in a scatter pane. `joint`: whether the sources
    share a basis (default: each has its own). `still`: indices of the sources that do not change with "t", and of those
    that do not change with "w" (default: inferred from the arrays). `stops`: the guidance scales of the predictions.
    `runs`: the names of the runs that predict, if there are several sources.
    """

    ARRAYS: ClassVar = {
        "images": ("uint8", "n h w c"),
        "u": ("int16", "source step t layer n m k"),
        "d": ("int16", "source step t layer n m k"),
        "u_scale": ("float32", "source step t layer"),
        "d_scale": ("float32", "source step t layer"),
        "total": ("float32", "source step t layer 3"),
        "objects?": ("uint8", "n y x"),
        **NOISE,
        **UNIT_TOKENS,
    }

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        return {
            "basis": ["fixed", "refit", "per map", "foreground"],
            "colour": ["rgb", "single", "three"],
            "show": ["one image", "all images"] if len(self.arrays["images"]) > 1 else ["one image"],
            **({"pictures": ["image, noise, prediction", "image"]} if "noisy" in self.arrays else {}),
            **({"several": list(SEVERAL)} if self.tokens else {}),
        }

    def inferred(self) -> dict[str, Any]:
        *_, layers, _, tokens, directions = self.arrays["u"].shape
        side = math.isqrt(tokens)
        if side * side != tokens or directions < 3:
            raise ValueError(
                f"{self.title}: u has {tokens} tokens and {directions} directions; allowed are a square number of "
                "tokens and at least 3 directions"
            )
        missing = {name.rstrip("?") for name in UNIT_TOKENS} - set(self.arrays)
        if 0 < len(missing) < len(UNIT_TOKENS):
            raise ValueError(
                f"{self.title}: {', '.join(sorted(missing))} missing; similarities need all of their arrays"
            )
        if ("noisy" in self.arrays) != ("predicted" in self.arrays):
            raise ValueError(f"{self.title}: noisy and predicted come together; got {', '.join(sorted(self.arrays))}")
        stops, of = list(self.meta.get("stops", ())), self.arrays.get("predicted")
        if of is not None and len(stops) != of.shape[3]:
            raise ValueError(f"{self.title}: stops are {stops}; predicted has pictures at {of.shape[3]} values of w")
        beside = sorted({0, layers // 2, layers - 1})
        still = _still(self.arrays)
        plain = {"side": side, "columns": "layers", "layers": beside, "joint": False, "still": still}
        return {**plain, "cosines": list(COSINES)}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_maps(self.complete(axes), self.arrays, state, axes)

    @property
    def selects(self) -> bool:
        return "rows" in self.meta

    @property
    def tokens(self) -> tuple[int, int] | None:
        return self.arrays["ratio"].shape[-2:] if "ratio" in self.arrays else None


def draw_maps(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """Images and the colours of their tokens: rows are images (and components), columns are layers or sources.

    With `tokens` in the state: the similarity of all tokens to these.
    """
    if state.get("tokens") and "ratio" in arrays:
        return _draw_similarities(pane, arrays, state, axes)
    columns = [
        (
            [title, _t_and_w(pane, at[0], state, axes)],
            map_column(arrays, at, state.get("w", 0), state["basis"]),
        )
        for title, at in _columns(pane, state, axes)
    ]
    rows = _rows(pane, arrays, state)
    many, names = state["show"] == "all images", pane.get("names", [])
    first = ["images"] if many else [image_name(names, rows[0][0], len(arrays["images"]))]
    pictures = [Pictures(first, arrays["images"]), *_pictures(pane, arrays, state, axes)]
    wide = len(pictures) + len(columns)
    figure = Figure(figsize=(_CELL * wide, _CELL * len(rows) + 0.75), layout="constrained")
    cells = figure.subplots(len(rows), wide, squeeze=False)
    for row, (image, component) in zip(cells, rows, strict=True):
        for axis, of in zip(row, pictures, strict=False):
            show_picture(axis, None if component else coloured(of.images[image]))
        for axis, (_, column) in zip(row[len(pictures) :], columns, strict=True):
            pixels = map_pixels(column, component)[image]
            show_picture(axis, rearrange(pixels, "(h w) c -> h w c", h=pane["side"]))
        if "objects" in arrays:
            outline_object([axis for axis in row if axis.images], arrays["objects"][image])
    for axis, lines in zip(cells[0], [*(of.lines for of in pictures), *(lines for lines, _ in columns)], strict=True):
        axis.set_title(_lines(lines), fontsize=7, loc="left")
    for axis, (_, column) in zip(cells[-1][len(pictures) :], columns, strict=True):
        axis.set_xlabel(_lines([*_shares(column, state), *_range(column, state)]), fontsize=7, loc="left")
    return figure


def _draw_similarities(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    images = list(dict.fromkeys(image for image, _ in _rows(pane, arrays, state)))
    held = [(_index_of(image, axes), token) for image, token in state["tokens"]]
    w, several = state.get("w", 0), state["several"]
    maps = []
    for title, at in _columns(pane, state, axes):
        share = f"{left_out_text(left_out(arrays, at, w))} left out"
        lines = [line for line in (title, _t_and_w(pane, at[0], state, axes), share) if line]
        maps.append(SimilarityMap(lines, stored_similarity(arrays, at, w, held, several)))
    count = len(arrays["images"])
    names = [image_name(pane.get("names", []), image, count) for image in range(count)]
    beside = _pictures(pane, arrays, state, axes)
    return draw_similarity(arrays["images"], maps, images, names, held, several, arrays.get("objects"), beside)


def _pictures(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> list[Pictures]:
    """What the model was given and what it predicts at the stop nearest to w; a column for each run, if they differ."""
    if "noisy" not in arrays or state["pictures"] == "image":
        return []
    t, step, stops = state.get("t", 0), state.get("step", 0), pane["stops"]
    stop = nearest_stop(stops, state.get("w"))
    near = [] if abs(stops[stop] - state.get("w", stops[stop])) < 1e-6 else [_NEAREST]
    runs = list(pane.get("runs", []))
    time = f"t {text_of('t', state, axes)}" if "t" in axes else "t"
    given = [
        Pictures([f"what {runs[run] if len(arrays['noisy']) > 1 else 'the model'} was given", time], of[t])
        for run, of in enumerate(arrays["noisy"])
    ]
    shown = range(len(runs)) if pane["columns"] == "sources" and runs else [state.get("source", 0)]
    predicted = [
        Pictures(
            [f"what {runs[run]} predicts" if runs else "what it predicts", f"{time}, w {stops[stop]:g}", *near],
            arrays["predicted"][run, step, t, stop],
        )
        for run in shown
    ]
    return [*given, *predicted]


def left_out_text(share: float) -> str:
    """A small share, such as "0.02 %", as in js/similarity.js."""
    percent = 100 * share
    return f"{fixed(percent, 2 if percent < 1 else 0)} %"


def _index_of(image: int, axes: AxesByName) -> int:
    return axes["image"].index("image", image) if "image" in axes else image


def _columns(pane: Meta, state: State, axes: AxesByName) -> list[tuple[str, tuple[int, int, int, int]]]:
    source, step, t, layer = (state.get(name, 0) for name in ("source", "step", "t", "layer"))
    if pane["columns"] == "sources":
        sources = (
            [axes["source"].text(value) for value in axes["source"].values] if "source" in axes else [pane["title"]]
        )
        return [(title, (each, step, t, layer)) for each, title in enumerate(sources)]
    if "layer" not in axes:
        return [(pane["title"], (source, step, t, each)) for each in pane["layers"]]
    chosen = sorted({*pane["layers"], layer})  # the layer of the slider only once
    titles = [f"layer {axes['layer'].text(axes['layer'].values[each])}" for each in chosen]
    return [(title, (source, step, t, each)) for title, each in zip(titles, chosen, strict=True)]


def _rows(pane: Meta, arrays: Arrays, state: State) -> list[tuple[int, int | None]]:
    images = [state.get("image", 0)]
    if state["show"] == "all images":
        everything = list(range(len(arrays["images"])))
        numbers = pane.get("rows")
        images = [i for i in everything if numbers is not None and numbers[i] in state["selection"]] or everything
    return [(image, component) for image in images for component in _ROWS[state["colour"]]]


def _t_and_w(pane: Meta, source: int, state: State, axes: AxesByName) -> str:
    """The values of t and w, if the source changes with them."""
    names = [name for name in ("t", "w") if name in axes and source not in pane["still"][name]]
    return ", ".join(f"{name} {text_of(name, state, axes)}" for name in names)


def _shares(column: MapColumn, state: State) -> list[str]:
    """Shares of what is drawn: of all three components, of the first, or of each of the three rows."""
    rows = ", ".join(_percent(column.share(component)) for component in _ROWS[state["colour"]])
    shown = f"{rows} {_SHARE_OF[column.of]}"
    return [shown] if column.outside is None else [shown, f"{_percent(column.outside)} outside subspace"]


def _range(column: MapColumn, state: State) -> list[str]:
    if state["colour"] != "single" or state["basis"] == "per map":
        return []
    low, high = column.limits[:, 0]
    return [f"viridis: {low:.2g} to {high:.2g}"]


def _percent(share: float) -> str:
    return f"{int(np.floor(100 * share + 0.5))} %"


def _lines(lines: Sequence[str]) -> str:
    """Lines no wider than a map."""
    return wrapped("\n".join(filter(None, lines)), LETTERS)


def _still(arrays: Arrays) -> dict[str, list[int]]:
    """Indices of the sources that are the same at every w ("w"), and of those that are the same at every t too ("t").

    With one time, "t" is empty: whether a source changes with t is unknown.
    """
    sources, _, times = arrays["u"].shape[:3]
    w = [source for source in range(sources) if not arrays["d"][source].any()]

    def constant(values: np.ndarray) -> bool:
        return times > 1 and bool((values == values[:, :1]).all())

    return {"t": [of for of in w if constant(arrays["u"][of]) and constant(arrays["u_scale"][of])], "w": w}
