"""References that generated images are compared with: features of real images, from a data set or a file."""

import contextlib
import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from workbench.arrays import open_npz
from workbench.config import DataConfig
from workbench.data.images import Images, limited_rows, load_images
from workbench.data.weights import weights_folder
from workbench.diffusion.devices import FittingBatches
from workbench.evaluation.archives import ReferenceFile, read_reference, write_reference
from workbench.evaluation.detectors.base import Detected, Detector
from workbench.evaluation.frechet import Moments, Statistics, spatial_rows, statistics
from workbench.evaluation.manifold import Nearest, nearest_training, squared_radii
from workbench.files import write_atomically
from workbench.runs.store import Run

_BATCH = 500
_ADM_FILES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
_OF_IMAGENET = {
    64: "VIRTUAL_imagenet64_labeled.npz",
    128: "VIRTUAL_imagenet128_labeled.npz",
    256: "VIRTUAL_imagenet256_labeled.npz",
    512: "VIRTUAL_imagenet512.npz",
}
_IMAGENET_CLASSES = 1000
_ARRAYS = ("count", "features", "logits", "mean", "covariance", "spatial_mean", "spatial_covariance")
_KEPT = 60_000  # feature rows kept per set; its moments are those of all rows
_MANIFOLD = 10_000  # rows of the real manifold, as in ADM's reference files
_NEIGHBOURS = {"precision": 3, "density": 5}  # ADM's evaluator; Naeem et al. 2020


@dataclass(frozen=True)
class Basis:
    """Principal directions of a reference, to which wide features are reduced before they are compared.

    `explained` is the fraction of the reference's variance along them.
    """

    mean: Float64[np.ndarray, " d"]
    directions: Float64[np.ndarray, "d k"]
    explained: float

    def rows(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Project feature rows onto the directions, in float32."""
        return ((features.double() - torch.from_numpy(self.mean)) @ torch.from_numpy(self.directions)).float()

    def statistics(self, of: Statistics) -> Statistics:
        """Project a mean and covariance onto the directions."""
        mean = (of.mean - self.mean) @ self.directions
        return Statistics(of.count, mean, self.directions.T @ of.covariance @ self.directions)


@dataclass(frozen=True)
class Seen:
    """A detected image set: moments of all images, and features, logits and labels of the first ones."""

    statistics: Statistics
    spatial: Statistics | None
    features: Float[Tensor, "k d"]
    logits: Float[Tensor, "k c"] | None
    labels: Int[Tensor, " k"] | None

    def reduced(self, basis: Basis | None) -> "Seen":
        """Features and moments in a basis; unchanged if it is None."""
        if basis is None:
            return self
        return replace(self, statistics=basis.statistics(self.statistics), features=basis.rows(self.features))

    def subset(self, rows: np.ndarray) -> "Seen":
        """The images at ``rows``, of those whose features were kept; without spatial features."""
        of = [None if values is None else values[rows] for values in (self.logits, self.labels)]
        return Seen(statistics(self.features[rows]), None, self.features[rows], *of)


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images seen by one detector: training images and, for the floors, held-out images if there are any.

    `content` identifies the images and `origin` describes them. With `half`, distances of the manifold are computed as
    by ADM's evaluator on a GPU. Radii and distances are computed once, on first access.
    """

    train: Seen
    test: Seen | None
    basis: Basis | None
    content: str
    origin: str
    half: bool = False

    @cached_property
    def manifold_rows(self) -> np.ndarray:
        """Row numbers of the training features that make up the real manifold."""
        count = len(self.train.features)
        return np.arange(min(_MANIFOLD, count)) * count // min(_MANIFOLD, count)

    @cached_property
    def manifold(self) -> Float[Tensor, "m d"]:
        return self.train.features[self.manifold_rows]

    @cached_property
    def radii(self) -> dict[str, Float[Tensor, " m"]]:
        """Squared radii of the balls of precision (k = 3) and of density (k = 5)."""
        k = _NEIGHBOURS
        precision = squared_radii(self.manifold, k["precision"], half=self.half, block=_MANIFOLD)
        return {"precision": precision, "density": squared_radii(self.manifold, k["density"])}

    @cached_property
    def test_nearest(self) -> Nearest | None:
        """Distances of the held-out images to the training images."""
        return None if self.test is None else nearest_training(self.test.features, self.train.features)


def see(
    batches: Iterable[UInt8[Tensor, "_ c h w"]],
    detector: Detector,
    *,
    labels: Int[Tensor, " n"] | None = None,
    keep: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Seen:
    """Detect images batch by batch; features of the first `keep` images are kept, by default of all.

    Moments are summed in float64; only one batch, four d x d arrays and the kept features are in memory at a time.
    Raises ValueError as the detector does, and for a row that is not finite.
    """
    moments = maps = None
    kept, logits, count = [], [], 0
    fitting = FittingBatches(_BATCH)
    for detected in (found for images in batches for found in _detected(images, detector, fitting)):
        features = detected.features.cpu()
        moments = (moments or Moments.none(features.shape[1])).add(features)
        if detected.spatial is not None:
            rows = spatial_rows(detected.spatial).cpu()
            maps = (maps or Moments.none(rows.shape[1])).add(rows)
        wanted = slice(0, None if keep is None else max(0, keep - count))
        kept.append(features[wanted])
        if detected.logits is not None:
            logits.append(detected.logits.cpu()[wanted])
        count += len(features)
        if progress:
            progress(count)
    if moments is None:
        raise ValueError("got no images; a score needs at least 2")
    spatial = maps.statistics() if maps else None
    features = torch.cat(kept)
    labels = None if labels is None else labels[: len(features)]
    return Seen(moments.statistics(), spatial, features, torch.cat(logits) if logits else None, labels)


def _detected(images: UInt8[Tensor, "b c h w"], detector: Detector, fitting: FittingBatches) -> Iterator[Detected]:
    return (found for _, found in fitting(lambda part: detector(images[part]), len(images)))


def principal(of: Statistics, count: int) -> Basis:
    """The first `count` principal directions, each with a positive largest loading; ValueError for too few rows."""
    if of.count is not None and of.count <= count:
        raise ValueError(f"a reference of {of.count} images has fewer than {count} principal directions; it needs more")
    variances, vectors = np.linalg.eigh(of.covariance)
    directions = vectors[:, ::-1][:, :count]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    return Basis(of.mean, directions * signs, float(variances[::-1][:count].sum() / variances.sum()))


def reference_of_data(
    config: DataConfig, detector: Detector, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Reference:
    """Detect all training images of a data set, and its test images for the floors.

    The results are cached in `folder`, by the hashes of images and detector.
    """
    train, test = load_images(config, "train"), load_images(config, "test")
    total, done = len(train) + len(test), 0

    def report(count: int) -> None:
        if progress:
            progress(done + count, total)

    seen = _seen(train, detector, folder, report)
    done = len(train)
    basis = None if detector.reduction is None else principal(seen.statistics, detector.reduction)
    held_out = _seen(test, detector, folder, report)
    return Reference(seen.reduced(basis), held_out.reduced(basis), basis, train.content, f"{train.name} train")


def published_reference(run: Run, detector: str) -> Path | None:
    """ADM's reference file for a run of ImageNet scored by Inception, if it is in ``$WORKBENCH_WEIGHTS``.

    Published FIDs are measured against it. None for other runs and detectors; without the file a warning says where it
    is.
    """
    data, classes = run.config.data, run.latents["classes"]
    imagenet = len(classes) == _IMAGENET_CLASSES and (
        "origin" in run.provenance or all(re.fullmatch(r"n\d{8}", name) for name in classes)
    )
    name = _OF_IMAGENET.get(data.size)
    if detector != "inception-2015" or not imagenet or name is None or data.crop != "adm":
        return None
    file = weights_folder() / name
    if file.is_file():
        return file
    warnings.warn(
        f"published FIDs of ImageNet are measured against ADM's reference file, which is not here, so all training "
        f"images are read instead: download {_ADM_FILES}/{data.size}/{name} into {weights_folder()}",
        stacklevel=2,
    )
    return None


def reference_of_file(file: Path, detector: Detector, progress: Callable[[int, int], None] | None = None) -> Reference:
    """A reference from a file: one of ADM's, or one written by `workbench reference`.

    The moments in the file are used if they are those of this detector (ADM's files have Inception's), else those of
    its images. There are no held-out images and so no floors. Raises ValueError as `archives.read_reference`, and for a
    file without images.
    """
    stored = read_reference(file)
    if stored.images is None:
        raise ValueError(f"{file} has moments but no images (arr_0), which precision, recall and KID need")
    total = len(stored.images)
    seen = see(stored.images.batches(_BATCH), detector, progress=lambda done: progress and progress(done, total))
    if stored.statistics is not None and _is_of(stored, detector):
        seen = replace(seen, statistics=stored.statistics, spatial=stored.spatial or seen.spatial)
    basis = None if detector.reduction is None else principal(seen.statistics, detector.reduction)
    half = detector.name == "inception-2015"
    return Reference(seen.reduced(basis), None, basis, stored.content, file.name, half=half)


def write_reference_of_data(
    config: DataConfig,
    split: str,
    file: Path,
    detector: Detector,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a data set's reference file in ADM's format: moments of all images, and at most 10,000 of the images.

    These are the first ones, or evenly spaced ones if the set is sorted by class. Returns the file's description.
    """
    images = load_images(config, split)
    seen = see(batches_of(images), detector, keep=0, progress=lambda done: progress and progress(done, len(images)))
    rows, _ = limited_rows(images.labels, "", _MANIFOLD)
    about = {
        "detector": detector.name,
        "detector_hash": detector.hash,
        "resize": detector.resize,
        "images": images.content,
        "data": f"{images.name} {split}, {images.origin}",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_reference(file, images.batch(rows), seen.statistics, seen.spatial, about)
    return {**about, "count": len(images)}


def batches_of(images: Images, rows: np.ndarray | None = None) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Batches of a set's images, of all or of those at `rows`."""
    rows = np.arange(len(images)) if rows is None else rows
    for start in range(0, len(rows), _BATCH):
        yield images.batch(rows[start : start + _BATCH])


def _is_of(stored: ReferenceFile, detector: Detector) -> bool:
    """Whether the moments of a reference file were measured with this detector."""
    if stored.about is None:
        return detector.name == "inception-2015"
    return stored.about.get("detector_hash") == detector.hash


def _seen(images: Images, detector: Detector, folder: Path, progress: Callable[[int], None]) -> Seen:
    key = hashlib.sha256(json.dumps(["seen-1", images.content, detector.hash]).encode()).hexdigest()[:16]
    file = folder / f"{detector.name}-{images.split}-{key}.npz"
    rows, _ = limited_rows(images.labels, "", _KEPT)
    # Rows whose features are kept come first; the others only contribute to the moments.
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(images)), rows)])
    labels = torch.from_numpy(images.labels[rows])
    if file.is_file():
        return _read(file, labels)
    seen = see(batches_of(images, order), detector, labels=labels, keep=len(rows), progress=progress)
    with contextlib.suppress(OSError):  # without a cache the images are detected each time
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, _written(seen))
    return seen


def _written(seen: Seen) -> bytes:
    arrays: dict[str, Any] = {"count": seen.statistics.count, "features": seen.features.numpy()}
    for name, moments in (("", seen.statistics), ("spatial_", seen.spatial)):
        if moments is not None:
            arrays |= {f"{name}mean": moments.mean, f"{name}covariance": moments.covariance}
    if seen.logits is not None:
        arrays["logits"] = seen.logits.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _read(file: Path, labels: Int[Tensor, " k"]) -> Seen:
    hint = "delete it to compute it again"
    try:
        with open_npz(file) as arrays:
            values = {name: arrays.read(name) for name in _ARRAYS if name in arrays}
    except ValueError as error:
        raise ValueError(f"{error}; {hint}") from error
    missing = [name for name in ("count", "features", "mean", "covariance") if name not in values]
    if missing:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}; {hint}")
    shapes = {name: array.shape for name, array in values.items()}
    d, rows = shapes["mean"], len(labels)
    fits = shapes["count"] == () and shapes["features"] == (rows, *d) and shapes["covariance"] == (*d, *d)
    broken = [name for name, array in values.items() if not np.isfinite(array).all()]
    if not fits or broken:
        reason = f"its {broken[0]} is not finite" if broken else f"its arrays have shapes {shapes}, for {rows} images"
        raise ValueError(f"{file} is damaged: {reason}; {hint}")
    count = int(values["count"])
    statistics = Statistics(count, values["mean"], values["covariance"])
    maps = [values[key] for key in ("spatial_mean", "spatial_covariance") if key in values]
    spatial = Statistics(count, *maps) if maps else None
    logits = torch.from_numpy(values["logits"]) if "logits" in values else None
    return Seen(statistics, spatial, torch.from_numpy(values["features"]), logits, labels)
