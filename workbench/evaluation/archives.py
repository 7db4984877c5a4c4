"""Files of images and reference moments in the format of ADM's evaluator (openai/guided-diffusion, evaluations/).

`arr_0` has the images, uint8 n x height x width x channels; `mu`, `sigma` are moments of pooled features, `mu_s`,
`sigma_s` of spatial ones. Pickles are never loaded.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from workbench.arrays import Arrays, Header, is_npy, map_npy, npy_header, open_npz
from workbench.evaluation.frechet import Statistics
from workbench.files import parse_mapping, replacing

_ROWS = 500  # images written at a time
_ASYMMETRY = 1e-6  # relative to the largest entry; rounding to float32 and another order of summation cause less
_MOST_CLASSES = 100_000  # as images are counted by class; ImageNet-21k has 21,841
_MOST_DIMENSIONS = 16_384  # of moments, whose covariance takes 2 GB; Inception's have 2,048 and 2,023


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images of a file; those of an uncompressed file are memory-mapped."""

    rows: UInt8[np.ndarray, "n x y c"]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images in order, `size` at a time."""
        for start in range(0, len(self), size):
            chunk = rearrange(self.rows[start : start + size], "b x y c -> b c x y")
            # Convolution kernels are chosen by strides, and a permuted array of one channel would count as contiguous.
            images = torch.empty(chunk.shape, dtype=torch.uint8)
            images.numpy()[:] = chunk
            yield images

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """All images, in memory."""
        return next(self.batches(len(self)))


@dataclass(frozen=True, eq=False)
class SampleFile(StoredImages):
    """Generated images of a file, with their classes if the file has them.

    `statistics` and `spatial` are moments stored in the file, which ADM's evaluator uses for FID and sFID instead of
    those of the images. `content` is the SHA-256 of the file.
    """

    labels: Int[Tensor, " n"] | None
    statistics: Statistics | None
    spatial: Statistics | None
    content: str


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """Real images of a file, for precision and recall, and moments of a possibly larger set, for FID and sFID.

    `about` describes how the file was made, with the count of the moments; None if another program wrote it. `content`
    is the SHA-256 of the file.
    """

    images: StoredImages | None
    statistics: Statistics | None
    spatial: Statistics | None
    about: dict[str, Any] | None
    content: str


def read_samples(file: Path) -> SampleFile:
    """Read the images of an .npz (`arr_0`, with labels in `labels` or `arr_1`) or of a plain .npy.

    Uncompressed images are checked for damage and memory-mapped. Raises ValueError for a file that is missing, damaged
    or neither of these, pickles, images that are not uint8 n x h x w x 1 or 3, and labels that do not match them.
    """
    if is_npy(file):
        _check_images(npy_header(file), file)
        return SampleFile(map_npy(file), None, None, None, _content(file))
    with open_npz(file) as arrays:
        if "arr_0" not in arrays:
            raise ValueError(f"{file} has {arrays.listed}; it must have arr_0, the images")
        rows = _images(arrays)
        names = [name for name in ("labels", "arr_1") if name in arrays]
        labels = _labels(arrays, names[0], len(rows)) if names else None
        moments = _moments(arrays, "mu", "sigma", None), _moments(arrays, "mu_s", "sigma_s", None)
    return SampleFile(rows, labels, *moments, _content(file))


def write_samples(file: Path, images: UInt8[Tensor, "n c h w"], labels: Integer[Tensor, " n"] | None = None) -> None:
    """Write images as `arr_0`, as ADM's evaluator reads them, and labels as int64 `labels`; atomic and uncompressed.

    The same arrays give the same bytes. Raises ValueError if there are no images, or they do not have 1 or 3 channels.
    """
    write_parts(file, len(images), images.split(_ROWS), labels)


def write_parts(
    file: Path, count: int, parts: Iterable[UInt8[Tensor, "_ c h w"]], labels: Integer[Tensor, " n"] | None = None
) -> None:
    """Write ``count`` images as `write_samples` does, from parts that are in memory one after the other."""
    _write(file, count, parts, {} if labels is None else {"labels": labels.cpu().numpy().astype(np.int64)})


def read_reference(file: Path) -> ReferenceFile:
    """Read an .npz with images (`arr_0`), moments (`mu`, `sigma`, optionally `mu_s`, `sigma_s`) or both, as ADM's.

    Raises ValueError, naming the array, as `read_samples`, if there are neither images nor moments, one moment of a
    pair is missing, shapes do not match, a moment is not finite, or a covariance is not symmetric.
    """
    with open_npz(file) as arrays:
        if not any(name in arrays for name in ("arr_0", "mu", "sigma")):
            raise ValueError(f"{file} has {arrays.listed}; it must have arr_0, or mu and sigma")
        rows = _images(arrays) if "arr_0" in arrays else None
        about = _about(arrays) if "about" in arrays else None
        count = about.get("count") if about else None
        moments = _moments(arrays, "mu", "sigma", count), _moments(arrays, "mu_s", "sigma_s", count)
    return ReferenceFile(None if rows is None else StoredImages(rows), *moments, about, _content(file))


def write_reference(
    file: Path,
    images: UInt8[Tensor, "n c h w"],
    pooled: Statistics,
    spatial: Statistics | None,
    about: Mapping[str, Any],
) -> None:
    """Write a reference file for ADM's evaluator: `arr_0`, `mu`, `sigma`, `mu_s`, `sigma_s`, and `about` as JSON.

    The write is atomic. Without `spatial`, for a detector without spatial features, the last pair is left out. The
    moments' count is added to `about`. Raises ValueError as `write_samples`, and for moments with different counts.
    """
    if spatial is not None and spatial.count != pooled.count:
        raise ValueError(f"the moments are of {pooled.count} and {spatial.count} images; the counts must be equal")
    moments = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        moments |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    _write(
        file,
        len(images),
        images.split(_ROWS),
        {**moments, "about": np.array(json.dumps({**about, "count": pooled.count}))},
    )


def _images(arrays: Arrays) -> UInt8[np.ndarray, "n x y c"]:
    _check_images(arrays.header("arr_0"), arrays.file)
    return arrays.map("arr_0")


def _check_images(header: Header, file: Path) -> None:
    shape = " x ".join(map(str, header.shape))
    if header.dtype != np.uint8:
        how = "from 0..1 by (255 * x).round(), from -1..1 by (127.5 * x + 127.5).round()"
        raise ValueError(f"{file}: arr_0 is {header.dtype}; allowed is uint8, 0..255; convert floats first, {how}")
    if len(header.shape) != 4 or header.shape[3] not in (1, 3):
        channels_first = len(header.shape) == 4 and header.shape[1] in (1, 3)
        how = "; if the channels come first, convert it by arr.transpose(0, 2, 3, 1)" if channels_first else ""
        raise ValueError(f"{file}: arr_0 is {shape}; allowed is n x height x width x 1 or 3 channels{how}")
    if 0 in header.shape:
        raise ValueError(f"{file}: arr_0 is {shape}, which has no images")


def _labels(arrays: Arrays, name: str, count: int) -> Int[Tensor, " n"]:
    header = arrays.header(name)
    if header.dtype.kind not in "iu" or header.shape != (count,):
        raise ValueError(
            f"{arrays.file}: {name} is {header.dtype} of shape {header.shape}; it must be {count} integers"
        )
    values = arrays.read(name)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= _MOST_CLASSES:
        raise ValueError(f"{arrays.file}: {name} goes from {low} to {high}; allowed are 0 to {_MOST_CLASSES - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _moments(arrays: Arrays, mean: str, covariance: str, count: int | None) -> Statistics | None:
    file, names = arrays.file, [name for name in (mean, covariance) if name in arrays]
    if not names:
        return None
    if len(names) == 1:
        raise ValueError(f"{file} has only {names[0]} of {mean} and {covariance}; it must have both or neither")
    for name in names:
        if arrays.header(name).dtype.kind not in "fiu":
            raise ValueError(f"{file}: {name} is {arrays.header(name).dtype}; allowed are real numbers")
    d, square = (arrays.header(name).shape for name in names)
    if len(d) != 1 or not 0 < d[0] <= _MOST_DIMENSIONS or square != (*d, *d):
        raise ValueError(
            f"{file}: {mean} has shape {d}, {covariance} has {square}; they must be d and d x d, "
            f"with d from 1 to {_MOST_DIMENSIONS}"
        )
    moments = {name: arrays.read(name).astype(np.float64) for name in names}
    for name, values in moments.items():
        # Within the range of float32 the squares in a distance cannot overflow.
        broken = np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max))
        if len(broken):
            index = broken[0].tolist()
            raise ValueError(f"{file}: {name}{index} is {values[tuple(index)]:g}; moments must be finite in float32")
    mu, sigma = moments.values()
    gap = np.abs(sigma - sigma.T)
    if gap.max() > _ASYMMETRY * np.abs(sigma).max():
        i, j = map(int, np.unravel_index(gap.argmax(), gap.shape))
        raise ValueError(
            f"{file}: {covariance} is not symmetric: {covariance}[{i}, {j}] is {sigma[i, j]}, [{j}, {i}] {sigma[j, i]}"
        )
    if (negative := np.flatnonzero(sigma.diagonal() < 0)).size:
        i = int(negative[0])
        raise ValueError(f"{file}: {covariance}[{i}, {i}] is {sigma[i, i]}; a variance is 0 or more")
    return Statistics(count, mu, sigma)


def _about(arrays: Arrays) -> dict[str, Any]:
    header = arrays.header("about")
    if header.dtype.kind != "U" or header.shape != ():
        raise ValueError(f"{arrays.file}: about is not a JSON object: it is {header.dtype} of shape {header.shape}")
    try:
        about = parse_mapping(str(arrays.read("about", kinds="U")), "it")
    except ValueError as error:
        raise ValueError(f"{arrays.file}: about is not a JSON object: {error}") from error
    count = about.get("count")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= 10**12):
        raise ValueError(f"{arrays.file}: about has a count of {count!r} images; allowed are 2 to 10^12")
    return about


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(file: Path, count: int, parts: Iterable[UInt8[Tensor, "_ c h w"]], others: Mapping[str, np.ndarray]) -> None:
    left = iter(parts)
    first = next(left, torch.empty(0, dtype=torch.uint8))
    shape = (count, *first.shape[1:])
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"got images of shape {shape}; allowed are 1 or more of 1 or 3 channels")
    _, channels, height, width = shape
    written = 0
    with replacing(file) as out, zipfile.ZipFile(out, "w") as archive:
        # An entry from ZipInfo is stored uncompressed and without a date.
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
            np.lib.format.write_array_header_1_0(entry, header)
            for part in chain([first], left):
                entry.write(rearrange(part, "b c h w -> b h w c").contiguous().cpu().numpy().tobytes())
                written += len(part)
        assert written == count, f"{written} images instead of {count}"
        for name, values in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
