"""The scatter and the heat maps of a view in Python, for a paper: what the browser draws, as matplotlib figures.

A pane is what `Pane.complete` gave, the state has an index for each discrete axis, as in the browser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt16
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

from workbench.lab.panes import Axis

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F")
_MARKERS = "os^DXPv*"
_INK, _UNMEASURED = "#1c1e21", "#d9dce0"
_DIVERGING = LinearSegmentedColormap.from_list("blue-brown", ["#0b4f8a", "#6fa8d6", "#f5f5f2", "#f0a35e", "#a8480a"])
_CELL = (0.42, 0.27)  # inches of a cell of a heat map
_LISTED = 40  # classes that a picture has room for

_Pane = _State = Mapping[str, Any]
_Arrays = Mapping[str, np.ndarray]
_Axes = Mapping[str, Axis]


@dataclass(frozen=True)
class ClassNumbers:
    """Images of a class: how many are selected, and how many have a kNN vote for their own class."""

    name: str
    selected: int
    all: int
    right: int
    right_all: int

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """As the table says it: name, "47 of 412", and the shares of those selected and of all."""
        count = f"{self.selected:,} of {self.all:,}"
        return self.name, count, _share(self.right, self.selected), _share(self.right_all, self.all)


def nearest_stop(stops: Sequence[float], w: float | None) -> int:
    """The stop nearest to w, the first of two that are as near; 0 where there is no w."""
    return 0 if w is None or not stops else int(np.argmin(np.abs(np.asarray(stops, dtype=np.float64) - w)))


def class_numbers(pane: _Pane, arrays: _Arrays, state: _State, axes: _Axes) -> tuple[list[ClassNumbers], ClassNumbers]:
    """Numbers of each class that has images, and of all, at the state's frame and the stop nearest to its w."""
    labels, correct = _labels(arrays, state), arrays[f"correct{_given(state)}"][(*_at(state), _stop(state, axes))]
    selected = _selected(state, len(labels))

    def numbers(name: str, own: np.ndarray) -> ClassNumbers:
        right = correct[own] == 1
        return ClassNumbers(
            name, int(selected[own].sum()), int(own.sum()), int(right[selected[own]].sum()), int(right.sum())
        )

    by_class = [
        numbers(str(name), labels == label) for label, name in enumerate(pane["names"]) if (labels == label).any()
    ]
    return by_class, numbers("All classes", np.ones(len(labels), dtype=bool))


def places(arrays: _Arrays, state: _State, axes: _Axes) -> Float64[np.ndarray, "n 2"]:
    """Points of the state's frame: PCA's are u + w d (Eq. 3), the others those of the nearest stop."""
    at, method = _at(state), state["method"]
    if method == "pca":
        u, d = (arrays[name][at] * float(arrays[f"{name}_scale"][at]) for name in ("u", "d"))
        return u + state.get("w", 0.0) * d
    stop, scale = _stop(state, axes), arrays[f"{method}_scale"]
    return arrays[method][(*at, stop)] * float(scale[(*at, stop)[: scale.ndim]])


def draw_scatter(pane: _Pane, arrays: _Arrays, state: _State, axes: _Axes) -> Figure:
    """Points by class, those selected outlined and last, beside the numbers of each class in the original space."""
    by_class, total = class_numbers(pane, arrays, state, axes)
    if len(by_class) > _LISTED:  # those selected before the others, and the last line says of how many
        total = replace(total, name=f"All {len(by_class):,} classes")
        by_class = sorted(by_class, key=lambda one: not one.selected)[:_LISTED]
    figure = Figure(figsize=(8.4, max(4.6, 0.8 + 0.24 * len(by_class))), layout="constrained")
    plot, table = figure.subplots(1, 2, width_ratios=(4.6, 3.4))
    points = places(arrays, state, axes)
    _points(plot, points, _labels(arrays, state), _selected(state, len(points)))
    plot.set_title(_scatter_title(state, axes), loc="left", fontsize=9, fontweight="bold")
    _table(table, by_class, total, [str(name) for name in pane["names"]])
    told = "kNN is measured in the original space" + (", by the given labels." if _given(state) else ".")
    if state["method"] != "pca":
        told = f"Distances between clusters, and their sizes, mean nothing in {METHODS[state['method']]}. {told}"
    figure.supxlabel(told, fontsize=7, color="#5a6068", x=0.01, ha="left")
    return figure


def draw_heat(pane: _Pane, arrays: _Arrays, state: _State, axes: _Axes) -> Figure:
    """A measure, layer by t at the measured scale nearest to w, and layer by w at the chosen t."""
    measure, version = (list(pane[f"{name}s"]).index(state[name]) for name in ("measure", "version"))
    values, scales, names = arrays["values"][measure, version], pane["scales"], pane.get("labels", {})
    limits = heat_limits(pane, arrays, state["measure"])
    layer, t, w = state.get("layer", 0), state.get("t", 0), state.get("w")
    scale = measured_scale(values, scales, w)
    near = "" if w is None or abs(scales[scale] - w) < 1e-6 else f" (nearest to {w:g})"
    only = f" (w = {scales[scale]:g} only)" if np.isfinite(values).any(axis=(0, 1)).sum() == 1 else ""
    told = [(f"at w = {scales[scale]:g}{near}", "t", values[:, :, scale], t, _values("t", axes, values.shape[1]))]
    if len(scales) > 1:
        told.append((f"at t = {_value('t', state, axes)}{only}", "w", values[:, t], scale, list(scales)))
    columns = [len(ticks) for *_, ticks in told]
    width = max(4.2, 1.1 * len(told) + _CELL[0] * sum(columns))
    figure = Figure(figsize=(width, 1.7 + _CELL[1] * len(values)), layout="constrained")
    maps = list(figure.subplots(1, len(told), width_ratios=columns, squeeze=False)[0])
    colours = _DIVERGING if state["measure"] in pane.get("centre", {}) else colormaps["viridis"]
    for axis, (title, across, shown, column, ticks) in zip(maps, told, strict=True):
        _heat_map(axis, shown, colours, limits)
        axis.add_patch(Rectangle((column - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="#d62728", linewidth=1.8))
        axis.set_title(title, loc="left", fontsize=8)
        _ticks(axis, across, ticks, _values("layer", axes, len(values)))
    title = " · ".join(names.get(state[name], state[name]) for name in ("measure", "version"))
    figure.suptitle(title, fontsize=9, fontweight="bold")
    _bar(figure, maps, limits, pane.get("chance", {}).get(state["measure"]))
    return figure


def heat_limits(pane: _Pane, arrays: _Arrays, measure: str) -> tuple[float, float]:
    """Ends of a measure's colours: of all versions, so that these can be compared, and chance lies within.

    Around the `centre` that the pane gives the measure they are symmetric.
    """
    values = arrays["values"][list(pane["measures"]).index(measure)]
    found = values[np.isfinite(values)].astype(np.float64)
    if not len(found):
        found = np.array([0.0, 1.0])
    elif measure in pane.get("chance", {}):
        found = np.append(found, pane["chance"][measure])
    low, high = float(found.min()), float(found.max())
    centre = pane.get("centre", {}).get(measure)
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        return centre - reach, centre + reach
    return low, high if high > low else low + 1


def measured_scale(values: Float[np.ndarray, "layers times scales"], scales: Sequence[float], w: float | None) -> int:
    """The scale nearest to w among those at which anything was measured."""
    kept = np.flatnonzero(np.isfinite(values).any(axis=(0, 1)))
    kept = kept if len(kept) else np.arange(values.shape[2])
    return int(kept[nearest_stop([scales[k] for k in kept], scales[0] if w is None else w)])


def heat_number(value: float, limits: tuple[float | int, float | int], digits: int = 2) -> str:
    """A number of a heat map: ".83" up to 1, "3.2" below 10, "41" above."""
    size = max(abs(limits[0]), abs(limits[1]))
    text = _fixed(value, digits if size <= 1 else digits - 1 if size < 10 else max(0, digits - 2) if size < 100 else 0)
    text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return text.removeprefix("-") if not text.strip("-.0") else text


def _fixed(value: float, digits: int) -> str:
    """With this many digits, halves away from zero: as browsers write it."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _selected(state: _State, count: int) -> Bool[np.ndarray, " n"]:
    if any(row >= count for row in state["selection"]):
        raise ValueError(f"row {max(state['selection'])} is selected; allowed are 0 to {count - 1}")
    return np.isin(np.arange(count), state["selection"])


def _share(part: int, of: int) -> str:
    return "–" if not of else _fixed(part / of, 2).removeprefix("0")


def _at(state: _State) -> tuple[int, int, int, int]:
    source, step, t, layer = (state.get(name, 0) for name in ("source", "step", "t", "layer"))
    return source, step, t, layer


def _stop(state: _State, axes: _Axes) -> int:
    return nearest_stop(axes["w"].stops if "w" in axes else (), state.get("w"))


def _labels(arrays: _Arrays, state: _State) -> UInt16[np.ndarray, " n"]:
    return arrays["given" if _given(state) else "labels"]


def _given(state: _State) -> str:
    return "_given" if state.get("labels") == "given" else ""


def _value(name: str, state: _State, axes: _Axes) -> str:
    if name not in axes:
        return "0"
    return axes[name].text(state[name] if axes[name].continuous else axes[name].values[state[name]])


def _values(name: str, axes: _Axes, count: int) -> list[Any]:
    return list(axes[name].values) if name in axes else list(range(count))


def _scatter_title(state: _State, axes: _Axes) -> str:
    told = [METHODS[state["method"]]]
    for name in ("source", "step", "layer", "t", "w"):
        if name in axes:
            text = _value(name, state, axes)
            told.append(
                text if name == "source" else f"{name} = {text}" if len(name) == 1 else f"{axes[name].label} {text}"
            )
    if "w" in axes and axes["w"].stops:
        stop = axes["w"].stops[_stop(state, axes)]
        if abs(stop - state["w"]) >= 1e-6:
            told.append(f"{'kNN' if state['method'] == 'pca' else 'shown'} at w = {stop:g}, the nearest stop")
    return " · ".join(told)


def _marker(label: int) -> tuple[Path, str]:
    """Outline within about a unit circle, and colour: both are the browser's, and repeat after 64 classes."""
    style = MarkerStyle(_MARKERS[(label + label // len(OKABE_ITO)) % len(_MARKERS)])
    return style.get_path().transformed(style.get_transform()), OKABE_ITO[label % len(OKABE_ITO)]


def _points(
    axis: Axes, points: Float64[np.ndarray, "n 2"], labels: UInt16[np.ndarray, " n"], chosen: Bool[np.ndarray, " n"]
) -> None:
    order = np.random.default_rng(0).permutation(len(points))  # so that no class hides the others
    size = 4 + 16 * min(1.0, (500 / len(points)) ** 0.5)
    looks = ((~chosen, 0.18 if chosen.any() else 0.85, "#00000028", 0.3), (chosen, 1.0, "black", 0.7))
    for part, alpha, edge, width in looks:
        rows = order[part[order]]
        marks = [_marker(int(labels[row])) for row in rows]
        faces = to_rgba_array([colour for _, colour in marks], alpha)
        paths = [path for path, _ in marks]
        drawn = PathCollection(paths, [size], offsets=points[rows], offset_transform=axis.transData)
        drawn.set(facecolor=faces, edgecolor=edge, linewidth=width, transform=IdentityTransform())
        axis.add_collection(drawn)
    axis.update_datalim(points)
    axis.margins(0.05)
    axis.autoscale_view()
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color(_UNMEASURED)


def _table(axis: Axes, by_class: Sequence[ClassNumbers], total: ClassNumbers, names: Sequence[str]) -> None:
    axis.set_axis_off()
    lines = [("Class", "selected", "kNN, sel.", "kNN, all"), *(one.texts for one in by_class), total.texts]
    axis.set(xlim=(0, 1), ylim=(max(len(lines), 16) - 0.5, -0.5))
    for row, texts in enumerate(lines):
        weight = "bold" if row in (0, len(lines) - 1) else "normal"
        for x, text, side in zip((0.07, 0.62, 0.82, 1.0), texts, ("left", "right", "right", "right"), strict=True):
            axis.text(x, row, text, ha=side, va="center", fontsize=8, fontweight=weight)
    for row, one in enumerate(by_class, start=1):
        path, colour = _marker(names.index(one.name))
        axis.plot(0.02, row, marker=path, color=colour, markersize=6, markeredgecolor="#00000070", markeredgewidth=0.4)


def _heat_map(
    axis: Axes, shown: Float[np.ndarray, "layers columns"], colours: Colormap, limits: tuple[float, float]
) -> None:
    axis.set_facecolor(_UNMEASURED)
    axis.imshow(
        shown, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto", interpolation="nearest"
    )
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            red, green, blue, _ = colours((float(value) - limits[0]) / (limits[1] - limits[0]))
            ink = "#111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 / 255 else "#fff"
            axis.text(column, row, heat_number(float(value), limits), ha="center", va="center", fontsize=7, color=ink)


def _ticks(axis: Axes, across: str, columns: Sequence[Any], layers: Sequence[Any]) -> None:
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns], fontsize=7)
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
    axis.set_xlabel(across, fontsize=8, fontstyle="italic")
    axis.set_ylabel("layer", fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _bar(figure: Figure, maps: Sequence[Axes], limits: tuple[float, float], chance: float | None) -> None:
    bar = figure.colorbar(maps[0].images[0], ax=list(maps), location="bottom", fraction=0.05, aspect=40, shrink=0.6)
    ticks = [limits[0], sum(limits) / 2, limits[1]]
    bar.set_ticks(ticks, labels=[heat_number(tick, limits) for tick in ticks], fontsize=7)
    bar.outline.set_visible(False)
    if chance is not None:
        bar.ax.axvline(chance, color=_INK, linewidth=1.5)
        part = (chance - limits[0]) / (limits[1] - limits[0])
        side = "left" if part < 0.1 else "right" if part > 0.9 else "center"
        where = bar.ax.get_xaxis_transform()
        bar.ax.text(chance, 1.3, f"chance {heat_number(chance, limits)}", transform=where, fontsize=7, ha=side)
