"""DINOv2 ViT-L/14, the network of FD-DINOv2."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from workbench.data.encoders import load_encoder
from workbench.evaluation.detectors.base import Detected, FrozenDetector

_ENCODER = "dinov2-l"
_PATCHES = 16
_SIDE = 14 * _PATCHES


def load(device: torch.device) -> FrozenDetector:
    """DINOv2 ViT-L/14 as used for FD-DINOv2 (Stein et al. 2023, dgm-eval): the class token after the last norm.

    Images are resized as uint8; positions are resampled as in Facebook's code, not as for the encoders of REPA.
    """
    encoder = load_encoder(_ENCODER, device)
    network: Any = encoder.network
    positions = _resampled(network.pos_embed.data, _PATCHES)
    network.pos_embed = nn.Parameter(positions, requires_grad=False)
    network.patch_embed.grid_size = (_PATCHES, _PATCHES)  # so that timm does not resample again
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in (encoder.mean, encoder.std))

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = _resized(images, _SIDE).to(device).float().expand(-1, 3, -1, -1) / 255
        return Detected(network.forward_features((pixels - mean) / std)[:, 0], None, None)

    return FrozenDetector(
        name="dinov2",
        weights=encoder.hash,
        dimensions=network.num_features,
        resize=f"PIL's bicubic to {_SIDE} x {_SIDE}, rounded to uint8",
        device=device,
        read=read,
        size=_SIDE,
        encoder="dinov2",
    )


def _resampled(positions: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """Resample position embeddings to `side * side` patches as Facebook's code does, which adds a tenth of a patch."""
    grid = round((positions.shape[1] - 1) ** 0.5)
    maps = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=grid)
    maps = F.interpolate(maps, scale_factor=((side + 0.1) / grid,) * 2, mode="bicubic")
    return torch.cat([positions[:, :1], rearrange(maps, "1 d h w -> 1 (h w) d")], dim=1)


def _resized(images: UInt8[Tensor, "b c h w"], side: int) -> UInt8[Tensor, "b c {side} {side}"]:
    """Resize each channel with PIL's bicubic filter, which is antialiased and rounds to whole numbers."""
    resized = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for image, target in zip(images.cpu().numpy(), resized, strict=True):
        for channel, out in zip(image, target, strict=True):
            out[:] = Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(resized)
