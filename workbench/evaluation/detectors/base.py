"""Detectors: frozen networks that turn images into the rows and class scores that the metrics compare.

A detector is told by its name, and its name stands in every metric it measures: only the network that the literature
scores with may call its numbers FID.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from workbench import plugins
from workbench.config import load_plugin
from workbench.data.encoders import portions
from workbench.diffusion.precision import tf32

DETECTION_BATCH = 256
SPATIAL = 7  # channels of a map that the spatial Frechet distance reads


@dataclass(frozen=True)
class Detected:
    """What a detector sees in images, float32: feature rows, the first channels of a convolutional map where there is
    one (rows of the spatial Frechet distance: `frechet.spatial_rows`), and class scores where it has classes.
    """

    features: Float[Tensor, "b d"]
    spatial: Float[Tensor, "b 7 h w"] | None
    logits: Float[Tensor, "b k"] | None


@runtime_checkable
class Detector(Protocol):
    """A frozen network from uint8 images to `Detected`, in any number and on the network's own device.

    hash: sha256 of the weights and of how they are used; resize: the rule by which images reach the network's size;
    both belong in the record of every number measured with it. dimensions: width of the features, None where the
    images decide it. reduction: the number of principal components of the reference by which the features, given raw,
    are to be compared, None for as they are. classes: what the logits stand for, None for classes without names here.
    encoder: the family in `data.encoders.ENCODERS` with the same weights, None if there is none: what it taught, it
    cannot judge. Grey images count as three equal channels where a network wants three. ValueError for images that
    the detector does not take.
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
    """A `Detector` from a function of a few images; `size` is the side at which they are seen, None for their own.

    weights: what identifies the weights; with the rest of how they are used it makes the hash.
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
        # The number counts changes of what `resize` does not tell: normalisation, layer, pooling.
        return hashlib.sha256(f"{self.name} {self.weights} {self.resize} reading-1".encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Detected:
        """What is seen in `images`; ValueError if they are not uint8, not of one or three channels, or too small."""
        check_images(self.name, images, least=self.least)
        size = self.size or max(images.shape[2:])
        with single_precision():
            batches = images.split(DETECTION_BATCH)
            return joined([self.read(part) for batch in batches for part in portions(batch, size, self.device)])


def load_detector(name: str, device: torch.device | str = "cpu") -> Detector:
    """The detector called `name`, by `plugins.names("detector")` or a module path, on `device`.

    ValueError for an unknown name, and for missing or unfitting weights: what to fetch and where to put it.
    """
    short = plugins.short_name("detector", name)
    detector = load_plugin("detector", name)(torch.device(device))
    if not isinstance(detector, Detector):
        raise ValueError(f"detector {name!r} gave {type(detector).__name__}; it must give workbench's Detector")
    if detector.name != short:  # its name stands in every metric
        raise ValueError(f"detector {name!r} calls itself {detector.name!r}; it must be called {short!r}")
    return detector


def check_images(
    name: str,
    images: Shaped[Tensor, "b c h w"],
    *,
    channels: tuple[int, ...] = (1, 3),
    size: int | None = None,
    least: int = 1,
) -> None:
    """ValueError saying what came and what `name` takes, unless the images are uint8, of allowed channels and size."""
    _, c, h, w = images.shape
    fits = (h, w) == (size, size) if size else min(h, w) >= least
    if images.dtype == torch.uint8 and c in channels and fits:
        return
    sides = f"{size} x {size} pixels, unresized" if size else f"at least {least} x {least} pixels"
    raise ValueError(
        f"got images of {images.dtype} with {c} channels of {h} x {w} pixels; {name} takes torch.uint8 (0 to 255) with "
        f"{' or '.join(map(str, channels))} channels of {sides}"
    )


def joined(parts: Sequence[Detected]) -> Detected:
    """Batches of what a detector saw, as one."""
    columns = {name: [getattr(part, name) for part in parts] for name in ("features", "spatial", "logits")}
    return Detected(**{name: None if rows[0] is None else torch.cat(rows) for name, rows in columns.items()})


def single_precision() -> AbstractContextManager[None]:
    """Products and convolutions of full float32 within, whatever a training in the same process has allowed."""
    return tf32(False)


def scaled(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Pixels in [-1, 1]."""
    return images.float() / 127.5 - 1


def area_averages(maps: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c x y"]:
    """Averages over the areas of at most `side * side` places; maps that have no more are left as they are."""
    h, w = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(h, side), min(w, side)))
