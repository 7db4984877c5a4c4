"""The newest samples of a run as one small picture, without reading the whole file."""

import base64
import io
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from numpy.lib import format as npy
from PIL import Image

from workbench.runs.store import Run

COUNT = 10
_SIDE = 64  # pixels at most
_LARGEST = 100_000_000  # bytes of ten images
_STEP = re.compile("step-[0-9]{8}")


def newest_samples(run: Run) -> dict[str, Any] | None:
    """The first ten samples of the newest step that has any: step, class names, count, PNG; None without samples."""
    stored = [file for file in (run.folder / "samples").glob("step-*.npz") if _STEP.match(file.name)]
    files = sorted(stored, key=lambda file: (file.name[:13], file.stat().st_mtime))
    if not files:
        return None
    images, labels = first_rows(files[-1], "arr_0", COUNT), first_rows(files[-1], "labels", COUNT)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"{files[-1]} has no images in arr_0, but {images.dtype} of shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"{files[-1]} has no labels, but {labels.dtype} of shape {labels.shape}")
    names = (run.provenance.get("latents") or {}).get("classes", [])
    known = labels.min(initial=0) >= 0 and labels.max(initial=0) < len(names)
    return {
        "step": int(files[-1].name.removeprefix("step-")[:8]),
        "names": [str(names[label]) for label in labels] if known else [str(label) for label in labels],
        "count": len(images),
        "png": png_strip(images),
    }


def first_rows(file: Path, name: str, count: int) -> np.ndarray:
    """The first `count` rows of an array in an .npz, without unpacking the rest; ValueError for a damaged file."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stored:
            version = npy.read_magic(stored)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(stored)
            if fortran or dtype.hasobject:
                raise ValueError("its rows are not stored one after another")
            shape = (min(count, *shape[:1]), *shape[1:])
            size = math.prod(shape) * dtype.itemsize
            if not shape or size > _LARGEST:
                raise ValueError(f"its first rows, of shape {shape}, would take {size:,} of {_LARGEST:,} bytes")
            return np.frombuffer(stored.read(size), dtype).reshape(shape)
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def png_strip(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """The images side by side, at most 64 pixels each, as a PNG in base64."""
    small = [_shrunk(image) for image in images]
    strip = rearrange(np.stack(small), "n h w c -> h (n w) c")
    buffer = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _shrunk(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "s t c"]:
    height, width, channels = image.shape
    if max(height, width) <= _SIDE:
        return image
    size = (max(1, _SIDE * width // max(height, width)), max(1, _SIDE * height // max(height, width)))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image).resize(size, Image.Resampling.BOX)
    return np.asarray(picture).reshape(size[1], size[0], channels)
