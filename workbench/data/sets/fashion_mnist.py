"""Fashion-MNIST (Xiao et al. 2017): the subset in the package, or the full set if it is installed."""

import contextlib
import functools
import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
from einops import rearrange

from workbench.config import DataConfig, refuse_unknown
from workbench.data.images import ASSETS, TORCHVISION, Images, foreign_path, from_arrays
from workbench.files import home_path

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_IDX_BYTES = 1 << 30  # limit for an unpacked IDX file; Fashion-MNIST's largest has 47 MB


def load(config: DataConfig, split: str) -> Images:
    refuse_unknown("data.source", config.source, ("auto", "embedded", "full"))
    if config.path and (config.source == "embedded" or not _is_full(*_fashion_folders(config.path)[:2])):
        raise foreign_path(config)
    full = None if config.source == "embedded" else _full_fashion_folder(config.path)
    if config.source == "full" and full is None:
        raise ValueError(
            "data.source=full, but no complete Fashion-MNIST was found in "
            + ", ".join(str(folder) for folder in _fashion_folders(config.path))
            + "; install Debian's dataset-fashion-mnist or let torchvision download it, or use data.source=embedded"
        )
    if full is not None:
        prefix = "train" if split == "train" else "t10k"
        image_file = _idx_file(full, f"{prefix}-images-idx3-ubyte")
        label_file = _idx_file(full, f"{prefix}-labels-idx1-ubyte")
        assert image_file is not None and label_file is not None  # a full folder has both
        pixels, labels = read_idx(image_file), read_idx(label_file)
        if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.ndim != 1:
            raise ValueError(f"{full} must hold images of 28x28 and labels; it holds {pixels.shape} and {labels.shape}")
        if len(pixels) != len(labels):
            raise ValueError(f"{full} holds {len(pixels)} {prefix} images but {len(labels)} labels")
        if labels.max(initial=0) >= len(CLASSES):
            raise ValueError(f"{full} has a label {labels.max()}; Fashion-MNIST's labels go from 0 to 9")
        return from_arrays("fashion-mnist", split, _pad_to(pixels, 32), labels, CLASSES, str(full))
    pixels, labels = _embedded(ASSETS, split)
    return from_arrays("fashion-mnist", split, pixels, labels, CLASSES, "embedded subset")


@functools.lru_cache(maxsize=2)  # both splits, 31 MB
def _embedded(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Padded images and labels of the shipped subset, read once in a process because unpacking takes a while."""
    asset = folder / "fashion_mnist.npz"
    expected = (folder / "fashion_mnist.sha256").read_text().split()[0]
    if hashlib.sha256(asset.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{asset} is damaged: its SHA-256 differs from the one in fashion_mnist.sha256")
    with np.load(asset) as arrays:
        return _pad_to(arrays[f"{split}_images"], 32), arrays[f"{split}_labels"]


def _fashion_folders(path: str | None) -> list[Path]:
    """Folders that may have a complete copy: the given folder, Debian's package, torchvision's download."""
    given = [home_path(path), home_path(path) / "FashionMNIST" / "raw"] if path else []
    folders = [*given, Path("/usr/share/datasets/fashion-mnist")]
    with contextlib.suppress(ValueError):  # a user without a home folder
        folders.append(home_path(os.environ.get("TORCHVISION_DATA") or TORCHVISION) / "FashionMNIST" / "raw")
    return folders


def _full_fashion_folder(path: str | None) -> Path | None:
    return next((folder for folder in _fashion_folders(path) if _is_full(folder)), None)


def _is_full(*folders: Path) -> bool:
    """Whether one of the folders holds the full Fashion-MNIST."""
    stems = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return any(all(_idx_file(folder, stem) for stem in stems) for folder in folders)


def _pad_to(pixels: np.ndarray, size: int) -> np.ndarray:
    """Grey ``n h w`` to ``n 1 size size``, black border (28 -> 32 is two pixels on each side)."""
    border = (size - pixels.shape[-1]) // 2
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border)))
    return rearrange(padded, "n h w -> n 1 h w")


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((file for file in (folder / f"{stem}.gz", folder / stem) if file.is_file()), None)


def read_idx(file: Path) -> np.ndarray:
    """A uint8 array from an IDX file (the MNIST format), plain or gzipped; ValueError naming a damaged file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            raw = opened.read(_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if len(raw) > _IDX_BYTES:
        raise ValueError(f"{file} unpacks to more than the limit of {_IDX_BYTES:,} bytes")
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file} is not an IDX file of bytes: it starts with {raw[:4].hex()}")
    if len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{file} is damaged: it ends inside its header")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise ValueError(f"{file} is damaged: {body.size} bytes where its header promises {math.prod(shape)}")
    return body.reshape(shape)
