"""scikit-learn's 8x8 digits."""

import importlib.util
from pathlib import Path

import numpy as np

from workbench.config import DataConfig
from workbench.data.images import Images, foreign_path, from_arrays


def load(config: DataConfig, split: str) -> Images:
    """The digits, upsampled to 32x32 by repeating pixels; every fifth image is in the test split."""
    if config.path:
        raise foreign_path(config)
    rows = _rows()
    chosen = (np.arange(len(rows)) % 5 == 4) == (split == "test")
    pixels = np.minimum(rows[chosen, :64] * 16, 255).astype(np.uint8).reshape(-1, 8, 8)
    pixels = pixels.repeat(4, axis=1).repeat(4, axis=2)
    classes = [str(digit) for digit in range(10)]
    return from_arrays("digits", split, pixels[:, None], rows[chosen, 64], classes, "scikit-learn")


def _rows() -> np.ndarray:
    """64 pixels in 0..16 and the digit of each image."""
    # scikit-learn's function would import all of it, which takes longer than a small training's first steps.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", np.int64, delimiter=",")
