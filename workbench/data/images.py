"""Labelled image sets with one interface: in memory, in class folders, or in archives."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from workbench.config import DataConfig, load_plugin, refuse_unknown

ASSETS = Path(__file__).parent / "assets"
TORCHVISION = "~/.cache/torchvision"  # default of $TORCHVISION_DATA


@dataclass(frozen=True)
class Images:
    """A split of a labelled image set.

    ``read(indices)`` returns uint8 ``b c h w`` as a numpy array; ``labels`` are 0 .. len(classes)-1; ``content`` is a
    hash of pixels and labels (of names, bytes and labels for files). ``notes`` list files that were left out.
    ``read_masks(indices)`` returns bool ``b h w``, True on the object, and ``read_details(indices)`` what else is known
    of each image, as arrays with a row for each; sets without them have None.
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
    read_masks: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)
    read_details: Callable[[np.ndarray], dict[str, np.ndarray]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | np.ndarray) -> UInt8[Tensor, "b c h w"]:
        """Images at ``indices``, uint8 in 0..255."""
        return torch.from_numpy(self.read(np.asarray(indices)))

    @property
    def has_masks(self) -> bool:
        """Whether `masks` can be called: it is known which pixels show the object."""
        return self.read_masks is not None

    def masks(self, indices: Sequence[int] | np.ndarray) -> Bool[Tensor, "b x y"]:
        """Masks of the images at ``indices``, True on the object; ValueError for a set without masks."""
        if self.read_masks is None:
            raise ValueError(
                f"the {self.split} split of data.name={self.name} has no masks of its objects; "
                f"data.name=scenes has, and data.masks names a folder with those of an image folder"
            )
        return torch.from_numpy(self.read_masks(np.asarray(indices)))

    def details(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """What else is known of the images at ``indices``, such as ``box``; empty if nothing is."""
        return {} if self.read_details is None else self.read_details(np.asarray(indices))

    @property
    def summary(self) -> str:
        """One-line summary: count, classes, origin and notes."""
        return summary(f"{self.split} images", len(self), self.classes, self.origin, self.notes)


def summary(what: str, count: int, classes: Sequence[str], origin: str, notes: Sequence[str]) -> str:
    """Text such as "1,000 train images of 3 classes, cat to emu, from /data/set; left out: 1 hidden file (.x)"."""
    kinds = f"{len(classes):,} classes, {classes[0]} to {classes[-1]}" if len(classes) > 1 else f"1 class, {classes[0]}"
    return f"{count:,} {what} of {kinds}, from {origin}{'; '.join(['', *notes])}"


def token_share(masks: Bool[Tensor, "b x x"], side: int) -> Float[Tensor, "b n"]:
    """Share of each token of a ``side`` x ``side`` grid, row-major, that is object.

    Raises ValueError if the masks' side cannot be divided among the tokens.
    """
    size = masks.shape[-1]
    if side < 1 or size % side:
        raise ValueError(f"masks of {size} pixels cannot be divided into {side} x {side} tokens")
    return reduce(masks.float(), "b (h p) (w q) -> b (h w)", "mean", h=side, w=side)


def to_float(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """uint8 0..255 to float -1..1: x / 127.5 - 1."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Float -1..1 to uint8: clip(127.5 x + 128), truncated as in SiT and LightningDiT.

    Raises ValueError for an image with non-finite values.
    """
    finite = images.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise ValueError(f"image {int((~finite).nonzero()[0])} of {len(images)} is not finite")
    return (images * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)


QUANTISATION = "trunc(clip(127.5 x + 128, 0, 255))"


def load_images(config: DataConfig, split: str) -> Images:
    """Open the "train" or "test" split of an image set.

    Args:
        config: The section ``data`` of a configuration.
        split: "train" or "test".

    Returns:
        An ``Images`` record. ``len(images)`` is the number of images, ``images.batch(rows)`` reads images as uint8 ``b
        c h w`` in 0..255, and ``labels``, ``classes``, ``channels``, ``size`` (pixels) and ``summary`` describe them.

    Raises:
        ValueError: For an unknown name or split, a missing folder, and any file that is damaged, empty, of another size
            or not an image; the message names the file.

    Examples:
        >>> images = wb.load_images(wb.load_config("demo/plain").data, "test")
        >>> len(images), images.batch([0, 1]).shape, images.classes[0]
        (10000, torch.Size([2, 1, 32, 32]), 'T-shirt')
    """
    refuse_unknown("split", split, ("train", "test"))
    images = load_plugin("data", config.name)(config, split)
    if not isinstance(images, Images):
        raise ValueError(
            f"data.name {config.name!r} returned {type(images).__name__}; it must return workbench's Images"
        )
    if config.masks is not None and not images.has_masks:
        raise ValueError(f"data.name={config.name} does not read data.masks; data.name=image-folder does")
    return images if config.limit is None else _limited(images, config.limit)


def from_arrays(
    name: str,
    split: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    origin: str,
    masks: np.ndarray | None = None,
) -> Images:
    """Images in memory: ``pixels`` uint8 ``n c h w`` with h = w, ``labels`` integers 0 .. len(classes)-1.

    ``origin`` is a short description of their source. ``masks`` are bool ``n h w``, True on the object. Raises
    ValueError for other arrays.
    """
    what = f"{split} images of {name}"
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3] or not len(pixels):
        raise ValueError(f"{what} must be uint8 of shape n c h h; they are {pixels.dtype} of shape {pixels.shape}")
    if labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} need {len(pixels)} integer labels; got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{what} have labels {labels.min()}..{labels.max()}; {len(classes)} classes have 0..{len(classes) - 1}"
        )
    if masks is not None and (masks.dtype != bool or masks.shape != (len(pixels), *pixels.shape[2:])):
        raise ValueError(f"{what} of shape {pixels.shape} need bool masks n h h; got {masks.dtype} {masks.shape}")
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
        read_masks=None if masks is None else masks.__getitem__,
    )


def limited_rows(labels: Int[np.ndarray, "n"], content: str, limit: int) -> tuple[Int[np.ndarray, "m"], str]:
    """Indices of the rows that ``data.limit`` keeps, and the content hash of the limited set.

    Keeps the first ``limit`` rows, or evenly spaced rows if the set is sorted by class, so that every class is kept.
    A set with at most ``limit`` rows is unchanged.
    """
    count = len(labels)
    if limit >= count:
        return np.arange(count), content
    by_class = labels[0] != labels[-1] and bool((np.diff(labels) >= 0).all())
    kind, chosen = ("evenly", np.arange(limit) * count // limit) if by_class else ("first", np.arange(limit))
    return chosen, hashlib.sha256(f"{content} {kind} {limit}".encode()).hexdigest()


def _limited(images: Images, limit: int) -> Images:
    chosen, content = limited_rows(images.labels, images.content, limit)

    def rows(read: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
        return lambda indices: read(chosen[indices])

    return replace(
        images,
        labels=images.labels[chosen],
        content=content,
        read=rows(images.read),
        read_masks=images.read_masks and rows(images.read_masks),
        read_details=images.read_details and rows(images.read_details),
    )


def foreign_path(config: DataConfig) -> ValueError:
    """Error for a ``data.path`` that a built-in set cannot use; usually data.name was forgotten."""
    return ValueError(
        f"data.path {config.path} has nothing for data.name={config.name}; "
        f"for your own images set data.name=image-folder (or web-dataset)"
    )
