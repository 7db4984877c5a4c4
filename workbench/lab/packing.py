"""Arrays of a view as bytes, and features as 16-bit numbers with a scale."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int16

from workbench.lab.panes import Pane

_ALIGNMENT = 8  # typed arrays of a browser begin at multiples of their item's size


def quantise(
    values: Float[np.ndarray, "*shape"], kept: int, bits: int = 16
) -> tuple[Int16[np.ndarray, "*shape"], Float32[np.ndarray, "*kept"]]:
    """Values as int16 times a scale of their own for each place of the first `kept` dimensions.

    Errors are at most half a scale: with 16 bits 1/65534 of the largest value. Fewer bits take less room in a page.
    ValueError for what is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values are not all finite")
    largest = np.abs(values).max(axis=tuple(range(kept, values.ndim)), initial=0.0)
    most = 2 ** (bits - 1) - 1
    scale = np.maximum(largest / most, 1e-30).astype(np.float32)
    wide = scale.reshape(*scale.shape, *[1] * (values.ndim - kept)).astype(np.float64)
    return np.rint(values / wide).clip(-most, most).astype(np.int16), scale


def pack(panes: Sequence[Pane]) -> tuple[dict[str, dict[str, Any]], bytes]:
    """All arrays one after another, each at a multiple of 8 bytes, and where each stands: key "pane/name"."""
    places: dict[str, dict[str, Any]] = {}
    parts: list[bytes] = []
    offset = 0
    for number, pane in enumerate(panes):
        for name, array in pane.arrays.items():
            content = np.ascontiguousarray(array).tobytes()
            content += bytes(-len(content) % _ALIGNMENT)
            places[f"{number}/{name}"] = {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "offset": offset,
                "pane": number,
            }
            parts.append(content)
            offset += len(content)
    return places, b"".join(parts)


def unpack(places: dict[str, dict[str, Any]], data: bytes, pane: int) -> dict[str, np.ndarray]:
    """The arrays of one pane, read back."""
    return {
        key.split("/", 1)[1]: np.frombuffer(data, of["dtype"], math.prod(of["shape"]), of["offset"]).reshape(
            of["shape"]
        )
        for key, of in places.items()
        if of["pane"] == pane
    }
