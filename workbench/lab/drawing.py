"""What the drawings of all panes share: pictures on axes, and figures as files."""

import io
from collections.abc import Sequence

import numpy as np
from einops import repeat
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure


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


def coloured(image: np.ndarray) -> np.ndarray:
    return repeat(image, "h w 1 -> h w c", c=3) if image.shape[-1] == 1 else image[..., :3]


def show_picture(axis: Axes, picture: np.ndarray | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if picture is None:
        axis.patch.set_visible(False)
    else:
        axis.imshow(picture, interpolation="nearest")
