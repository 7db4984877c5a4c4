"""Files of images and of reference moments in the layout of ADM's evaluator (openai/guided-diffusion, evaluations/).

`arr_0` holds the images, uint8 n x height x width x channels; `mu`, `sigma` are moments of pooled features, `mu_s`,
`sigma_s` of spatial ones. Nothing pickled is ever loaded.
"""

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from workbench.evaluation.frechet import Statistics
from workbench.files import replacing

_ROWS = 500  # images written at once
_ASYMMETRY = 1e-6  # of the largest entry: sums in another order, stored as float32, differ by less
_NOT_READABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError)


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images of a file, on disk until they are asked for where the file is not compressed."""

    rows: UInt8[np.ndarray, "n x y c"]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images in order, `size` at a time."""
        for start in range(0, len(self), size):
            chunk = rearrange(self.rows[start : start + size], "b x y c -> b c x y")
            # Strides choose the kernels of a detector, and a permuted array of one channel would count as contiguous.
            images = torch.empty(chunk.shape, dtype=torch.uint8)
            images.numpy()[:] = chunk
            yield images

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """All of them in memory."""
        return next(self.batches(len(self)))


@dataclass(frozen=True, eq=False)
class SampleFile(StoredImages):
    """Generated images of a file, with the classes asked for if it tells them.

    `statistics` and `spatial` are moments that the file itself holds: ADM's evaluator takes those, not the images',
    for FID and sFID. `content` is the SHA-256 of the file.
    """

    labels: Int[Tensor, " n"] | None
    statistics: Statistics | None
    spatial: Statistics | None
    content: str


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """Real images of a file, for precision and recall, and moments of a set that may be larger, for FID and sFID.

    `about` is how it was made, where this program made it; only then the moments know their count. `content` is the
    SHA-256 of the file.
    """

    images: StoredImages | None
    statistics: Statistics | None
    spatial: Statistics | None
    about: dict[str, Any] | None
    content: str


def read_samples(file: Path) -> SampleFile:
    """The images of an .npz (`arr_0`, and labels in `labels` or `arr_1`) or of a plain .npy.

    Uncompressed images stay on disk, after a check that they are undamaged. ValueError for a file that is missing,
    damaged or neither, pickles, images that are not uint8 n x h x w x 1 or 3, and labels that do not fit them.
    """
    if _magic(file).startswith(b"\x93NUMPY"):
        with _told(file, "its array"):
            rows = np.load(file, mmap_mode="r", allow_pickle=False)
        return SampleFile(_checked(rows, file), None, None, None, _content(file))
    with _opened(file) as arrays:
        if "arr_0" not in arrays:
            raise ValueError(f"{file} holds {', '.join(arrays.files) or 'nothing'}; wanted is arr_0, the images")
        rows = _checked(_member(arrays, "arr_0", file), file)
        names = [name for name in ("labels", "arr_1") if name in arrays]
        labels = _labels(_array(arrays, names[0], file), names[0], len(rows), file) if names else None
        moments = _moments(arrays, "mu", "sigma", None, file), _moments(arrays, "mu_s", "sigma_s", None, file)
    return SampleFile(rows, labels, *moments, _content(file))


def write_samples(file: Path, images: UInt8[Tensor, "n c h w"], labels: Integer[Tensor, " n"] | None = None) -> None:
    """Images as `arr_0`, which ADM's evaluator reads, and labels as int64 `labels`; atomic, uncompressed.

    The images are copied a few at a time. The same arrays make the same bytes. ValueError if there are no images, or
    not of 1 or 3 channels.
    """
    _write(file, images, {} if labels is None else {"labels": labels.cpu().numpy().astype(np.int64)})


def read_reference(file: Path) -> ReferenceFile:
    """An .npz with images (`arr_0`), moments (`mu`, `sigma`, perhaps `mu_s`, `sigma_s`) or both, as ADM publishes them.

    ValueError as `read_samples`, for neither, half a pair of moments, shapes that do not fit, a moment that is not
    finite or a covariance that is not symmetric, each by name.
    """
    with _opened(file) as arrays:
        if not {"arr_0", "mu", "sigma"} & {*arrays.files}:
            raise ValueError(f"{file} holds {', '.join(arrays.files) or 'nothing'}; wanted are arr_0, mu and sigma")
        rows = _checked(_member(arrays, "arr_0", file), file) if "arr_0" in arrays else None
        about = _about(_array(arrays, "about", file), file) if "about" in arrays else None
        count = about.get("count") if about else None
        moments = _moments(arrays, "mu", "sigma", count, file), _moments(arrays, "mu_s", "sigma_s", count, file)
    return ReferenceFile(None if rows is None else StoredImages(rows), *moments, about, _content(file))


def write_reference(
    file: Path,
    images: UInt8[Tensor, "n c h w"],
    pooled: Statistics,
    spatial: Statistics | None,
    about: Mapping[str, Any],
) -> None:
    """The reference file of ADM's evaluator: `arr_0`, `mu`, `sigma`, `mu_s`, `sigma_s`, and `about` as JSON; atomic.

    Without `spatial`, of a detector that has no such features, the last pair is left out. The moments' count goes into
    `about`. ValueError as `write_samples`, and for moments of different counts.
    """
    if spatial is not None and spatial.count != pooled.count:
        raise ValueError(f"the moments are of {pooled.count} and {spatial.count} images; they must be of the same")
    moments = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        moments |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    _write(file, images, {**moments, "about": np.array(json.dumps({**about, "count": pooled.count}))})


def _magic(file: Path) -> bytes:
    if file.is_dir():
        raise ValueError(f"{file} is a folder; allowed are .npz and .npy files")
    try:
        with file.open("rb") as opened:
            return opened.read(6)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    magic = _magic(file)
    if not magic.startswith(b"PK"):
        raise ValueError(f"{file} is {'no .npz file' if magic else 'empty'}: it does not begin as a zip archive does")
    try:
        arrays = np.load(file, allow_pickle=False)
    except _NOT_READABLE as error:
        raise ValueError(f"{file} is damaged or cut short: {error}") from error
    with arrays:
        yield arrays


@contextmanager
def _told(file: Path, name: str) -> Iterator[None]:
    """What goes wrong in reading an array, as a ValueError that names it."""
    try:
        yield
    except _NOT_READABLE as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(f"{file}: {name} holds Python objects, which are not loaded: save numbers") from error
        raise ValueError(f"{file} is damaged: {name} cannot be read ({error})") from error


def _array(arrays: np.lib.npyio.NpzFile, name: str, file: Path) -> np.ndarray:
    with _told(file, name):
        return arrays[name]


def _member(arrays: np.lib.npyio.NpzFile, name: str, file: Path) -> np.ndarray:
    """An array of the archive: mapped from disk where it lies there as it is, else loaded."""
    with _told(file, name):
        entry = arrays.zip.getinfo(f"{name}.npy")
        with arrays.zip.open(entry) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                return arrays[name]
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            start, size = stream.tell(), math.prod(shape) * dtype.itemsize
            if entry.compress_type or dtype.hasobject or not size or entry.file_size != start + size:
                return arrays[name]
            while stream.read(2**20):  # at the end the checksum is compared, which a mapped file never is
                pass
        with file.open("rb") as opened:
            opened.seek(entry.header_offset + 26)  # the entry's own header; the directory's extra field may differ
            lengths = np.frombuffer(opened.read(4), "<u2").tolist()  # of its name and extra field
        return np.memmap(file, dtype, "r", entry.header_offset + 30 + sum(lengths) + start, shape, "CF"[fortran])


def _checked(rows: np.ndarray, file: Path) -> UInt8[np.ndarray, "n x y c"]:
    shape = " x ".join(map(str, rows.shape))
    if rows.dtype != np.uint8:
        how = "to whole numbers first: from 0..1 by (255 * x).round(), from -1..1 by (127.5 * x + 127.5).round()"
        raise ValueError(f"{file}: arr_0 is {rows.dtype}; allowed is uint8, 0..255: convert floats {how}")
    if rows.ndim != 4 or rows.shape[3] not in (1, 3):
        turned = rows.ndim == 4 and rows.shape[1] in (1, 3)
        how = ": it is n x channels x height x width, turn it by arr.transpose(0, 2, 3, 1)" if turned else ""
        raise ValueError(f"{file}: arr_0 is {shape}; allowed is n x height x width x 1 or 3 channels{how}")
    if 0 in rows.shape:
        raise ValueError(f"{file}: arr_0 is {shape}, which holds no images")
    return rows


def _labels(values: np.ndarray, name: str, count: int, file: Path) -> Int[Tensor, " n"]:
    if values.dtype.kind not in "iu" or values.shape != (count,):
        raise ValueError(f"{file}: {name} is {values.dtype} of shape {values.shape}; wanted are {count} whole numbers")
    return torch.from_numpy(values.astype(np.int64))


def _moments(
    arrays: np.lib.npyio.NpzFile, mean: str, covariance: str, count: int | None, file: Path
) -> Statistics | None:
    there = [name for name in (mean, covariance) if name in arrays]
    if not there:
        return None
    if len(there) == 1:
        raise ValueError(f"{file} holds {there[0]} alone of {mean} and {covariance}; wanted are both or neither")
    found = {name: _array(arrays, name, file) for name in there}
    for name, values in found.items():
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{file}: {name} is {values.dtype}; allowed are real numbers")
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ValueError(f"{file}: {name}{place} is {values[tuple(place)]}; moments must be finite")
    mu, sigma = (values.astype(np.float64) for values in found.values())
    if mu.ndim != 1 or not mu.size or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{file}: {mean} is of shape {mu.shape}, {covariance} of {sigma.shape}; wanted are d and d x d"
        )
    gap = np.abs(sigma - sigma.T)
    if gap.max() > _ASYMMETRY * np.abs(sigma).max():
        i, j = map(int, np.unravel_index(gap.argmax(), gap.shape))
        raise ValueError(
            f"{file}: {covariance} is not symmetric: {covariance}[{i}, {j}] is {sigma[i, j]}, [{j}, {i}] {sigma[j, i]}"
        )
    return Statistics(count, mu, sigma)


def _about(value: np.ndarray, file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(str(value)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: about is no mapping in JSON: {error}") from error


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(file: Path, images: UInt8[Tensor, "n c h w"], others: Mapping[str, np.ndarray]) -> None:
    count, channels, height, width = images.shape
    if channels not in (1, 3) or 0 in images.shape:
        raise ValueError(f"got images of shape {tuple(images.shape)}; allowed are one or more of 1 or 3 channels")
    with replacing(file) as out, zipfile.ZipFile(out, "w") as archive:
        # An entry from ZipInfo is stored uncompressed and bears no date.
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
            np.lib.format.write_array_header_1_0(entry, header)
            for part in images.split(_ROWS):
                entry.write(rearrange(part, "b c h w -> b h w c").contiguous().cpu().numpy().tobytes())
        for name, values in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)
