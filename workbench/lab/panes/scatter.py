"""Scatter plot of images by class (PCA, t-SNE or UMAP), with the kNN accuracy of each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, UInt16
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

from workbench.lab.palette import UNMEASURED, class_look
from workbench.lab.panes import Arrays, AxesByName, Meta, Pane, State, fixed, nearest_stop, text_of

METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_LISTED = 40  # classes in the table of a figure


class ScatterPane(Pane):
    """Scatter plot. `meta` has the `names` of the classes; `correct_given` is kNN correctness by the `given` labels."""

    ARRAYS: ClassVar = {
        "u": ("int16", "source step t layer n 2"),
        "d": ("int16", "source step t layer n 2"),
        "u_scale": ("float32", "source step t layer"),
        "d_scale": ("float32", "source step t layer"),
        "tsne?": ("int16", "source step t layer stops n 2"),
        "tsne_scale?": ("float32", "source step t layer ..."),
        "umap?": ("int16", "source step t layer stops n 2"),
        "umap_scale?": ("float32", "source step t layer ..."),
        "labels": ("uint16", "n"),
        "given?": ("uint16", "n"),
        "sprite": ("uint8", "n h w c"),
        "correct": ("uint8", "source step t layer stops n"),
        "correct_given?": ("uint8", "source step t layer stops n"),
    }

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        choices = {"method": ["pca", *(name for name in ("tsne", "umap") if name in self.arrays)]}
        return {**choices, "labels": ["true", "given"]} if "given" in self.arrays else choices

    def inferred(self) -> dict[str, Any]:
        if ("given" in self.arrays) != ("correct_given" in self.arrays):
            raise ValueError(
                f"{self.title}: arrays are {sorted(self.arrays)}; given and correct_given must be present together"
            )
        return {}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_scatter(self.complete(axes), self.arrays, state, axes)

    @property
    def selects(self) -> bool:
        return True


@dataclass(frozen=True)
class ClassNumbers:
    """Number of images of a class that are selected, and that kNN classifies correctly."""

    name: str
    selected: int
    all: int
    right: int
    right_all: int

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Cells of the table: name, "47 of 412", kNN accuracy of the selected images and of all."""
        count = f"{self.selected:,} of {self.all:,}"
        return self.name, count, _share(self.right, self.selected), _share(self.right_all, self.all)


def class_numbers(
    pane: Meta, arrays: Arrays, state: State, axes: AxesByName
) -> tuple[list[ClassNumbers], ClassNumbers]:
    """Numbers of each class that has images, and of all images, at the stop nearest to w."""
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


def positions(arrays: Arrays, state: State, axes: AxesByName) -> Float64[np.ndarray, "n 2"]:
    """Positions of the points: u + w d (Eq. 3) for PCA, those of the nearest stop for other methods."""
    at, method = _at(state), state["method"]
    if method == "pca":
        u, d = (arrays[name][at] * float(arrays[f"{name}_scale"][at]) for name in ("u", "d"))
        return u + state.get("w", 0.0) * d
    stop, scale = _stop(state, axes), arrays[f"{method}_scale"]
    return arrays[method][(*at, stop)] * float(scale[(*at, stop)[: scale.ndim]])


def draw_scatter(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """Points by class, the selected ones outlined and on top, and a table of the classes."""
    by_class, total = class_numbers(pane, arrays, state, axes)
    if len(by_class) > _LISTED:  # selected classes first; the last line gives the number of classes
        total = replace(total, name=f"All {len(by_class):,} classes")
        by_class = sorted(by_class, key=lambda one: not one.selected)[:_LISTED]
    figure = Figure(figsize=(8.4, max(4.6, 0.8 + 0.24 * len(by_class))), layout="constrained")
    plot, table = figure.subplots(1, 2, width_ratios=(4.6, 3.4))
    points = positions(arrays, state, axes)
    draw_points(plot, points, _labels(arrays, state), _selected(state, len(points)))
    plot.set_title(_scatter_title(state, axes), loc="left", fontsize=9, fontweight="bold")
    _table(table, by_class, total, [str(name) for name in pane["names"]])
    note = "kNN: majority of the nearest other images by cosine in the original space"
    note += ", by the given labels." if _given(state) else "."
    if state["method"] != "pca":
        note = f"Distances between clusters, and their sizes, mean nothing in {METHODS[state['method']]}. {note}"
    figure.supxlabel(note, fontsize=7, color="#5a6068", x=0.01, ha="left")
    return figure


def _selected(state: State, count: int) -> Bool[np.ndarray, " n"]:
    if any(row >= count for row in state["selection"]):
        raise ValueError(f"row {max(state['selection'])} is selected; allowed are 0 to {count - 1}")
    return np.isin(np.arange(count), state["selection"])


def _share(part: int, of: int) -> str:
    return "–" if not of else fixed(part / of, 2).removeprefix("0")


def _at(state: State) -> tuple[int, int, int, int]:
    source, step, t, layer = (state.get(name, 0) for name in ("source", "step", "t", "layer"))
    return source, step, t, layer


def _stop(state: State, axes: AxesByName) -> int:
    return nearest_stop(axes["w"].stops if "w" in axes else (), state.get("w"))


def _labels(arrays: Arrays, state: State) -> UInt16[np.ndarray, " n"]:
    return arrays["given" if _given(state) else "labels"]


def _given(state: State) -> str:
    return "_given" if state.get("labels") == "given" else ""


def _scatter_title(state: State, axes: AxesByName) -> str:
    parts = [METHODS[state["method"]]]
    for name in ("source", "step", "layer", "t", "w"):
        if name in axes:
            text = text_of(name, state, axes)
            parts.append(
                text if name == "source" else f"{name} = {text}" if len(name) == 1 else f"{axes[name].label} {text}"
            )
    if "w" in axes and axes["w"].stops:
        stop = axes["w"].stops[_stop(state, axes)]
        if abs(stop - state["w"]) >= 1e-6:
            parts.append(f"{'kNN' if state['method'] == 'pca' else 'shown'} at w = {stop:g}, the nearest stop")
    return " · ".join(parts)


def _marker(label: int) -> tuple[Path, str]:
    """Outline of the marker of a class, about as large as a unit circle, and its colour."""
    colour, marker = class_look(label)
    style = MarkerStyle(marker)
    return style.get_path().transformed(style.get_transform()), colour


def class_marker(label: int) -> dict[str, Any]:
    """Marker and colour of a class, as matplotlib's `plot` takes them."""
    path, colour = _marker(label)
    return {"marker": path, "color": colour, "markeredgecolor": "#00000070", "markeredgewidth": 0.4}


def draw_points(
    axis: Axes,
    points: Float[np.ndarray, "n 2"],
    labels: Integer[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"] | None = None,
    size: float | int | None = None,
) -> None:
    """Draw points by class on axes without ticks; the `chosen` ones are outlined, the others faint.

    `size` is the area of a marker in square points; by default it depends on the number of points.
    """
    chosen = np.zeros(len(points), dtype=bool) if chosen is None else chosen
    order = np.random.default_rng(0).permutation(len(points))  # so that no class hides the others
    size = 4 + 16 * min(1.0, (500 / len(points)) ** 0.5) if size is None else size
    looks = ((~chosen, 0.18 if chosen.any() else 0.85, "#00000028", 0.3), (chosen, 1.0, "black", 0.7))
    for part, alpha, edge, width in looks:
        rows = order[part[order]]
        markers = [_marker(int(labels[row])) for row in rows]
        faces = to_rgba_array([colour for _, colour in markers], alpha)
        paths = [path for path, _ in markers]
        drawn = PathCollection(paths, [size], offsets=points[rows], offset_transform=axis.transData)
        drawn.set(facecolor=faces, edgecolor=edge, linewidth=width, transform=IdentityTransform())
        axis.add_collection(drawn)
    axis.update_datalim(points)
    axis.margins(0.05)
    axis.autoscale_view()
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color(UNMEASURED)


def _table(axis: Axes, by_class: Sequence[ClassNumbers], total: ClassNumbers, names: Sequence[str]) -> None:
    axis.set_axis_off()
    lines = [("Class", "selected", "kNN, sel.", "kNN, all"), *(one.texts for one in by_class), total.texts]
    axis.set(xlim=(0, 1), ylim=(max(len(lines), 16) - 0.5, -0.5))
    for row, texts in enumerate(lines):
        weight = "bold" if row in (0, len(lines) - 1) else "normal"
        for x, text, side in zip((0.07, 0.62, 0.82, 1.0), texts, ("left", "right", "right", "right"), strict=True):
            axis.text(x, row, text, ha=side, va="center", fontsize=8, fontweight=weight)
    for row, one in enumerate(by_class, start=1):
        axis.plot(0.02, row, markersize=6, **class_marker(names.index(one.name)))
