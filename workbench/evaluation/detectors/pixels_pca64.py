"""The pixels themselves, without a network. A ranking that they reverse is in doubt."""

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from workbench.evaluation.detectors.base import Detected, FrozenDetector, area_averages, scaled

_SIDE = 32
_COMPONENTS = 64


def load(device: torch.device) -> FrozenDetector:
    """The pixels in [-1, 1], by channel and row, reduced to 64 principal components before they are compared.

    Grey images keep one channel, so images of 32 x 32 pixels have 1024 or 3072 features.
    """

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = area_averages(scaled(images.to(device)), _SIDE)
        return Detected(rearrange(pixels, "b c h w -> b (c h w)"), None, None)

    resize = f"area averages to at most {_SIDE} x {_SIDE} (adaptive_avg_pool2d), never enlarged"
    return FrozenDetector("pixels-pca64", "no weights", None, resize, device, read, None, reduction=_COMPONENTS)
