"""Encoded image sets: posterior moments in memory-mapped safetensors shards, written once."""

import hashlib
import json
import math
import os
import shutil
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
from workbench.data.images import Images, load_images

SHARD_ROWS = 10_000
_BATCH = 100
_VERIFIED_BYTES = 1_000_000_000  # larger sets are checked by size only: hashing them costs minutes


@dataclass(frozen=True)
class Latents:
    """A folder of shards: ``moments`` (mean and standard deviation, ``n 2c h w`` float32) and ``labels``."""

    folder: Path
    index: dict

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
        return self.index["count"]

    @cached_property
    def _shards(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [_map_shard(self.folder / shard["file"]) for shard in self.index["shards"]]

    @cached_property
    def labels(self) -> Int[np.ndarray, "n"]:
        return np.concatenate([labels for _, labels in self._shards])

    def moments(self, indices: Integer[np.ndarray, "b"]) -> Float[Tensor, "b c2 h w"]:
        """Stored moments of the images at ``indices``: means in the first half of the channels, then deviations."""
        shard, row = np.divmod(indices, SHARD_ROWS)
        rows = np.stack([self._shards[s][0][r] for s, r in zip(shard, row, strict=True)])
        return torch.from_numpy(rows)


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
        _encode(images, codec, content, folder, progress)
    return read_latents(folder)


def read_latents(folder: Path) -> Latents:
    """Open a folder of shards; ValueError naming the file that is missing or damaged."""
    try:
        latents = Latents(folder, json.loads((folder / "index.json").read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'index.json'} is missing or damaged; delete {folder} to encode again") from error
    total = sum(shard["bytes"] for shard in latents.index["shards"])
    for shard in latents.index["shards"]:
        file = folder / shard["file"]
        problem = None
        if not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != shard["bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {shard['bytes']}"
        elif total <= _VERIFIED_BYTES and hashlib.sha256(file.read_bytes()).hexdigest() != shard["sha256"]:
            problem = "does not have the SHA-256 of index.json"
        if problem:
            raise ValueError(f"latent shard {file} {problem}; delete {folder} to encode again")
    return latents


def _encode(images: Images, codec, content: str, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    """Write the shards into a temporary folder and rename it: a reader finds all of them or none."""
    from safetensors.numpy import save

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    shards = []
    try:
        for number in range(math.ceil(len(images) / SHARD_ROWS)):
            stop = min((number + 1) * SHARD_ROWS, len(images))
            moments = []
            for start in range(number * SHARD_ROWS, stop, _BATCH):
                moments.append(codec.encode(images.batch(np.arange(start, min(start + _BATCH, stop)))).numpy())
                if progress:
                    progress(min(start + _BATCH, stop), len(images))
            rows = np.ascontiguousarray(np.concatenate(moments))  # safetensors writes the buffer as it lies
            raw = save({"moments": rows, "labels": images.labels[number * SHARD_ROWS : stop]})
            file = f"shard-{number:05d}.safetensors"
            (temporary / file).write_bytes(raw)
            shards.append({"file": file, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})
        index = {
            "content": content,
            "count": len(images),
            "shape": list(rows.shape[1:]),
            "classes": list(images.classes),
            "pixel_channels": images.channels,
            "images": images.content,
            "codec": {"name": codec.name, "hash": codec.hash},
            "shards": shards,
        }
        (temporary / "index.json").write_text(json.dumps(index, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _map_shard(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two tensors of a shard as memory maps: a batch touches only the pages of its rows."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))

    def array(name: str, dtype: type) -> np.ndarray:
        entry = header[name]
        offset = 8 + length + entry["data_offsets"][0]
        return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=tuple(entry["shape"]))

    return array("moments", np.float32), array("labels", np.int64)
