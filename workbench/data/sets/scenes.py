"""Garments of Fashion-MNIST, coloured, on crops of scikit-learn's photographs (`data.scenes`), with masks."""

import numpy as np
from jaxtyping import Float32, Int, UInt8

from workbench.config import DataConfig
from workbench.data.images import Images
from workbench.data.scenes import CutOuts, scenes
from workbench.data.sets import fashion_mnist

_GARMENT = 12  # grey levels above are the garment; its black background has some of a few
_HOLE = 16  # pixels
_FAINT = 0.05  # opacity below which a grey level says nothing of the garment's
_HUE, _SATURATION, _LIGHT = range(3)


def load(config: DataConfig, split: str) -> Images:
    """Scenes of 32 or 64 pixels (``data.size``), one for each garment of ``data.source``."""
    garments = fashion_mnist.load(config, split)

    def paint(rows: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _painted(garments.read(rows)[:, 0, 2:-2, 2:-2], draws)

    return scenes(
        config,
        split,
        CutOuts("scenes", garments.labels, garments.classes, garments.origin, garments.content, 3, paint),
    )


def _painted(
    grey: UInt8[np.ndarray, "b k k"], draws: Float32[np.ndarray, "b 3"]
) -> tuple[Float32[np.ndarray, "b 4 k k"], Float32[np.ndarray, "b 3"]]:
    """Garments as premultiplied RGBA and their colours: any hue, saturation .3 to .9, lit from one side."""
    from scipy.ndimage import binary_erosion, binary_fill_holes, label, maximum_filter

    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    garment = grey > _GARMENT
    holes, _ = label(binary_fill_holes(garment, in_plane) & ~garment, in_plane)
    # Small holes are dark parts of the garment; large ones, such as a bag's handle, show what is behind.
    filled = garment | (holes > 0) & (np.bincount(holes.ravel())[holes] <= _HOLE)
    # A pixel at the edge that is darker than its neighbours shows the black behind it: it is partly transparent.
    share = grey / maximum_filter(grey, (1, 3, 3)).clip(1).astype(np.float32)
    opacity = np.where(binary_erosion(filled, in_plane), 1, (1.5 * share).clip(0, 1)) * filled
    grey = (grey / opacity.clip(_FAINT)).clip(0, 255)
    side = np.linspace(-1, 1, grey.shape[-1], dtype=np.float32)
    angle = 2 * np.pi * draws[:, _LIGHT, None, None]
    light = 0.85 + 0.15 * (np.cos(angle) * side + np.sin(angle) * side[:, None])
    value = light * (0.2 + 0.8 * grey / 255)
    colours = _rgb(draws[:, _HUE], 0.3 + 0.6 * draws[:, _SATURATION])
    painted = np.empty((len(grey), 4, *grey.shape[1:]), np.float32)
    painted[:, :3] = colours[:, :, None, None] * (value * opacity)[:, None]
    painted[:, 3] = opacity
    return painted, colours


def _rgb(hue: Float32[np.ndarray, "b"], saturation: Float32[np.ndarray, "b"]) -> Float32[np.ndarray, "b 3"]:
    """Colours of full value (HSV): hue and saturation in 0..1."""
    distance = np.abs((6 * hue[:, None] - np.array([0, 2, 4]) + 3) % 6 - 3)  # to red, green, blue on the circle
    return (1 - saturation[:, None] * (distance - 1).clip(0, 1)).astype(np.float32)


def hue_twelfths(colours: UInt8[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """The hue of each RGB colour as one of twelve equal parts of the circle, 0 to 11; 0 begins at red."""
    from matplotlib.colors import rgb_to_hsv

    return (12 * rgb_to_hsv(colours / 255)[:, 0]).astype(np.int64) % 12
