"""Labelled image sets behind one interface: in memory, in a tree of class folders, or in archives."""

import contextlib
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workbench.config import DataConfig, refuse_unknown
from workbench.files import home_path

ASSETS = Path(__file__).parent / "assets"
_TORCHVISION = "~/.cache/torchvision"  # unless $TORCHVISION_DATA says otherwise
FASHION_CLASSES = (
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


@dataclass(frozen=True)
class Images:
    """A split of a labelled image set.

    ``read(indices)`` returns uint8 ``b c h w`` as a numpy array; ``labels`` are 0 .. len(classes)-1;
    ``content`` is a hash of pixels and labels (of names, bytes and labels for files). ``notes`` say what was left out.
    """

    name: str
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]
    channels: int
    size: int
    origin: str
    content: str
    read: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | np.ndarray) -> UInt8[Tensor, "b c h w"]:
        """Images at ``indices``, uint8 in 0..255."""
        return torch.from_numpy(self.read(np.asarray(indices)))

    @property
    def summary(self) -> str:
        """What was read, in a line."""
        return summary(f"{self.split} images", len(self), self.classes, self.origin, self.notes)


def summary(what: str, count: int, classes: Sequence[str], origin: str, notes: Sequence[str]) -> str:
    """Such as "1,000 train images of 3 classes, cat to emu, from /data/set; left out: 1 hidden folder (.git)"."""
    kinds = f"{len(classes):,} classes, {classes[0]} to {classes[-1]}" if len(classes) > 1 else f"1 class, {classes[0]}"
    return f"{count:,} {what} of {kinds}, from {origin}{'; '.join(['', *notes])}"


def to_float(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """uint8 0..255 to float -1..1: x / 127.5 - 1."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Float -1..1 to uint8: clip(127.5 x + 128) truncated, SiT's and LightningDiT's rounding.

    ValueError for an image that is not finite, which no grey stands for.
    """
    finite = images.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(f"image {int((~finite).nonzero()[0])} of {len(images)} is not finite")
    return (images * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)


_IDX_BYTES = 1 << 30  # of an IDX file, unpacked; Fashion-MNIST's largest has 47 MB
QUANTISATION = "trunc(clip(127.5 x + 128, 0, 255))"


def load_images(config: DataConfig, split: str) -> Images:
    """Open the "train" or "test" split of an image set.

    Args:
        config: The section ``data`` of a configuration.
        split: "train" or "test".

    Returns:
        An ``Images`` record. ``len(images)`` is the number of images, ``images.batch(rows)`` reads some as uint8 ``b c
        h w`` in 0..255, and ``labels``, ``classes``, ``channels``, ``size`` (pixels) and ``summary`` describe them.

    Raises:
        ValueError: For an unknown name or split, a missing folder, and any file that is damaged, empty, of another size
            or not an image; the message names the file.

    Examples:
        >>> images = wb.load_images(wb.load_config("demo/plain").data, "test")
        >>> len(images), images.batch([0, 1]).shape, images.classes[0]
        (10000, torch.Size([2, 1, 32, 32]), 'T-shirt')
    """
    refuse_unknown("split", split, ("train", "test"))
    refuse_unknown("data.name", config.name, _LOADERS)
    images = _LOADERS[config.name](config, split)
    return images if config.limit is None else _limited(images, config.limit)


def _from_arrays(name: str, split: str, pixels: np.ndarray, labels: np.ndarray, classes, origin: str) -> Images:
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(pixels.tobytes())
    digest.update(labels.astype(np.int64).tobytes())
    return Images(
        name=name,
        split=split,
        labels=labels.astype(np.int64),
        classes=tuple(classes),
        channels=pixels.shape[1],
        size=pixels.shape[2],
        origin=origin,
        content=digest.hexdigest(),
        read=lambda indices: pixels[indices],
    )


def limited_rows(labels: Int[np.ndarray, "n"], content: str, limit: int) -> tuple[Int[np.ndarray, "m"], str]:
    """The rows that ``data.limit`` keeps of a set, and the content hash of what is kept.

    They are the first; of a set that is listed class by class, as many spread evenly over the list, so that every
    class stays. All, and the hash unchanged, if there are no more than ``limit``.
    """
    count = len(labels)
    if limit >= count:
        return np.arange(count), content
    by_class = labels[0] != labels[-1] and bool((np.diff(labels) >= 0).all())
    kind, chosen = ("evenly", np.arange(limit) * count // limit) if by_class else ("first", np.arange(limit))
    return chosen, hashlib.sha256(f"{content} {kind} {limit}".encode()).hexdigest()


def _limited(images: Images, limit: int) -> Images:
    chosen, content = limited_rows(images.labels, images.content, limit)
    read = images.read
    return replace(images, labels=images.labels[chosen], content=content, read=lambda indices: read(chosen[indices]))


def _pad_to(pixels: np.ndarray, size: int) -> np.ndarray:
    """Grey ``n h w`` to ``n 1 size size``, black border (28 -> 32 is two pixels on each side)."""
    border = (size - pixels.shape[-1]) // 2
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border)))
    return rearrange(padded, "n h w -> n 1 h w")


def _fashion_mnist(config: DataConfig, split: str) -> Images:
    refuse_unknown("data.source", config.source, ("auto", "embedded", "full"))
    if config.path and (config.source == "embedded" or not _is_full(*_fashion_folders(config.path)[:2])):
        raise _foreign_path(config)
    full = None if config.source == "embedded" else _full_fashion_folder(config.path)
    if config.source == "full" and full is None:
        raise ValueError(
            "data.source=full, but no complete Fashion-MNIST was found in "
            + ", ".join(str(folder) for folder in _fashion_folders(config.path))
            + "; install Debian's dataset-fashion-mnist or let torchvision download it, or use data.source=embedded"
        )
    if full is not None:
        prefix = "train" if split == "train" else "t10k"
        pixels = read_idx(_idx_file(full, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_idx_file(full, f"{prefix}-labels-idx1-ubyte"))
        if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.ndim != 1:
            raise ValueError(f"{full} must hold images of 28x28 and labels; it holds {pixels.shape} and {labels.shape}")
        if len(pixels) != len(labels):
            raise ValueError(f"{full} holds {len(pixels)} {prefix} images but {len(labels)} labels")
        if labels.max(initial=0) >= len(FASHION_CLASSES):
            raise ValueError(f"{full} has a label {labels.max()}; Fashion-MNIST's labels go from 0 to 9")
        return _from_arrays("fashion-mnist", split, _pad_to(pixels, 32), labels, FASHION_CLASSES, str(full))
    asset = ASSETS / "fashion_mnist.npz"
    expected = (ASSETS / "fashion_mnist.sha256").read_text().split()[0]
    if hashlib.sha256(asset.read_bytes()).hexdigest() != expected:
        raise ValueError(f"{asset} is damaged: its SHA-256 is not the one in fashion_mnist.sha256")
    with np.load(asset) as arrays:
        pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return _from_arrays("fashion-mnist", split, _pad_to(pixels, 32), labels, FASHION_CLASSES, "embedded subset")


def _fashion_folders(path: str | None) -> list[Path]:
    """Where a complete copy may lie: the given folder, Debian's package, torchvision's download."""
    given = [home_path(path), home_path(path) / "FashionMNIST" / "raw"] if path else []
    folders = [*given, Path("/usr/share/datasets/fashion-mnist")]
    with contextlib.suppress(ValueError):  # a user without a home
        folders.append(home_path(os.environ.get("TORCHVISION_DATA") or _TORCHVISION) / "FashionMNIST" / "raw")
    return folders


def _full_fashion_folder(path: str | None) -> Path | None:
    return next((folder for folder in _fashion_folders(path) if _is_full(folder)), None)


def _is_full(*folders: Path) -> bool:
    """Whether one of the folders holds the full Fashion-MNIST."""
    stems = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return any(all(_idx_file(folder, stem) for stem in stems) for folder in folders)


def _foreign_path(config: DataConfig) -> ValueError:
    """For a path that a built-in set has no use for: most often data.name was forgotten."""
    return ValueError(
        f"data.path {config.path} holds nothing for data.name={config.name}; "
        f"for your own images set data.name=image-folder (or web-dataset)"
    )


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
        raise ValueError(f"{file} unpacks to more than {_IDX_BYTES:,} bytes, which no MNIST-like set has")
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file} is not an IDX file of bytes: it starts with {raw[:4].hex()}")
    if len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{file} is damaged: it ends inside its header")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise ValueError(f"{file} is damaged: {body.size} bytes where its header promises {math.prod(shape)}")
    return body.reshape(shape)


def _digits(config: DataConfig, split: str) -> Images:
    """scikit-learn's 8x8 digits, each pixel repeated to 32x32: every fifth image is the test split."""
    from sklearn.datasets import load_digits

    if config.path:
        raise _foreign_path(config)
    data = load_digits()
    chosen = (np.arange(len(data.target)) % 5 == 4) == (split == "test")
    pixels = np.minimum(data.images[chosen] * 16, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    classes = [str(digit) for digit in range(10)]
    return _from_arrays("digits", split, pixels[:, None], data.target[chosen], classes, "scikit-learn")


def _cifar10(config: DataConfig, split: str) -> Images:
    from torchvision.datasets import CIFAR10

    root = home_path(config.path or os.environ.get("TORCHVISION_DATA") or _TORCHVISION)
    try:
        data = CIFAR10(root, train=split == "train", download=not (root / CIFAR10.base_folder).is_dir())
    except (RuntimeError, OSError) as error:  # torchvision raises either for a failed download
        raise ValueError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}); "
            f"unpack cifar-10-python.tar.gz there or give data.path"
        ) from error
    pixels = rearrange(data.data, "n h w c -> n c h w")
    return _from_arrays("cifar10", split, pixels, np.asarray(data.targets), data.classes, str(root))


def _image_folder(config: DataConfig, split: str) -> Images:
    from workbench.data.folder import load_image_folder

    return load_image_folder(config, split)


def _web_dataset(config: DataConfig, split: str) -> Images:
    from workbench.data.archives import load_web_dataset

    return load_web_dataset(config, split)


def _images_of_store(config: DataConfig, split: str) -> Images:
    from workbench.data.stores import load_store_images

    return load_store_images(config, split)


_LOADERS = {
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "cifar10": _cifar10,
    "image-folder": _image_folder,
    "web-dataset": _web_dataset,
    "repa-latents": _images_of_store,
    "lightningdit-latents": _images_of_store,
}
SETS = tuple(sorted(_LOADERS))  # what `data.name` can be
