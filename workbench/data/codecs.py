"""Codecs between pixels and latents: encode to posterior moments, sample, scale, decode.

A codec folder holds ``codec.safetensors`` (a diffusers ``AutoencoderKL``) and ``codec.json`` (its architecture, the
latent scale and shift, and the record of its training). The shipped ``kl-f4`` is such a folder.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from workbench.config import refuse_unknown
from workbench.data.images import ASSETS, to_float, to_uint8


@runtime_checkable
class Codec(Protocol):
    """Pixels to latents and back. ``hash`` identifies the weights; ``factor`` is the downsampling."""

    name: str
    hash: str
    channels: int
    factor: int
    pixel_channels: int

    def encode(self, images: UInt8[Tensor, "b k x y"]) -> Float[Tensor, "b c2 h w"]:
        """Posterior moments in latent units: mean in the first half of the channels, standard deviation after."""
        ...

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b k x y"]:
        """Images from latents."""
        ...


def sample_posterior(moments: Float[Tensor, "b c2 h w"], eps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The latent z = mean + std eps of stored moments; the randomness ``eps`` is the caller's."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * eps


@dataclass(frozen=True)
class Identity:
    """Pixels as latents (-1..1, no posterior noise): for toys and tests."""

    pixel_channels: int
    name: str = "identity"
    hash: str = "identity"
    factor: int = 1

    @property
    def channels(self) -> int:
        return self.pixel_channels

    def encode(self, images: UInt8[Tensor, "b k x y"]) -> Float[Tensor, "b c2 h w"]:
        mean = to_float(images)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b k x y"]:
        return to_uint8(z)


@dataclass(frozen=True)
class Autoencoder:
    """A diffusers ``AutoencoderKL``; latents are (raw - shift) scale, so that their variance is about 1."""

    name: str
    hash: str
    model: torch.nn.Module
    scale: float
    shift: float
    record: dict[str, Any]

    @property
    def channels(self) -> int:
        return self.model.config.latent_channels

    @property
    def pixel_channels(self) -> int:
        return self.model.config.in_channels

    @property
    def factor(self) -> int:
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b k x y"]) -> Float[Tensor, "b c2 h w"]:
        posterior = self.model.encode(to_float(images)).latent_dist
        return torch.cat([(posterior.mean - self.shift) * self.scale, posterior.std * self.scale], dim=1)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b k x y"]:
        return to_uint8(self.model.decode(z.float() / self.scale + self.shift).sample)


def load_codec(name: str, pixel_channels: int, device: torch.device | str = "cpu") -> Codec:
    """The codec called ``name``: "kl-f4" (shipped), "identity", or a folder written by ``workbench codec train``.

    Raises ValueError if there is no such codec, its files are damaged, or it is for another number of channels.
    """
    if name == "identity":
        return Identity(pixel_channels)
    folder = ASSETS / "kl-f4" if name == "kl-f4" else Path(name).expanduser()
    if not (folder / "codec.json").is_file():
        refuse_unknown("codec.name", name, ("kl-f4", "identity", "or a folder with codec.json"))
    codec = _read(name, folder, device)
    if codec.pixel_channels != pixel_channels:
        raise ValueError(
            f"codec {name!r} is for images of {codec.pixel_channels} channels; these have {pixel_channels}"
        )
    return codec


def _read(name: str, folder: Path, device: torch.device | str) -> Autoencoder:
    from diffusers.models import AutoencoderKL
    from safetensors.torch import load

    record = json.loads((folder / "codec.json").read_text())
    weights = (folder / "codec.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(f"{folder / 'codec.safetensors'} is damaged: its SHA-256 is not the one in codec.json")
    model = AutoencoderKL(**record["architecture"])
    # Stored in half precision to stay small, used in single: the rounding is part of the codec.
    model.load_state_dict({key: value.float() for key, value in load(weights).items()})
    model.eval().requires_grad_(False).to(device)
    return Autoencoder(name, digest, model, record["scale"], record["shift"], record)
