"""What images are compared with: real images as a detector sees them, from a data set or from a reference file."""

import contextlib
import hashlib
import io
import json
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
from workbench.evaluation.archives import ReferenceFile, read_reference, write_reference
from workbench.evaluation.detectors.base import Detector
from workbench.evaluation.frechet import Moments, Statistics, spatial_rows
from workbench.evaluation.manifold import Nearest, nearest_training, squared_radii
from workbench.files import write_atomically

_BATCH = 500
_ARRAYS = ("count", "features", "logits", "mean", "covariance", "spatial_mean", "spatial_covariance")
_KEPT = 60_000  # feature rows kept of a set; its moments are of all rows
_MANIFOLD = 10_000  # rows that span the real manifold, as many as ADM's files hold
_NEIGHBOURS = {"precision": 3, "density": 5}  # ADM's evaluator; Naeem et al. 2020


@dataclass(frozen=True)
class Basis:
    """Principal directions of a reference, by which features of many dimensions are reduced before they are compared.

    `explained` is the share of the reference's variance that they hold.
    """

    mean: Float64[np.ndarray, " d"]
    directions: Float64[np.ndarray, "d k"]
    explained: float

    def rows(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Feature rows in this basis, float32."""
        return ((features.double() - torch.from_numpy(self.mean)) @ torch.from_numpy(self.directions)).float()

    def statistics(self, of: Statistics) -> Statistics:
        """Mean and covariance of rows in this basis, from those of the rows."""
        mean = (of.mean - self.mean) @ self.directions
        return Statistics(of.count, mean, self.directions.T @ of.covariance @ self.directions)


@dataclass(frozen=True)
class Seen:
    """An image set through a detector: moments of all rows, features and labels of those that are kept."""

    statistics: Statistics
    spatial: Statistics | None
    features: Float[Tensor, "k d"]
    logits: Float[Tensor, "k c"] | None
    labels: Int[Tensor, " k"] | None

    def reduced(self, basis: Basis | None) -> "Seen":
        """The same in a basis, or as it is."""
        if basis is None:
            return self
        return replace(self, statistics=basis.statistics(self.statistics), features=basis.rows(self.features))


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as one detector sees them: training images, and held-out ones for floors where there are such.

    `content` identifies the images, `origin` says what they are, `half` whether distances of the manifold are taken as
    ADM's evaluator takes them on a GPU. Radii and distances are computed once, when first asked for.
    """

    train: Seen
    test: Seen | None
    basis: Basis | None
    content: str
    origin: str
    half: bool = False

    @cached_property
    def manifold_rows(self) -> np.ndarray:
        """Row numbers of the training features that span the real manifold."""
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
    """Images through a detector, batch by batch; features of the first `keep` are kept, of all by default.

    Moments are summed in float64, so that only a batch, four d x d arrays and what is kept are held at once.
    ValueError as the detector's, and for a row that is not finite.
    """
    moments = maps = None
    kept, logits, count = [], [], 0
    for images in batches:
        found = detector(images)
        features = found.features.cpu()
        moments = (moments or Moments.none(features.shape[1])).add(features)
        if found.spatial is not None:
            rows = spatial_rows(found.spatial).cpu()
            maps = (maps or Moments.none(rows.shape[1])).add(rows)
        wanted = slice(0, None if keep is None else max(0, keep - count))
        kept.append(features[wanted])
        if found.logits is not None:
            logits.append(found.logits.cpu()[wanted])
        count += len(images)
        if progress:
            progress(count)
    if moments is None:
        raise ValueError("got no images; a score needs at least 2")
    spatial = maps.statistics() if maps else None
    features = torch.cat(kept)
    labels = None if labels is None else labels[: len(features)]
    return Seen(moments.statistics(), spatial, features, torch.cat(logits) if logits else None, labels)


def principal(of: Statistics, count: int) -> Basis:
    """The `count` directions of most variance; the largest loading of each is positive. ValueError for too few rows."""
    if of.count is not None and of.count <= count:
        raise ValueError(f"a reference of {of.count} images has fewer than {count} principal directions; it needs more")
    variances, vectors = np.linalg.eigh(of.covariance)
    directions = vectors[:, ::-1][:, :count]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    return Basis(of.mean, directions * signs, float(variances[::-1][:count].sum() / variances.sum()))


def reference_of_data(
    config: DataConfig, detector: Detector, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Reference:
    """The training images of a data set, all of them, and its test images for floors; seen once, then read back.

    `folder` holds what was seen, by the hash of images and detector.
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


def reference_of_file(file: Path, detector: Detector, progress: Callable[[int, int], None] | None = None) -> Reference:
    """A reference file: ADM's, or one that `workbench reference` wrote.

    Its moments count where this detector made them: those of ADM's files are taken for Inception's. Else those of its
    images do. There are no held-out images, so no floors. ValueError as `archives.read_reference`, and for a file
    without images whose moments are another detector's.
    """
    found = read_reference(file)
    own = _is_of(found, detector)
    if found.images is None:
        raise ValueError(f"{file} holds moments but no images (arr_0), which precision, recall and KID need")
    total = len(found.images)
    seen = see(found.images.batches(_BATCH), detector, progress=lambda done: progress and progress(done, total))
    if own:
        seen = replace(seen, statistics=found.statistics, spatial=found.spatial or seen.spatial)
    basis = None if detector.reduction is None else principal(seen.statistics, detector.reduction)
    half = detector.name == "inception-2015"
    return Reference(seen.reduced(basis), None, basis, found.content, file.name, half=half)


def write_reference_of_data(
    config: DataConfig,
    split: str,
    file: Path,
    detector: Detector,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write ADM's reference file of a data set: moments of all its images, and at most 10,000 of the images themselves.

    Those are the first, or spread evenly where they are listed class by class. Returns what the file says about itself.
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
    """The images of a set in batches, all or those of `rows`."""
    rows = np.arange(len(images)) if rows is None else rows
    for start in range(0, len(rows), _BATCH):
        yield images.batch(rows[start : start + _BATCH])


def _is_of(found: ReferenceFile, detector: Detector) -> bool:
    if found.statistics is None:
        return False
    if found.about is None:
        return detector.name == "inception-2015"
    return found.about.get("detector_hash") == detector.hash


def _seen(images: Images, detector: Detector, folder: Path, progress: Callable[[int], None]) -> Seen:
    key = hashlib.sha256(json.dumps(["seen-1", images.content, detector.hash]).encode()).hexdigest()[:16]
    file = folder / f"{detector.name}-{images.split}-{key}.npz"
    rows, _ = limited_rows(images.labels, "", _KEPT)
    # Those that are kept come first, so that the rest is only summed.
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(images)), rows)])
    labels = torch.from_numpy(images.labels[rows])
    if file.is_file():
        return _read(file, labels)
    seen = see(batches_of(images, order), detector, labels=labels, keep=len(rows), progress=progress)
    with contextlib.suppress(OSError):  # where it cannot be kept it is seen again
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
    again = "delete it, and it is made again"
    try:
        with open_npz(file) as arrays:
            found = {name: arrays.read(name) for name in _ARRAYS if name in arrays}
    except ValueError as error:
        raise ValueError(f"{error}; {again}") from error
    missing = [name for name in ("count", "features", "mean", "covariance") if name not in found]
    if missing:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}; {again}")
    shapes = {name: values.shape for name, values in found.items()}
    d, rows = shapes["mean"], len(labels)
    fits = shapes["count"] == () and shapes["features"] == (rows, *d) and shapes["covariance"] == (*d, *d)
    broken = [name for name, values in found.items() if not np.isfinite(values).all()]
    if not fits or broken:
        what = f"its {broken[0]} is not finite" if broken else f"its arrays are of shapes {shapes}, for {rows} images"
        raise ValueError(f"{file} is damaged: {what}; {again}")
    count = int(found["count"])
    statistics = Statistics(count, found["mean"], found["covariance"])
    maps = [found[key] for key in ("spatial_mean", "spatial_covariance") if key in found]
    logits = torch.from_numpy(found["logits"]) if "logits" in found else None
    return Seen(
        statistics, Statistics(count, *maps) if maps else None, torch.from_numpy(found["features"]), logits, labels
    )
