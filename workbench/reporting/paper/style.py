"""Style of the paper's figures, at the width of a column or of a page, and its line charts, dot plots and image grids.

Colours, markers and lines are those of `workbench.lab.palette`, the same for a method in all figures.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Shaped
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from workbench.lab.drawing import mosaic
from workbench.lab.palette import GREY
from workbench.reporting.figures import LOOK

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLUMN, PAGE = 3.3, 6.9  # inches
_BANDS = 4  # number of points from which intervals are drawn as bands
NAMES = {
    "plain": "plain",
    "vae": "VAE-aligned",
    "guided": "Self-Transcendence",
    "repa": "REPA",
    "dispersive": "Disperse Loss",
    "sra": "SRA",
    "layersync": "LayerSync",
}
_LOOK: "dict[RcKeyType, Any]" = {
    **LOOK,
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of a method: means over seeds at positions x, with intervals if there are any."""

    label: str
    style: Mapping[str, Any]
    x: Sequence[float | int]
    mean: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class Dots:
    """A row of a dot plot: values by seed, their mean with its interval, and the paper's value."""

    label: str
    style: Mapping[str, Any]
    values: Sequence[float | int] = ()
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    paper: float | None = None


@contextmanager
def look() -> Iterator[None]:
    """Apply the style to figures made inside."""
    with rc_context(_LOOK):
        yield


def lines(curves: Sequence[Curve], x: str, y: str, *, width: float = COLUMN, floor: float | None = None) -> Figure:
    """Curves with intervals, drawn as bands or, for few points, as bars side by side; the legend is above.

    A floor far below all curves is written below the axis instead, so that it does not flatten them.
    """
    with look():
        figure = Figure(figsize=(width, 0.72 * COLUMN + 0.3), layout="constrained")
        axis = figure.subplots()
        few = max((len(curve.x) for curve in curves), default=0) < _BANDS
        xs = [x for curve in curves for x in curve.x]
        shared = len(set(xs)) < len(xs)  # then markers would hide each other
        span = max(xs, default=1) - min(xs, default=0) or max(xs, default=1)
        for number, curve in enumerate(curves):
            shift = 0.018 * span * (number - (len(curves) - 1) / 2) if few and shared else 0.0
            _curve(axis, curve, shift, few)
        far = floor is not None and _far(floor, curves)
        if floor is not None and not far:
            axis.axhline(floor, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="real images", zorder=1)
        axis.set(xlabel=f"{x}\n(real images: {floor:.2g})" if far else x, ylabel=y)
        thousands(axis)
        if curves:
            _legend(figure, 2 if width < PAGE else 4)
    return figure


def _legend(figure: Figure, columns: int) -> None:
    """Legend above the axes, in as many columns as fit."""
    while True:
        legend = figure.legend(loc="outside upper center", ncols=columns, handlelength=3, columnspacing=1)
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
        columns -= 1


def _curve(axis: Axes, curve: Curve, shift: float, few: bool) -> None:
    xs = [x + shift for x in curve.x]
    axis.plot(xs, curve.mean, label=curve.label, zorder=3, **curve.style)
    if curve.low is None or curve.high is None:
        return
    if few:
        axis.vlines(xs, curve.low, curve.high, color=curve.style.get("color"), linewidth=1)
    else:
        axis.fill_between(xs, curve.low, curve.high, color=curve.style.get("color"), alpha=0.15, linewidth=0)


def _far(floor: float, curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for value in (*curve.mean, *(curve.low or ()), *(curve.high or ()))]
    return bool(values) and min(values) - floor > 0.5 * (max(values) - min(values))


def dot_plot(
    rows: Sequence[Dots], x: str, *, width: float = PAGE, zero: str = "", seeds: str = "one seed", below: str = ""
) -> Figure:
    """Dot plot: faint markers for seeds, a strong one with a bar for their mean, a hollow diamond for the paper.

    `below` is text under the axis, which describes our models and the paper's.
    """
    lines = below.count("\n") + 1 if below else 0
    with look():
        figure = Figure(figsize=(width, 0.21 * len(rows) + 0.95 + 0.14 * lines), layout="constrained")
        if below:
            figure.supxlabel(below, fontsize=_LOOK["xtick.labelsize"])
        axis = figure.subplots()
        for y, row in enumerate(rows):
            _row(axis, y, row)
        if zero:
            axis.axvline(0, color=GREY, linewidth=1, zorder=1)
        axis.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), [row.label for row in rows])
        axis.grid(axis="y", visible=False)
        _key(figure, axis, rows, seeds)
    return figure


def grid(
    rows: Sequence[Sequence[Shaped[np.ndarray, "_ _ 3"]]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    cell: float | int,
    row_colours: Sequence[str] = (),
    outlines: Sequence[Bool[np.ndarray, "_ _"]] = (),
    notes: Sequence[Sequence[str]] = (),
) -> Figure:
    """Images in squares of `cell` inches, with names, outlines and notes as `lab.drawing.mosaic` draws them."""
    with look():
        return mosaic(
            rows,
            row_names,
            column_names,
            cell=cell,
            row_colours=row_colours,
            size=_LOOK["xtick.labelsize"],
            outlines=outlines,
            notes=notes,
        )


def thousands(axis: Axes) -> None:
    """Few, round ticks along x, with thousands separators."""
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_major_locator(MaxNLocator(5))


def _row(axis: Axes, y: int, row: Dots) -> None:
    colour, marker = row.style.get("color", GREY), row.style.get("marker", "o")
    axis.plot(row.values, [y] * len(row.values), marker, color=colour, alpha=0.35, markersize=3.5, zorder=2)
    if row.mean is not None:
        axis.plot([row.mean], [y], marker, color=colour, markersize=6, zorder=4)
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [y, y], color=colour, linewidth=1.6, zorder=3)
    if row.paper is not None:
        axis.plot([row.paper], [y], "d", color="black", markerfacecolor="white", markersize=5.5, zorder=5)


def _key(figure: Figure, axis: Axes, rows: Sequence[Dots], seeds: str) -> None:
    handles, both = [], any(row.paper is not None for row in rows)
    ours = "ours: " if both else ""
    if any(row.values for row in rows):
        handles += axis.plot([], [], "o", color=GREY, alpha=0.35, markersize=3.5, label=f"{ours}{seeds}")
        handles += axis.plot([], [], "o-", color=GREY, markersize=6, label=f"{ours}mean, 95\u202f% t interval")
    if both:
        handles += axis.plot([], [], "d", color="black", markerfacecolor="white", markersize=5.5, label="paper")
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
