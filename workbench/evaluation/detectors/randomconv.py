"""An untrained convolutional network. A ranking that it reverses is in doubt."""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from workbench.diffusion.randomness import normal
from workbench.evaluation.detectors.base import SPATIAL, Detected, FrozenDetector, area_averages, scaled

_SEED = 0
_STAGES = ((3, 16, 1), (16, 32, 2), (32, 32, 2))  # channels in, channels out, stride
_LEAST = 8
_SPATIAL_SIDE = 4  # covariances of large maps would not fit into memory


def load(device: torch.device) -> FrozenDetector:
    """Features of an untrained convolutional network, as in Naeem et al. 2020: mean and standard deviation over the map
    of each of 32 channels; the spatial features are the map, average-pooled to at most 4 x 4.

    Three 3 x 3 convolutions with GELU and Kaiming scale. The weights do not depend on the machine.
    """
    weights = []
    for index, (inputs, outputs, _) in enumerate(_STAGES):
        drawn = normal(_SEED, "randomconv", [index], (outputs, inputs, 3, 3))[0]
        weights.append(drawn * (2 / (9 * inputs)) ** 0.5)
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights)).hexdigest()
    weights = [weight.to(device) for weight in weights]

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps = scaled(images.to(device)).expand(-1, 3, -1, -1)
        for weight, (*_, stride) in zip(weights, _STAGES, strict=True):
            maps = F.gelu(F.conv2d(maps, weight, stride=stride, padding=1))
        features = torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)], dim=1)
        return Detected(features, area_averages(maps[:, :SPATIAL], _SPATIAL_SIDE), None)

    width = 2 * _STAGES[-1][1]
    resize = f"none, any size from {_LEAST} x {_LEAST}"
    return FrozenDetector("randomconv", digest, width, resize, device, read, None, least=_LEAST)
