"""Detectors: frozen networks that turn images into the feature rows and class scores that the metrics compare.

The name of a detector is part of the name of every metric measured with it. Only the network used in the literature
may call its numbers FID.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from workbench import plugins
from workbench.config import load_plugin
from workbench.data.encoders import portions
from workbench.diffusion.precision import reduced, tf32

DETECTION_BATCH = 256
SPATIAL = 7  # channels of a feature map used by the spatial Frechet distance


@dataclass(frozen=True)
class Detected:
    """Output of a detector, float32: feature rows, the first channels of a convolutional map if it has one (rows of
    the spatial Frechet distance: `frechet.spatial_rows`), and class scores if it has classes.
    """

    features: Float[Tensor, "b d"]
    spatial: Float[Tensor, "b 7 h w"] | None
    logits: Float[Tensor, "b k"] | None


@runtime_checkable
class Detector(Protocol):
    """A frozen network from any number of uint8 images to `Detected`, on the network's own device.

    hash: SHA-256 of the weights and how they are used. resize: how images are resized to the network's input; both
    are stored with every score. dimensions: width of the features, None if it depends on the images. reduction: number
    of principal components of the reference to which the features are reduced before they are compared, None for no
    reduction. classes: names of the classes of the logits, None if they are unknown. encoder: the family in
    `data.encoders.ENCODERS` with the same weights, None if there is none; a run trained with this encoder is not
    scored by the detector, as its scores would be biased. Grey images are repeated to three channels if the network
    needs three. Raises ValueError for images that the detector does not accept.
    """

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...

    @property
    def dimensions(self) -> int | None: ...

    @property
    def resize(self) -> str: ...

    @property
    def reduction(self) -> int | None: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def encoder(self) -> str | None: ...

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Detected: ...


@dataclass(frozen=True)
class FrozenDetector:
    """A `Detector` from a function that reads a small batch of images.

    size: side of the network's input in pixels, None for the size of the images. weights: identifies the weights, and
    is hashed together with how they are used.
    """

    name: str
    weights: str = field(repr=False)
    dimensions: int | None
    resize: str
    device: torch.device
    read: Callable[[UInt8[Tensor, "b c h w"]], Detected] = field(repr=False)
    size: int | None
    least: int = 1
    reduction: int | None = None
    encoder: str | None = None
    classes: tuple[str, ...] | None = None

    @property
    def hash(self) -> str:
        # Increase the number when normalization, layer or pooling change, which `resize` does not describe.
        return hashlib.sha256(f"{self.name} {self.weights} {self.resize} reading-1".encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Detected:
        """Detect images; ValueError if they are not uint8, do not have one or three channels, or are too small."""
        check_images(self.name, images, least=self.least)
        size = self.size or max(images.shape[2:])
        with single_precision():
            batches = images.split(DETECTION_BATCH)
            return joined([self.read(part) for batch in batches for part in portions(batch, size, self.device)])


def load_detector(name: str, device: torch.device | str = "cpu", precision: Literal["no", "bf16"] = "no") -> Detector:
    """Load a detector by name (`plugins.names("detector")`) or module path, on `device`.

    Its arithmetic is float32, without TF32. With `precision` "bf16", matrix products and convolutions are in bfloat16,
    and its hash is another one.

    Raises ValueError for an unknown name, and for missing or mismatched weights, with what to download and where to
    put it.
    """
    short = plugins.short_name("detector", name)
    detector = load_plugin("detector", name)(torch.device(device))
    if not isinstance(detector, Detector):
        raise ValueError(f"detector {name!r} returned {type(detector).__name__}; it must return workbench's Detector")
    if detector.name != short:  # the name is part of every metric
        raise ValueError(f"detector {name!r} has the name {detector.name!r}; it must be {short!r}")
    return detector if precision == "no" else _in_precision(detector, torch.device(device), precision)


def _in_precision(detector: Detector, device: torch.device, precision: str) -> Detector:
    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        with reduced(precision, device):
            found = detector(images)
        spatial, logits = (None if of is None else of.float() for of in (found.spatial, found.logits))
        return Detected(found.features.float(), spatial, logits)

    return FrozenDetector(
        name=detector.name,
        weights=f"{detector.hash} {precision}",
        dimensions=detector.dimensions,
        resize=detector.resize,
        device=device,
        read=read,
        size=None,
        reduction=detector.reduction,
        encoder=detector.encoder,
        classes=detector.classes,
    )


def check_images(
    name: str,
    images: Shaped[Tensor, "b c h w"],
    *,
    channels: tuple[int, ...] = (1, 3),
    size: int | tuple[int, ...] | None = None,
    least: int = 1,
) -> None:
    """Raise ValueError, with what detector `name` accepts, unless images are uint8 of allowed channels and size."""
    _, c, h, w = images.shape
    allowed = (size,) if isinstance(size, int) else size
    fits = h == w and h in allowed if allowed else min(h, w) >= least
    if images.dtype == torch.uint8 and c in channels and fits:
        return
    sides = f"at least {least} x {least} pixels"
    if allowed:
        sides = f"{' or '.join(f'{side} x {side}' for side in allowed)} pixels, unresized"
    raise ValueError(
        f"got images of {images.dtype} with {c} channels of {h} x {w} pixels; {name} takes torch.uint8 (0 to 255) with "
        f"{' or '.join(map(str, channels))} channels of {sides}"
    )


def joined(parts: Sequence[Detected]) -> Detected:
    """Concatenate the outputs of several batches."""

    def column(rows: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [row for row in rows if row is not None]
        return torch.cat(tensors) if tensors else None

    return Detected(
        torch.cat([part.features for part in parts]),
        column([part.spatial for part in parts]),
        column([part.logits for part in parts]),
    )


def single_precision() -> AbstractContextManager[None]:
    """Context of matrix products and convolutions in full float32, even if training in this process allowed TF32."""
    return tf32(False)


def scaled(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def area_averages(maps: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c x y"]:
    """Average-pool maps to at most `side * side`; smaller maps are unchanged."""
    h, w = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(h, side), min(w, side)))
