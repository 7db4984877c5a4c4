"""What outside encoders say of the clean images: target tokens, stored beside the latents or computed when asked."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from workbench.config import Config
from workbench.data.encoders import Encoder, load_encoder
from workbench.data.images import Images, load_images
from workbench.data.latents import Latents
from workbench.data.shards import Shards, open_shards, write_shards


@runtime_checkable
class Targets(Protocol):
    """Target tokens of an image set by image number, on the student's token grid."""

    width: int

    def tokens(self, indices: Integer[np.ndarray, "b"]) -> Float[Tensor, "b n d"]: ...


@dataclass(frozen=True)
class StoredTargets:
    """Tokens read from shards, kept in half precision."""

    shards: Shards

    @property
    def width(self) -> int:
        return self.shards.index["shape"][1]

    def tokens(self, indices: Integer[np.ndarray, "b"]) -> Float[Tensor, "b n d"]:
        return torch.from_numpy(self.shards.rows("tokens", indices)).float()


@dataclass(frozen=True)
class ComputedTargets:
    """Tokens from a run of the encoder at each step, as the published codes do it."""

    encoder: Encoder
    images: Images
    side: int

    @property
    def width(self) -> int:
        return self.encoder.width

    def tokens(self, indices: Integer[np.ndarray, "b"]) -> Float[Tensor, "b n d"]:
        return self.encoder.tokens(self.images.batch(indices), self.side)


def open_targets(
    config: Config,
    split: str,
    latents: Latents,
    root: Path,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Targets]:
    """Target tokens for each encoder that the objective's option ``encoder`` names (several joined by commas).

    Empty for an objective without that option. With ``stored`` they are encoded once into ``root``; without, the
    encoder runs on ``device`` at each step. Raises ValueError for an unknown encoder or missing weights.
    """
    options = config.objective.options
    if "encoder" not in options:
        return {}
    images = load_images(config.data, split)
    side = latents.height // config.backbone.options["patch"]
    found: dict[str, Targets] = {}
    for name in (part.strip() for part in options["encoder"].split(",")):
        encoder = load_encoder(name, device)
        if options["stored"]:
            found[name] = StoredTargets(_store(images, encoder, side, root, progress))
        else:
            found[name] = ComputedTargets(encoder, images, side)
    return found


def _store(
    images: Images, encoder: Encoder, side: int, root: Path, progress: Callable[[int, int], None] | None
) -> Shards:
    content = hashlib.sha256(f"{images.content} {encoder.hash} {side} tokens-1".encode()).hexdigest()
    folder = root / content[:16]
    if not (folder / "index.json").is_file():

        def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
            return {"tokens": encoder.tokens(images.batch(indices), side).half().cpu().numpy()}

        described = {
            "content": content,
            "shape": [side**2, encoder.width],
            "images": images.content,
            "encoder": {"name": encoder.name, "hash": encoder.hash},
        }
        write_shards(folder, len(images), rows, described, progress=progress)
    return open_shards(folder)
