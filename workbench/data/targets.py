"""Target tokens of pretrained encoders for the clean images, stored beside the latents or computed at each step."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from workbench.config import Config
from workbench.data.encoders import Encoder, load_encoder
from workbench.data.images import Images, load_images
from workbench.data.latents import Latents, turn_to_write
from workbench.data.shards import Shards, open_shards, rows_of_a_shard, write_shards
from workbench.diffusion.precision import reduced, tf32


@runtime_checkable
class Targets(Protocol):
    """Target tokens of an image set by image index, float32 on the student's token grid, on any device.

    Where ``flipped``, the tokens of the mirrored image.
    """

    @property
    def width(self) -> int: ...

    def tokens(
        self, indices: Integer[np.ndarray, "b"], flipped: Bool[np.ndarray, "b"] | None = None
    ) -> Float[Tensor, "b n d"]: ...


@dataclass(frozen=True)
class StoredTargets:
    """Tokens read from shards, kept in half precision."""

    shards: Shards

    @property
    def width(self) -> int:
        return self.shards.index["shape"][1]

    def tokens(
        self, indices: Integer[np.ndarray, "b"], flipped: Bool[np.ndarray, "b"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Read stored tokens; ValueError if those of mirrored images were not stored (``data.flip``)."""
        if flipped is None:
            return torch.from_numpy(self.shards.rows("tokens", indices)).float()
        if not self.shards.index["flip"]:
            raise ValueError(f"{self.shards.folder} was written without mirrored images (data.flip)")
        rows = np.empty((len(indices), *self.shards.index["shape"]), np.float32)
        for column, chosen in (("tokens", ~flipped), ("tokens_flip", flipped)):
            if chosen.any():
                rows[chosen] = self.shards.rows(column, indices[chosen])
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class ComputedTargets:
    """Tokens computed by the encoder at each step, as in the published code."""

    encoder: Encoder
    images: Images
    side: int
    precision: str = "no"  # of the encoder, as of the training: "no", "bf16" or "fp16"

    @property
    def width(self) -> int:
        return self.encoder.width

    def tokens(
        self, indices: Integer[np.ndarray, "b"], flipped: Bool[np.ndarray, "b"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Compute the tokens of the images, mirrored where ``flipped``."""
        images = self.images.batch(indices)
        if flipped is not None:
            images = torch.where(torch.from_numpy(flipped).reshape(-1, 1, 1, 1), images.flip(3), images)
        device = next(self.encoder.network.parameters()).device
        with reduced(self.precision, device):
            return self.encoder.tokens(images, self.side)


def open_targets(
    config: Config,
    split: str,
    latents: Latents,
    root: Path,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping[str, Targets]:
    """Target tokens of each encoder in the objective's option ``encoder`` (several are separated by commas).

    Empty for an objective without that option. With ``stored``, they are encoded once into ``root``, also for mirrored
    images if ``data.flip`` is set; an interrupted encoding continues after its last shard. Without ``stored``, the
    encoder runs on ``device`` at each step, on a GPU in ``training.precision`` as in the published code.

    Raises ValueError for an unknown encoder, missing weights, damaged shards, a patch size that does not divide the
    latents, and images that differ from those of ``latents``.
    """
    options, patch = config.objective.options, config.backbone.options["patch"]
    if "encoder" not in options:
        return {}
    if latents.height % patch:
        raise ValueError(f"patch {patch} does not divide the latent height {latents.height}")
    stored, side = options.get("stored", True), latents.height // patch
    # All are loaded before any of them runs, so that a wrong second name fails before hours of encoding.
    encoders = _encoders(config, device)
    if stored and (ready := _ready(encoders, latents, side, config.data.flip, root)) is not None:
        return ready
    images = load_images(config.data, split)
    if images.content != latents.index["images"]:
        raise ValueError(
            f"the latents in {latents.shards.folder} do not belong to the {split} images for the encoder: "
            f"they were encoded from {latents.index['images'][:16]}, the images are {images.content[:16]}"
        )
    precision = config.training.precision if torch.device(device).type == "cuda" else "no"
    if not stored:
        return {name: ComputedTargets(encoder, images, side, precision) for name, encoder in encoders.items()}
    computed = {name: ComputedTargets(encoder, images, side) for name, encoder in encoders.items()}
    return {
        name: StoredTargets(_store(targets, config.data.flip, root, progress)) for name, targets in computed.items()
    }


def _encoders(config: Config, device: torch.device | str) -> dict[str, Encoder]:
    names = [part.strip() for part in config.objective.options["encoder"].split(",")]
    return {name: load_encoder(name, device) for name in names}


def targets_ready(config: Config, latents: Latents, root: Path) -> bool:
    """Whether no target has to be encoded before training: none is stored, or all are."""
    options = config.objective.options
    if "encoder" not in options or not options.get("stored", True):
        return True
    side = latents.height // config.backbone.options["patch"]
    return _ready(_encoders(config, "cpu"), latents, side, config.data.flip, root) is not None


def _ready(
    encoders: Mapping[str, Encoder], latents: Latents, side: int, flip: bool, root: Path
) -> Mapping[str, StoredTargets] | None:
    """The stored targets of all encoders, opened without listing the images; None if some are not encoded yet."""
    images = latents.index["images"]
    folders = {name: root / _content(images, encoder, side, flip)[:16] for name, encoder in encoders.items()}
    if not all((folder / "index.json").is_file() for folder in folders.values()):
        return None
    return {name: StoredTargets(open_shards(folder)) for name, folder in folders.items()}


def _content(images: str, encoder: Encoder, side: int, flip: bool) -> str:
    """Hash of images, encoder and token grid."""
    kind = "tokens-1 flip" if flip else "tokens-1"
    return hashlib.sha256(f"{images} {encoder.hash} {side} {kind}".encode()).hexdigest()


def _store(targets: ComputedTargets, flip: bool, root: Path, progress: Callable[[int, int], None] | None) -> Shards:
    """Open the shards of the targets under ``root``, encoding them first if necessary."""
    encoder, images, side = targets.encoder, targets.images, targets.side
    content = _content(images.content, encoder, side, flip)
    folder = root / content[:16]
    with turn_to_write(folder) as wanted:
        if wanted:
            described = {
                "content": content,
                "shape": [side**2, encoder.width],
                "images": images.content,
                "encoder": {"name": encoder.name, "hash": encoder.hash},
                "flip": flip,
            }
            row_bytes = (1 + flip) * 2 * side**2 * encoder.width
            shard_rows, rows = rows_of_a_shard(row_bytes), partial(_rows, targets, flip)
            write_shards(folder, len(images), rows, described, shard_rows=shard_rows, progress=progress)
    return open_shards(folder)


def _rows(targets: ComputedTargets, flip: bool, indices: np.ndarray) -> dict[str, np.ndarray]:
    with tf32(False):  # stored targets are shared by runs of any precision
        columns = {"tokens": targets.tokens(indices)}
        if flip:
            columns["tokens_flip"] = targets.tokens(indices, np.ones(len(indices), bool))
    return {name: tokens.half().cpu().numpy() for name, tokens in columns.items()}
