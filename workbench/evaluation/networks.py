"""Detectors with published weights: EfficientNet-Lite0, the Inception of 2015 that defines FID, and DINOv2."""

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from workbench.data.encoders import file_digest, load_encoder
from workbench.data.weights import read_tensors, weights_folder
from workbench.evaluation.detectors import SPATIAL, Detected, FrozenDetector

_LITE0_SIDE = 96
_LITE0_COMPONENTS = 64
_INCEPTION_SHA256 = "6726825d"  # its beginning, as the name of the published file has it
_INCEPTION_SIDE = 299
_DINOV2 = "dinov2-l"
_DINOV2_PATCHES = 16
_DINOV2_SIDE = 14 * _DINOV2_PATCHES


def effnet_lite0(device: torch.device) -> FrozenDetector:
    """EfficientNet-Lite0 of ImageNet: 1280 pooled features, to be compared by 64 principal components; spatial features
    of the stride-16 map.
    """
    encoder = load_encoder("effnet-lite0", device)
    network = encoder.network
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in (encoder.mean, encoder.std))

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = images.to(device).float().expand(-1, 3, -1, -1) / 255
        pixels = F.interpolate(pixels, size=(_LITE0_SIDE, _LITE0_SIDE), mode="bicubic", antialias=True)
        maps = network.blocks[:5](network.bn1(network.conv_stem((pixels - mean) / std)))
        last = network.bn2(network.conv_head(network.blocks[5:](maps)))
        return Detected(network.forward_head(last, pre_logits=True), maps[:, :SPATIAL], None)

    return FrozenDetector(
        name="effnet-lite0",
        weights=encoder.hash,
        dimensions=network.num_features,
        resize=f"bicubic, antialiased, to {_LITE0_SIDE} x {_LITE0_SIDE}, unclamped (torch F.interpolate)",
        device=device,
        read=read,
        size=_LITE0_SIDE,
        reduction=_LITE0_COMPONENTS,
        encoder="effnet-lite0",
    )


def inception_2015(device: torch.device) -> FrozenDetector:
    """The graph "Inception 2015-12-05" by which FID, sFID and IS are defined (ADM's evaluator), through torch-fidelity.

    2048 pooled features, 1008 class scores without the bias, and as spatial features the 1 x 1 branch of Mixed_6d.
    ValueError if torch-fidelity or its weight file is missing, or the file is not the published one.
    """
    network, digest = _inception()
    network.to(device)

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps = []
        hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *passed: maps.append(passed[-1]))
        try:
            features, logits = network(images.to(device).expand(-1, 3, -1, -1))
        finally:
            hook.remove()
        return Detected(features, maps[0][:, :SPATIAL], logits)

    return FrozenDetector(
        name="inception-2015",
        weights=digest,
        dimensions=network.fc.in_features,
        resize=f"TensorFlow 1's bilinear to {_INCEPTION_SIDE} x {_INCEPTION_SIDE} (torch-fidelity)",
        device=device,
        read=read,
        size=_INCEPTION_SIDE,
    )


def dinov2(device: torch.device) -> FrozenDetector:
    """DINOv2 ViT-L/14 as FD-DINOv2 has it (Stein et al. 2023, dgm-eval): the class token after the last norm.

    Images are resized as uint8; positions are resampled as in Facebook's own code, not as the encoders of REPA do.
    """
    encoder = load_encoder(_DINOV2, device)
    network = encoder.network
    positions = _resampled(network.pos_embed.data, _DINOV2_PATCHES)
    network.pos_embed = nn.Parameter(positions, requires_grad=False)
    network.patch_embed.grid_size = (_DINOV2_PATCHES, _DINOV2_PATCHES)  # so that timm finds nothing to resample
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in (encoder.mean, encoder.std))

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        pixels = _resized(images, _DINOV2_SIDE).to(device).float().expand(-1, 3, -1, -1) / 255
        return Detected(network.forward_features((pixels - mean) / std)[:, 0], None, None)

    return FrozenDetector(
        name="dinov2",
        weights=encoder.hash,
        dimensions=network.num_features,
        resize=f"PIL's bicubic to {_DINOV2_SIDE} x {_DINOV2_SIDE}, rounded to uint8",
        device=device,
        read=read,
        size=_DINOV2_SIDE,
        encoder="dinov2",
    )


def _inception() -> tuple[nn.Module, str]:
    """torch-fidelity's network with its published weights, and their digest."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as published
    except ImportError as error:
        raise ValueError("detector 'inception-2015' needs torch-fidelity: pip install torch-fidelity") from error
    file = _inception_file(published.URL_INCEPTION_V3)
    digest = file_digest(file)
    if not digest.startswith(_INCEPTION_SHA256):
        raise ValueError(
            f"{file} is damaged or of another release: its SHA-256 is {digest}; that of the published file begins with "
            f"{_INCEPTION_SHA256}"
        )
    # torch-fidelity unpickles whatever lies in the file it is given, so it is given a copy of the plain tensors.
    plain = io.BytesIO()
    torch.save(read_tensors(file), plain)
    plain.seek(0)
    try:
        network = published.FeatureExtractorInceptionV3("inception-2015", ["2048", "logits_unbiased"], plain)
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold the weights of Inception 2015-12-05: {error}") from error
    return network, digest


def _inception_file(url: str) -> Path:
    file = weights_folder() / url.rpartition("/")[2]
    if not file.is_file():
        raise ValueError(
            f"detector 'inception-2015' has no weights here: put {file.name}, which is at {url}, into the folder "
            f"{file.parent}; WORKBENCH_WEIGHTS names another folder"
        )
    return file


def _resampled(positions: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings of `side * side` patches by Facebook's rule, which asks for a tenth of a patch more."""
    grid = round((positions.shape[1] - 1) ** 0.5)
    maps = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=grid)
    maps = F.interpolate(maps, scale_factor=((side + 0.1) / grid,) * 2, mode="bicubic")
    return torch.cat([positions[:, :1], rearrange(maps, "1 d h w -> 1 (h w) d")], dim=1)


def _resized(images: UInt8[Tensor, "b c h w"], side: int) -> UInt8[Tensor, "b c {side} {side}"]:
    """Each channel by PIL's bicubic, which widens its kernel where it shrinks and rounds to whole numbers."""
    resized = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for image, target in zip(images.cpu().numpy(), resized, strict=True):
        for channel, place in zip(image, target, strict=True):
            place[:] = Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(resized)
