"""Pack the arrays of a view into bytes, and quantise features to 16 bits."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int16

from workbench.lab.panes import Pane

_ALIGNMENT = 8  # in a browser, the offset of a typed array must be a multiple of its item size


def quantise(
    values: Float[np.ndarray, "*shape"], kept: int, bits: int = 16
) -> tuple[Int16[np.ndarray, "*shape"], Float32[np.ndarray, "*kept"]]:
    """Quantise to int16, with one scale for each index of the first `kept` dimensions: values are about int16 x scale.

    The error is at most half a scale: with 16 bits, 1/65534 of the largest value. Fewer bits compress better.
    ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values are not all finite")
    largest = np.abs(values).max(axis=tuple(range(kept, values.ndim)), initial=0.0)
    most = 2 ** (bits - 1) - 1
    scale = np.maximum(largest / most, 1e-30).astype(np.float32)
    wide = scale.reshape(*scale.shape, *[1] * (values.ndim - kept)).astype(np.float64)
    return np.rint(values / wide).clip(-most, most).astype(np.int16), scale


def pack(panes: Sequence[Pane]) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Concatenate all arrays, each aligned to 8 bytes; returns type, shape and offset by "pane/name", and the bytes."""
    layout: dict[str, dict[str, Any]] = {}
    parts: list[bytes] = []
    offset = 0
    for number, pane in enumerate(panes):
        for name, array in pane.arrays.items():
            content = np.ascontiguousarray(array).tobytes()
            content += bytes(-len(content) % _ALIGNMENT)
            layout[f"{number}/{name}"] = {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "offset": offset,
                "pane": number,
            }
            parts.append(content)
            offset += len(content)
    return layout, b"".join(parts)


def unpack(layout: dict[str, dict[str, Any]], data: bytes, pane: int) -> dict[str, np.ndarray]:
    """The arrays of one pane, from what `pack` returned."""
    return {
        key.split("/", 1)[1]: np.frombuffer(data, of["dtype"], math.prod(of["shape"]), of["offset"]).reshape(
            of["shape"]
        )
        for key, of in layout.items()
        if of["pane"] == pane
    }
