"""Encoded image sets: posterior moments and labels in shards, written once."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from workbench.config import Config
from workbench.data.codecs import load_codec
from workbench.data.images import load_images
from workbench.data.shards import Shards, open_shards, write_shards


@dataclass(frozen=True)
class Latents:
    """``moments`` (mean and standard deviation, ``n 2c h w`` float32) and ``labels`` of an image set."""

    shards: Shards

    @property
    def index(self) -> dict:
        return self.shards.index

    @property
    def channels(self) -> int:
        return self.index["shape"][0] // 2

    @property
    def height(self) -> int:
        return self.index["shape"][1]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.index["classes"])

    @property
    def content(self) -> str:
        """Hash of images, codec and encoding."""
        return self.index["content"]

    def __len__(self) -> int:
        return len(self.shards)

    @cached_property
    def labels(self) -> Int[np.ndarray, "n"]:
        return self.shards.column("labels")

    def moments(self, indices: Integer[np.ndarray, "b"]) -> Float[Tensor, "b c2 h w"]:
        """Stored moments of the images at ``indices``: means in the first half of the channels, then deviations."""
        return torch.from_numpy(self.shards.rows("moments", indices))


def open_latents(config: Config, split: str, root: Path, progress: Callable[[int, int], None] | None = None) -> Latents:
    """The latents of a configuration's images and codec under ``root``, encoded now if they are not there.

    ``progress(done, total)`` is called while encoding. Raises ValueError for damaged shards, naming the file.
    """
    images = load_images(config.data, split)
    codec = load_codec(config.codec.name, images.channels)
    if images.size % codec.factor:
        raise ValueError(f"codec {codec.name!r} halves {images.size} pixels to no whole number: factor {codec.factor}")
    content = hashlib.sha256(f"{images.content} {codec.hash} moments-1".encode()).hexdigest()
    folder = root / content[:16]
    if not (folder / "index.json").is_file():

        def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
            return {"moments": codec.encode(images.batch(indices)).numpy(), "labels": images.labels[indices]}

        side = images.size // codec.factor
        described = {
            "content": content,
            "shape": [2 * codec.channels, side, side],
            "classes": list(images.classes),
            "pixel_channels": images.channels,
            "images": images.content,
            "codec": {"name": codec.name, "hash": codec.hash},
        }
        write_shards(folder, len(images), rows, described, progress=progress)
    return Latents(open_shards(folder))
