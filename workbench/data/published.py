"""Published autoencoders as VAEs: Stable Diffusion's, any diffusers folder, and VA-VAE.

VA-VAE (LightningDiT) has the file layout of latent diffusion. Its network is diffusers' ``AutoencoderKL``, so its
tensors are only renamed.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.data.vae import KLAutoencoder
from workbench.data.weights import STATISTICS, hub_folder, read_statistics, read_tensors, weights_folder
from workbench.files import home_path, read_json

_DIFFUSERS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
# Repository on the model hub, and the files that are needed from it.
_HUB = {
    "sd-vae-ft-ema": ("stabilityai/sd-vae-ft-ema", _DIFFUSERS_FILES),
    "sd-vae-ft-mse": ("stabilityai/sd-vae-ft-mse", _DIFFUSERS_FILES),
    "va-vae": ("hustvl/vavae-imagenet256-f16d32-dinov2", ("vavae-imagenet256-f16d32-dinov2.pt", STATISTICS)),
}
_SAME = {"sd-vae": "sd-vae-ft-ema"}
PUBLISHED = (*_SAME, *_HUB)

VA_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 256,
}


@dataclass(frozen=True)
class _Parts:
    """Content of an autoencoder's folder: architecture, tensors, and the scale and shift of its latents."""

    architecture: Mapping[str, Any]
    tensors: dict[str, Tensor]
    file: Path
    scale: Float[Tensor, "#c 1 1"]
    shift: Float[Tensor, "#c 1 1"]
    ignored: list[str]


def load_published(name: str, device: torch.device | str) -> KLAutoencoder:
    """Load a published autoencoder, or the one in the folder ``name``, in single precision.

    ``hash`` covers the tensors, scale and shift, not the file format. Raises ValueError for missing files, with what to
    download and where to put it, and for weights that do not fit, with the number of missing, unexpected and
    mismatched tensors.
    """
    from diffusers.models import AutoencoderKL

    published = _SAME.get(name, name)
    folder = _find(published) if name in PUBLISHED else home_path(name)
    diffusers = published != "va-vae" if name in PUBLISHED else (folder / "config.json").is_file()
    parts = _read_diffusers(folder) if diffusers else _read_va_vae(folder)
    try:
        with torch.device("meta"):  # no initialization, as the weights are loaded below
            model = AutoencoderKL.from_config(dict(parts.architecture))
    # diffusers' constructor raises many kinds of errors for a damaged config.json.
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the config.json in {folder} is not a valid autoencoder: {reason}") from error
    _load_strictly(model, parts.tensors, parts.file)
    model.eval().requires_grad_(False).to(device)
    record = {"source": str(parts.file), "architecture": dict(parts.architecture), "ignored": parts.ignored}
    return KLAutoencoder(name, _digest(parts), model.config, lambda: model, parts.scale, parts.shift, record)


def _find(name: str) -> Path:
    """Folder of a published autoencoder: the user's own, the hub's cache, or downloaded now."""
    own = weights_folder() / name
    if own.is_dir():
        return own
    repository, files = _HUB[name]
    try:
        return hub_folder(repository, files)
    except Exception as error:  # the hub client's exceptions change with its version
        raise ValueError(
            f"VAE {name!r} has no weights here and they could not be downloaded ({type(error).__name__}); "
            f"download {' and '.join(files)} of {repository} to {own}"
        ) from error


def _read_diffusers(folder: Path) -> _Parts:
    """Read a diffusers folder; latents are (raw - shift_factor) scaling_factor, or use latents_mean and latents_std."""
    config = read_json(folder / _DIFFUSERS_FILES[0])
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds a {kind}; a VAE is an AutoencoderKL")
    file = _only(folder, (".safetensors",), preferred=_DIFFUSERS_FILES[1])
    try:
        scale = torch.tensor(float(config.get("scaling_factor") or 0.18215)).reshape(1, 1, 1)
        shift = torch.tensor(float(config.get("shift_factor") or 0.0)).reshape(1, 1, 1)
        if config.get("latents_mean") and config.get("latents_std"):
            shift = torch.tensor(config["latents_mean"]).reshape(-1, 1, 1).float()
            scale = scale / torch.tensor(config["latents_std"]).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder / _DIFFUSERS_FILES[0]} has a scale or shift that is not a number: {error}"
        ) from error
    if not (scale.isfinite().all() and shift.isfinite().all() and (scale != 0).all()):
        raise ValueError(f"{folder / _DIFFUSERS_FILES[0]} has a scale or shift that is not finite, or a scale of 0")
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    tensors = {}
    for key, value in read_tensors(file).items():
        for before, after in old.items():  # names of attention layers in older diffusers files
            key = key.replace(before, after)
        tensors[key] = value
    return _Parts(config, tensors, file, scale, shift, [])


def _read_va_vae(folder: Path) -> _Parts:
    """Read VA-VAE's weights and channel statistics. Latents are (raw - mean) / std."""
    statistics = folder / STATISTICS
    file = _only(folder, (".safetensors", ".pt", ".ckpt"), but=STATISTICS)
    if not statistics.is_file():
        raise ValueError(f"{statistics} is missing: it has the mean and std that normalize VA-VAE's latents")
    mean, std = read_statistics(statistics, VA_VAE["latent_channels"])
    mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    tensors, ignored = from_latent_diffusion(read_tensors(file), len(VA_VAE["block_out_channels"]))
    return _Parts(VA_VAE, tensors, file, 1 / std, mean, ignored)


def from_latent_diffusion(tensors: Mapping[str, Tensor], levels: int) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of a latent-diffusion autoencoder to diffusers' names; also returns the parts left out.

    Parts left out are only needed in training: the loss, the encoder used for alignment and its projection. diffusers
    numbers the decoder's levels from the deepest, and its attention has linear layers instead of 1x1 convolutions.
    """
    renamed, ignored = {}, set()
    for key, value in tensors.items():
        part = key.split(".")[0]
        if part not in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
            ignored.add(part)
            continue
        new = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", key)
        new = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", new)
        new = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", new)
        for before, after in _RENAMED:
            new = new.replace(before, after)
        if ".attentions." in new and value.ndim == 4:
            value = value[:, :, 0, 0]
        renamed[new] = value
    return renamed, sorted(ignored)


_RENAMED = (
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".block.", ".resnets."),
    (".attn.", ".attentions."),
    (".norm.", ".group_norm."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".downsample.conv.", ".downsamplers.0.conv."),
    (".upsample.conv.", ".upsamplers.0.conv."),
    ("coder.norm_out.", "coder.conv_norm_out."),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".proj_out.", ".to_out.0."),
)


def _only(folder: Path, suffixes: tuple[str, ...], preferred: str = "", but: str = "") -> Path:
    """Weights file in a folder: the preferred one, or the only one with one of the suffixes."""
    if preferred and (folder / preferred).is_file():
        return folder / preferred
    found = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.name != but)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{folder} must have one weights file ({', '.join(suffixes)}); found: {names}")
    return found[0]


def _load_strictly(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    wanted = _shapes(model.state_dict())
    given = _shapes(tensors)
    problems = {
        "missing": [key for key in wanted if key not in given],
        "not of this network": [key for key in given if key not in wanted],
        "of another shape": [key for key in wanted if key in given and given[key] != wanted[key]],
    }
    if any(problems.values()):
        details = [f"{len(keys)} {what} ({', '.join(keys[:3])} ...)" for what, keys in problems.items() if keys]
        raise ValueError(f"the tensors of {file} do not fit: {'; '.join(details)}")
    model.load_state_dict(tensors, assign=True)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _digest(parts: _Parts) -> str:
    digest = hashlib.sha256()
    for key, value in sorted({**parts.tensors, "scale": parts.scale, "shift": parts.shift}.items()):
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
