"""Figure of similarity maps: how much each token is like one or several chosen tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.features.similarity import Token
from workbench.lab.drawing import coloured, outline, show_picture, wrapped

COSINES = (0.0, 1.0)  # of the colours, viridis; cosines below are drawn as the lowest
_CELL = 1.15  # inches of a map
LETTERS = 21  # of seven points that are as wide as a map
_LEGEND = 0.55  # inches of the colour bar and its text


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """One column: the lines of its caption, and the similarities of all tokens of all images."""

    lines: Sequence[str]
    similarity: Float64[np.ndarray, "n m"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """A column of pictures beside the images: the lines of its caption, and a picture for each image."""

    lines: Sequence[str]
    images: UInt8[np.ndarray, "n h w c"]


def draw_similarity(
    images: np.ndarray,
    maps: Sequence[SimilarityMap],
    shown: Sequence[int],
    names: Sequence[str],
    tokens: Sequence[Token],
    several: str,
    objects: np.ndarray | None = None,
    beside: Sequence[Pictures] = (),
) -> Figure:
    """The images `shown` (rows), and beside each the similarity of its tokens to `tokens`, one column for each map.

    The chosen tokens are framed, and the objects of images with masks outlined. `beside` are further pictures.
    """
    only = names[shown[0]] if len(shown) == 1 else "images"
    pictures = [Pictures([only], images), *beside]
    size = _CELL * (len(maps) + len(pictures)), _CELL * len(shown) + 0.75 + _LEGEND
    figure = Figure(figsize=(max(size[0], 3.6), size[1]), layout="constrained")
    cells = figure.subplots(len(shown), len(maps) + len(pictures), squeeze=False)
    side = math.isqrt(maps[0].similarity.shape[1])
    low, high = COSINES
    for row, image in zip(cells, shown, strict=True):
        for axis, of in zip(row, pictures, strict=False):
            show_picture(axis, coloured(of.images[image]))
        for axis, column in zip(row[len(pictures) :], maps, strict=True):
            show_picture(axis, None)
            grid = rearrange(column.similarity[image], "(h w) -> h w", h=side)
            axis.patch.set_visible(True)
            axis.imshow(grid, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        for axis in row:
            frame_tokens(axis, [token for of, token in tokens if of == image], side)
        if objects is not None:
            outline_object(list(row), objects[image])
    captions = [*(of.lines for of in pictures), *(of.lines for of in maps)]
    for axis, lines in zip(cells[0], captions, strict=True):
        axis.set_title(wrapped("\n".join(lines), LETTERS), fontsize=7, loc="left")
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), "viridis"),
        ax=cells,
        orientation="horizontal",
        fraction=0.03,
        aspect=40,
        extend="min",
    )
    bar.set_label(similarity_text(tokens, names, several, side), fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def outline_object(axes: Sequence[Axes], mask: np.ndarray) -> None:
    """The edge of a mask over pictures of the same place."""
    for axis in axes:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        outline(axis, mask > 0, (left, top, right - left))
        axis.set(xlim=(left, right), ylim=(bottom, top))


def similarity_text(tokens: Sequence[Token], names: Sequence[str], several: str, side: int) -> str:
    """What the colours show, such as "cosine similarity to row 3, column 4 of image 2 of 6: boot"."""
    where = [f"row {token // side + 1}, column {token % side + 1} of {names[image]}" for image, token in tokens]
    whole = f"{several} of {len(tokens)} tokens" if len(tokens) > 1 else where[0]
    return f"cosine similarity to {whole}" if len(tokens) == 1 else f"cosine similarity, {whole}"


def frame_tokens(axis: Axes, tokens: Sequence[int], side: int) -> None:
    """A frame around tokens, white within black to be seen on any colour."""
    (left, right), (_, top) = axis.get_xlim(), axis.get_ylim()
    cell = (right - left) / side
    for token in tokens:
        corner = (left + cell * (token % side), top + cell * (token // side))
        for colour, width in (("black", 2.4), ("white", 1.2)):
            axis.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=colour, linewidth=width, clip_on=False))
