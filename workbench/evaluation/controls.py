"""Detectors that learned nothing: a random network and the pixels. A ranking that they reverse is in doubt."""

import hashlib

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from workbench.diffusion.randomness import normal
from workbench.evaluation.detectors import SPATIAL, Detected, FrozenDetector

_SEED = 0
_STAGES = ((3, 16, 1), (16, 32, 2), (32, 32, 2))  # channels in, channels out, stride
_LEAST = 8
_SPATIAL_SIDE = 4  # covariances of large maps would not fit into memory
_PIXEL_SIDE = 32
_COMPONENTS = 64


def randomconv(device: torch.device) -> FrozenDetector:
    """Features of an untrained convolutional network (Naeem et al. 2020 score with such): mean and standard deviation
    over the map of each of 32 channels; spatial features are area averages on at most 4 x 4 places.

    Three 3 x 3 convolutions with GELU and Kaiming's scale, drawn by address: the same on every machine.
    """
    weights = []
    for index, (inputs, outputs, _) in enumerate(_STAGES):
        drawn = normal(_SEED, "randomconv", [index], (outputs, inputs, 3, 3))[0]
        weights.append(drawn * (2 / (9 * inputs)) ** 0.5)
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()
    weights = [weight.to(device) for weight in weights]

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps = _scaled(images.to(device)).expand(-1, 3, -1, -1)
        for weight, (*_, stride) in zip(weights, _STAGES, strict=True):
            maps = F.gelu(F.conv2d(maps, weight, stride=stride, padding=1))
        features = torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)], dim=1)
        return Detected(features, _shrunk(maps[:, :SPATIAL], _SPATIAL_SIDE), None)

    width = 2 * _STAGES[-1][1]
    resize = f"none, any size from {_LEAST} x {_LEAST}"
    return FrozenDetector("randomconv", digest, width, resize, device, read, None, least=_LEAST)


def pixels_pca64(device: torch.device) -> FrozenDetector:
    """The pixels in [-1, 1], channel by channel and row by row, to be compared by 64 principal components.

    Grey images stay of one channel, so the width is that of the images: 1024 or 3072 of 32 x 32 pixels.
    """

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = _shrunk(_scaled(images.to(device)), _PIXEL_SIDE)
        return Detected(rearrange(pixels, "b c h w -> b (c h w)"), None, None)

    resize = f"area averages to at most {_PIXEL_SIDE} x {_PIXEL_SIDE} (adaptive_avg_pool2d), never enlarged"
    return FrozenDetector("pixels-pca64", "no weights", None, resize, device, read, None, reduction=_COMPONENTS)


def _scaled(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return images.float() / 127.5 - 1


def _shrunk(maps: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c x y"]:
    """Averages over the areas of at most `side * side` places; maps that have no more are left as they are."""
    h, w = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(h, side), min(w, side)))
