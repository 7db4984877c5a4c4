"""Helpers of all matplotlib figures: images in rows and columns, and figures as files."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

# Without dates and random names, so that equal figures give equal bytes.
METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


def encoded(figures: Sequence[Figure], ending: str, dpi: int = 220, *, tight: bool = True) -> bytes:
    """Content of a PNG or SVG file (one figure), or of a PDF with a page for each; `tight` crops the margins."""
    buffer, box = io.BytesIO(), "tight" if tight else None
    with rc_context(
        {"svg.hashsalt": "workbench", "pdf.fonttype": 42}
    ):  # embeds fonts in a PDF, so that text can be edited
        if ending == "pdf":
            with PdfPages(buffer, metadata=METADATA["pdf"]) as pages:
                for figure in figures:
                    pages.savefig(figure, facecolor="white", bbox_inches=box)
        else:
            (figure,) = figures
            figure.savefig(
                buffer, format=ending, dpi=dpi, metadata=METADATA[ending], facecolor="white", bbox_inches=box
            )
    return buffer.getvalue()


def mosaic(
    rows: Sequence[Sequence[Shaped[np.ndarray, "_ _ 3"]]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    cell: float | int,
    row_colours: Sequence[str] = (),
    size: float | int = 8,
    outlines: Sequence[Bool[np.ndarray, "_ _"]] = (),
    notes: Sequence[Sequence[str]] = (),
) -> Figure:
    """Images of any size in squares of `cell` inches, with names of rows and columns in a font of `size` points.

    `outlines` has a mask for each row, whose edge is drawn over all its images, and `notes` a short text under each.
    """
    tall, wide, gap = len(rows), len(rows[0]), 0.06
    letter = 0.0089 * size  # inches
    under = 1.7 * letter / cell if notes else 0.0  # height of a note
    names = [wrapped(name, max(5, int(cell / letter))) for name in column_names]
    left = 0.12 + letter * max((len(line) for name in row_names for line in name.split("\n")), default=0)
    top = 0.1 + 2 * letter * max((name.count("\n") + 1 for name in names), default=0)
    figure = Figure(figsize=(left + cell * wide + 0.1, top + cell * (1 + under) * tall + 0.05), layout="constrained")
    axis = figure.subplots()
    tops = [y * (1 + under) for y in range(tall)]
    for y, row in zip(tops, rows, strict=True):
        for x, picture in enumerate(row):
            axis.imshow(picture, extent=(x, x + 1 - gap, y + 1 - gap, y), interpolation="nearest")
    for y, mask in zip(tops, outlines, strict=False):
        for x in range(wide):
            outline(axis, mask, (x, y, 1 - gap))
    for y, texts in zip(tops, notes, strict=False):
        for x, note in enumerate(texts):
            axis.text(x + (1 - gap) / 2, y + 1 - gap / 2, note, ha="center", va="top", fontsize=0.85 * size)
    axis.set(xlim=(0, wide - gap), ylim=(tops[-1] + 1 - gap + under, 0), aspect="equal")
    axis.set_xticks([x + (1 - gap) / 2 for x in range(len(names))], names, fontsize=size)
    axis.set_yticks([y + (1 - gap) / 2 for y in tops], row_names, fontsize=size)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for text, colour in zip(axis.get_yticklabels(), row_colours, strict=False):
        text.set_color(colour)
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)
    return figure


def outline(axis: Axes, mask: Bool[np.ndarray, "h w"], place: tuple[float | int, float | int, float | int]) -> None:
    """The edge of a mask in the square at (left, top) of this side, black within white to be seen on any colour."""
    left, top, side = place
    # A frame around it closes the edge of an object at the border.
    framed, (height, width) = np.pad(mask, 1).astype(np.float64), mask.shape
    across, down = (np.arange(-1, count + 1) + 0.5 for count in (width, height))
    for colour, thickness in (("white", 1.4), ("black", 0.7)):
        axis.contour(
            left + side * (across / width).clip(0, 1),
            top + side * (down / height).clip(0, 1),
            framed,
            levels=[0.5],
            colors=colour,
            linewidths=thickness,
        )


def coloured(images: np.ndarray) -> np.ndarray:
    """Images ``n c h w``, ``n h w c`` or ``h w c``, of one or three channels, as RGB with the channels last."""
    first = images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3)
    last = np.moveaxis(images, 1, -1) if first else images
    return np.repeat(last, 3, axis=-1) if last.shape[-1] == 1 else last[..., :3]


def wrapped(text: str, width: int) -> str:
    """The text in lines of about `width` letters."""
    return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in text.split("\n"))


def show_picture(axis: Axes, picture: np.ndarray | None) -> None:
    """Draw an image without ticks or a frame; None leaves the axes empty."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if picture is None:
        axis.patch.set_visible(False)
    else:
        axis.imshow(picture, interpolation="nearest")
