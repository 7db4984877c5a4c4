"""EfficientNet-Lite0 trained on ImageNet; its weights come with a Python package."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from workbench.data.encoders import load_encoder
from workbench.evaluation.detectors.base import SPATIAL, Detected, FrozenDetector

_SIDE = 96
_COMPONENTS = 64


def load(device: torch.device) -> FrozenDetector:
    """EfficientNet-Lite0: 1280 pooled features, reduced to 64 principal components before they are compared; the
    spatial features are those of the stride-16 map.
    """
    encoder = load_encoder("effnet-lite0", device)
    network: Any = encoder.network
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in (encoder.mean, encoder.std))

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = images.to(device).float().expand(-1, 3, -1, -1) / 255
        pixels = F.interpolate(pixels, size=(_SIDE, _SIDE), mode="bicubic", antialias=True)
        maps = network.blocks[:5](network.bn1(network.conv_stem((pixels - mean) / std)))
        last = network.bn2(network.conv_head(network.blocks[5:](maps)))
        return Detected(network.forward_head(last, pre_logits=True), maps[:, :SPATIAL], None)

    return FrozenDetector(
        name="effnet-lite0",
        weights=encoder.hash,
        dimensions=network.num_features,
        resize=f"bicubic, antialiased, to {_SIDE} x {_SIDE}, unclamped (torch F.interpolate)",
        device=device,
        read=read,
        size=_SIDE,
        reduction=_COMPONENTS,
        encoder="effnet-lite0",
    )
