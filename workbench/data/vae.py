"""VAEs between pixels and latents: encode to posterior moments, sample, scale, decode.

A VAE trained here is a folder with ``vae.safetensors`` (a diffusers ``AutoencoderKL``) and ``vae.json`` (its
architecture, latent scale and shift, and training record), as the shipped ``kl-f4`` is. Published autoencoders are
read in `data.published`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from workbench.config import refuse_unknown
from workbench.config.older import file_in
from workbench.config.paths import SHIPPED_VAES
from workbench.data.images import ASSETS, to_float, to_uint8
from workbench.files import home_path, read_json


@runtime_checkable
class VAE(Protocol):
    """Encodes pixels to latents and decodes them. ``hash`` identifies the weights; ``factor`` is the downsampling.

    Both methods compute on the VAE's device and return their result on the argument's device.
    """

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def factor(self) -> int: ...

    @property
    def pixel_channels(self) -> int: ...

    def encode(self, images: UInt8[Tensor, "b k x y"]) -> Float[Tensor, "b c2 h w"]:
        """Posterior moments in latent units: mean in the first half of the channels, standard deviation after."""
        ...

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b k x y"]:
        """Images from latents."""
        ...


def sample_posterior(moments: Float[Tensor, "b c2 h w"], eps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Sample a latent z = mean + std eps from stored moments; the caller provides the noise ``eps``."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * eps


@dataclass(frozen=True)
class Identity:
    """Pixels as latents (-1..1, no posterior noise), for toy models and tests."""

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
class KLAutoencoder:
    """A diffusers ``AutoencoderKL``; latents are (raw - shift) scale, so that their variance is about 1.

    Scale and shift are scalars, or one number per channel.
    """

    name: str
    hash: str
    architecture: Mapping[str, Any]
    build: Callable[[], Any]  # to an AutoencoderKL, which diffusers does not type
    scale: Float[Tensor, "#c 1 1"]
    shift: Float[Tensor, "#c 1 1"]
    record: dict[str, Any]

    @cached_property
    def model(self) -> Any:
        """The network, built when it is first used: diffusers takes longer to import than PyTorch."""
        return self.build()

    @property
    def channels(self) -> int:
        return self.architecture["latent_channels"]

    @property
    def pixel_channels(self) -> int:
        return self.architecture["in_channels"]

    @property
    def factor(self) -> int:
        return 2 ** (len(self.architecture["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b k x y"]) -> Float[Tensor, "b c2 h w"]:
        moments = []
        for part in images.split(self._at_once(images.shape[2] * images.shape[3])):
            posterior = self.model.encode(to_float(part.to(self.model.device))).latent_dist
            moments.append(torch.cat([posterior.mean, posterior.std], dim=1).to(images.device))
        return self.standardised(torch.cat(moments))

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b k x y"]:
        raw = z.float() / self.scale.to(z.device) + self.shift.to(z.device)
        parts = raw.split(self._at_once(z.shape[2] * z.shape[3] * self.factor**2))
        return torch.cat([to_uint8(self.model.decode(p.to(self.model.device)).sample).to(z.device) for p in parts])

    def standardised(self, moments: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b c2 h w"]:
        """Moments of the raw posterior in latent units: (mean - shift) scale, std scale."""
        mean, std = moments.chunk(2, dim=1)
        scale, shift = self.scale.to(moments.device), self.shift.to(moments.device)
        return torch.cat([(mean - shift) * scale, std * scale], dim=1)

    @staticmethod
    def _at_once(pixels: int) -> int:
        # The widest maps of a published VAE take 30 MB an image of 256x256; sixteen of those keep a GPU busy.
        return max(1, 16 * 256**2 // pixels)


def load_vae(name: str, pixel_channels: int, device: torch.device | str = "cpu") -> VAE:
    """Load an autoencoder by name or from a folder.

    "kl-f4" (grey images of 32 pixels), "kl-f4-scenes-32" and "kl-f4-scenes-64" (colour, 32 and 64 pixels) ship with the
    package, and "identity" uses pixels as latents. "sd-vae-ft-ema" (alias "sd-vae", the decoder of SiT and REPA),
    "sd-vae-ft-mse" (same encoder, other decoder) and "va-vae" are searched in ``$WORKBENCH_WEIGHTS``, then on the model
    hub. A folder may be one written by ``workbench vae train``, a diffusers ``AutoencoderKL``, or
    VA-VAE's weights with ``latents_stats.pt``.

    Args:
        name: One of these names, or the path of a folder.
        pixel_channels: Channels of the images: 1 for grey, 3 for colour.
        device: Device of the weights and the computation.

    Returns:
        A VAE. ``encode`` takes uint8 images ``b k x y`` and gives posterior moments ``b 2c h w`` in latent units
        (mean, then standard deviation), ``decode`` takes latents ``b c h w`` and gives uint8 images. ``channels`` is c
        and ``factor`` is x / h.

    Raises:
        ValueError: If there is no such VAE, if its files are missing (with what to download and where to put it) or
            damaged, or if it has another number of pixel channels.

    Examples:
        >>> vae = wb.load_vae("kl-f4", pixel_channels=1)
        >>> images = wb.load_images(wb.load_config("demo/plain").data, "test").batch([0, 1])
        >>> vae.encode(images).shape, vae.factor
        (torch.Size([2, 8, 8, 8]), 4)
    """
    vae = find_vae(name, pixel_channels, device)
    if isinstance(vae, KLAutoencoder):
        vae.model  # noqa: B018 (built now, so that weights that do not fit are found here)
    return vae


def find_vae(name: str, pixel_channels: int, device: torch.device | str = "cpu") -> VAE:
    """As `load_vae`, but a network of the workbench is built only when it is used.

    Its files are read and compared with their hash. Where latents are stored already, nothing else is needed of it.
    """
    from workbench.data.published import PUBLISHED, load_published

    folder = ASSETS / name if name in SHIPPED_VAES else home_path(name)
    if name == "identity":
        return Identity(pixel_channels)
    if file_in(folder, "vae.json").is_file():
        vae: VAE = _read(name, folder, device)
    elif name in PUBLISHED or folder.is_dir():
        vae = load_published(name, device)
    elif name in SHIPPED_VAES:
        raise ValueError(f"{folder} of VAE {name!r} is missing; install the workbench again")
    else:
        refuse_unknown("vae.name", name, (*SHIPPED_VAES, "identity", *PUBLISHED, "or a folder with an autoencoder"))
    if vae.pixel_channels != pixel_channels:
        raise ValueError(
            f"VAE {name!r} is for images of {vae.pixel_channels} channels; these have {pixel_channels}; of those that "
            f"come with the package, kl-f4 is for grey images, kl-f4-scenes-32 and kl-f4-scenes-64 are for colour"
        )
    return vae


def _read(name: str, folder: Path, device: torch.device | str) -> KLAutoencoder:
    file, described = file_in(folder, "vae.safetensors"), file_in(folder, "vae.json")
    record = read_json(described)
    missing = [key for key in ("sha256", "architecture", "scale", "shift") if key not in record]
    if missing:
        raise ValueError(f"{described} is damaged: it lacks {', '.join(missing)}")
    try:
        weights = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(f"{file} is damaged: its SHA-256 differs from the one in vae.json")
    try:
        architecture = dict(record["architecture"])
        counts = [architecture["latent_channels"], architecture["in_channels"], len(architecture["block_out_channels"])]
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError(f"channels and levels are {', '.join(map(str, counts))}")
        scale, shift = (torch.tensor(float(record[key])).reshape(1, 1, 1) for key in ("scale", "shift"))
    except (TypeError, ValueError, KeyError) as error:
        raise _misfit(described, error) from error
    if not (scale.isfinite().all() and shift.isfinite().all() and (scale > 0).all()):
        raise ValueError(f"{described} must have a finite shift and a scale above 0")
    build = partial(_build, architecture, weights, described, device)
    return KLAutoencoder(name, digest, architecture, build, scale, shift, record)


def _build(architecture: Mapping[str, Any], weights: bytes, described: Path, device: torch.device | str) -> Any:
    from diffusers.models import AutoencoderKL
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        model = AutoencoderKL(**architecture)
        # Stored in half precision to save space and used in single precision; the rounding is part of the VAE.
        model.load_state_dict({key: value.float() for key, value in load(weights).items()})
    # diffusers' constructor raises many kinds of errors for a damaged record.
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError, SafetensorError) as error:
        raise _misfit(described, error) from error
    return model.eval().requires_grad_(False).to(device)


def _misfit(described: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{described} does not match its weights: {reason}")
