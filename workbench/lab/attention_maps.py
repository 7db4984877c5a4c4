"""Figure of attention maps: what a token looks at and which tokens look at it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float64, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workbench.lab.drawing import coloured, show_picture
from workbench.lab.panes import fixed
from workbench.lab.similarity_maps import frame_tokens, outline_object

TITLES = {"from": "what it looks at", "to": "what looks at it"}
WITH = {"null": "without the label", "true": "with the label"}
_CELL, _LEGEND = 1.3, 0.6  # inches of a map, and of the colour bar with its text


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """One map: the lines of its caption, and a weight for each token."""

    lines: Sequence[str]
    weights: Float64[np.ndarray, " m"]


def draw_attention(
    image: UInt8[np.ndarray, "h w c"],
    rows: Sequence[tuple[str, Sequence[AttentionMap]]],
    token: int,
    legend: str,
    mask: np.ndarray | None = None,
) -> Figure:
    """The image with its token framed, named for each row, and beside it the maps of the row, in one scale of colours.

    `mask` is 1 where the image shows its object, which is outlined.
    """
    wide, side = len(rows[0][1]) + 1, math.isqrt(len(rows[0][1][0].weights))
    figure = Figure(figsize=(_CELL * wide, (_CELL + 0.6) * len(rows) + _LEGEND), layout="constrained")
    cells = figure.subplots(len(rows), wide, squeeze=False)
    most = scale_of([of.weights for _, maps in rows for of in maps])
    for row, (name, maps) in zip(cells, rows, strict=True):
        show_picture(row[0], coloured(image))
        row[0].set_xlabel(name, fontsize=7, loc="left")
        for axis, of in zip(row[1:], maps, strict=True):
            show_picture(axis, None)
            axis.patch.set_visible(True)
            axis.imshow(rearrange(of.weights, "(h w) -> h w", h=side), cmap="viridis", vmin=0, vmax=most)
            axis.set_xlabel("\n".join(of.lines), fontsize=7, loc="left")
        for axis in row:
            frame_tokens(axis, [token], side)
        if mask is not None:
            outline_object(list(row), mask)
    colours = ScalarMappable(Normalize(0, most), "viridis")
    bar = figure.colorbar(colours, ax=cells, orientation="horizontal", fraction=0.03, aspect=40)
    bar.set_label(legend, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def scale_of(maps: Sequence[Float64[np.ndarray, " m"]]) -> float:
    """The weight that has the last colour: the largest of all maps."""
    return max(float(weights.max()) for weights in maps) or 1.0


def parts_text(itself: float, on_object: float | None, direction: str) -> list[str]:
    """Which part falls on the token and on the object, such as "3 % on itself"."""
    word = "on" if direction == "from" else "from"
    lines = [f"{share_text(itself)} {word} itself"]
    return lines if on_object is None else [*lines, f"{share_text(on_object)} {word} the object"]


def share_text(share: float) -> str:
    """A share in percent, with a decimal below ten."""
    percent = 100 * share
    return f"{fixed(percent, 1 if percent < 9.95 else 0)} %"
