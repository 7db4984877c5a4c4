"""Heat maps of measures: layer by t at the chosen w, and layer by w at the chosen t."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.lab.palette import DIVERGING, UNMEASURED
from workbench.lab.panes import Arrays, AxesByName, Meta, Pane, State, fixed, nearest_stop, text_of

_INK = "#1c1e21"
_DIVERGING = LinearSegmentedColormap.from_list("blue-brown", DIVERGING)
_CELL = (0.42, 0.27)  # inches of a cell


class HeatPane(Pane):
    """`meta` has the `measures`, `versions` and `scales` of the arrays, and by measure `chance` and `centre`.

    With `follows`, the version is that of the source: for each source its name by the true and by the given labels.
    """

    ARRAYS: ClassVar = {
        name: ("float32", "measures versions layers times scales") for name in ("values", "low", "high")
    }

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        versions = {} if "follows" in self.meta else {"version": list(self.meta["versions"])}
        return {"measure": list(self.meta["measures"]), **versions}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_heat(self.complete(axes), self.arrays, state, axes)


def draw_heat(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """A measure over layer and t at the measured scale nearest to w, and over layer and w at the chosen t."""
    version, names = version_of(pane, state), pane.get("labels", {})
    at = pane["measures"].index(state["measure"]), pane["versions"].index(version)
    values, scales = arrays["values"][at], pane["scales"]
    limits = heat_limits(pane, arrays, state["measure"])
    layer, t, w = state.get("layer", 0), state.get("t", 0), state.get("w")
    scale = measured_scale(values, scales, w)
    near = "" if w is None or abs(scales[scale] - w) < 1e-6 else f" (nearest to {w:g})"
    only = f" (w = {scales[scale]:g} only)" if np.isfinite(values).any(axis=(0, 1)).sum() == 1 else ""
    panels = [(f"at w = {scales[scale]:g}{near}", "t", values[:, :, scale], t, _values("t", axes, values.shape[1]))]
    if len(scales) > 1:
        panels.append(
            (f"at t = {text_of('t', state, axes) if 't' in axes else 0}{only}", "w", values[:, t], scale, list(scales))
        )
    columns = [len(ticks) for *_, ticks in panels]
    width = max(4.2, 1.1 * len(panels) + _CELL[0] * sum(columns))
    figure = Figure(figsize=(width, 1.7 + _CELL[1] * len(values)), layout="constrained")
    maps = list(figure.subplots(1, len(panels), width_ratios=columns, squeeze=False)[0])
    colours = _DIVERGING if state["measure"] in pane.get("centre", {}) else colormaps["viridis"]
    for axis, (title, across, shown, column, ticks) in zip(maps, panels, strict=True):
        _heat_map(axis, shown, colours, limits)
        for colour, thickness in (("white", 3.2), ("black", 1.6)):  # seen on any colour
            place = (column - 0.5, layer - 0.5)
            axis.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=colour, linewidth=thickness, clip_on=False))
        axis.set_title(title, loc="left", fontsize=8)
        _ticks(axis, axes[across].label if across in axes else across, ticks, _values("layer", axes, len(values)))
    title = " · ".join(names.get(name, name) for name in (state["measure"], version))
    figure.suptitle(title, fontsize=9, fontweight="bold")
    _bar(figure, maps, limits, pane.get("chance", {}).get(state["measure"]))
    return figure


def version_of(pane: Meta, state: State) -> str:
    """The version that is shown: that of the state, or the one of its source and labels."""
    if "follows" not in pane:
        return state["version"]
    by_true, by_given = pane["follows"][state.get("source", 0)]
    return by_given if state.get("labels") == "given" else by_true


def heat_limits(pane: Meta, arrays: Arrays, measure: str) -> tuple[float, float]:
    """Colour limits of a measure: over all versions, so that these can be compared, and including chance.

    If the measure has a `centre`, they are symmetric about it.
    """
    values = arrays["values"][list(pane["measures"]).index(measure)]
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        known = np.array([0.0, 1.0])
    elif measure in pane.get("chance", {}):
        known = np.append(known, pane["chance"][measure])
    low, high = float(known.min()), float(known.max())
    centre = pane.get("centre", {}).get(measure)
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        return centre - reach, centre + reach
    return low, high if high > low else low + 1


def measured_scale(values: Float[np.ndarray, "layers times scales"], scales: Sequence[float], w: float | None) -> int:
    """Index of the scale nearest to w among those with a measured value."""
    measured = np.flatnonzero(np.isfinite(values).any(axis=(0, 1)))
    measured = measured if len(measured) else np.arange(values.shape[2])
    return int(measured[nearest_stop([scales[k] for k in measured.tolist()], scales[0] if w is None else w)])


def heat_number(value: float, limits: tuple[float | int, float | int], digits: int = 2) -> str:
    """The text of a cell, with digits by the larger limit: ".83" up to 1, "3.2" below 10, "41" above."""
    size = max(abs(limits[0]), abs(limits[1]))
    text = fixed(value, digits if size <= 1 else digits - 1 if size < 10 else max(0, digits - 2) if size < 100 else 0)
    text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return text.removeprefix("-") if not text.strip("-.0") else text


def _values(name: str, axes: AxesByName, count: int) -> list[Any]:
    return list(axes[name].values) if name in axes else list(range(count))


def _heat_map(
    axis: Axes, shown: Float[np.ndarray, "layers columns"], colours: Colormap, limits: tuple[float, float]
) -> None:
    axis.set_facecolor(UNMEASURED)
    axis.imshow(
        shown, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto", interpolation="nearest"
    )
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            red, green, blue, _ = colours((float(value) - limits[0]) / (limits[1] - limits[0]))
            ink = "#111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 / 255 else "#fff"
            axis.text(column, row, heat_number(float(value), limits), ha="center", va="center", fontsize=7, color=ink)


def _ticks(axis: Axes, name: str, columns: Sequence[Any], layers: Sequence[Any]) -> None:
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns], fontsize=7)
    axis.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
    axis.set_xlabel(name, fontsize=8)
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
