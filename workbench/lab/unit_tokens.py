"""Tokens in few bytes, from which cosine similarities follow at any w; js/similarity.js computes them alike.

Cosines do not depend on lengths. Up to its length, f_g = f_u + w d (Eq. 3) is u + w r s, where u = f_u / |f_u| and
s = d / |d| are unit vectors and r = |d| / |f_u|. Each (source, step, t, layer) has an orthonormal basis of its own: the
principal directions of u and s about zero. Coordinates of unit vectors are in -1..1 and are stored as multiples of
1/127, which changes a cosine by 0.003 (root mean square), and compress well: most of them are small.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Float64, Int8

from workbench.features.similarity import Token, token_similarity
from workbench.lab.snippets import PACKED, deflated
from workbench.lab.sources import Source

ARRAYS = {
    "unit_u?": ("int8", "directions source step t layer n m"),
    "unit_d?": ("int8", "directions source step t layer n m"),
    "ratio?": ("float32", "source step t layer n m"),
    # Sums over tokens of |f_u|^2, f_u . d and |d|^2, then the same of what the stored coordinates leave out.
    "lengths?": ("float32", "source step t layer 6"),
}
_STEPS = 127
_FEWEST = 8  # directions, of wider features
_SMALLEST = 0.1  # bytes per coordinate, at the least, after compression


def unit_tokens(
    sources: Sequence[Source],
    steps: int,
    times: Sequence[float],
    layers: Sequence[int],
    room: float | int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """The arrays of `ARRAYS`: as many directions as fit into `room` bytes of a page; {} if these are too few."""
    widths = [source.read(0, times[0], layers[0])[0].shape[2] for source in sources]
    n, m, _ = sources[0].read(0, times[0], layers[0])[0].shape
    cells = (len(sources), steps, len(times), len(layers))
    room = room - 4 * PACKED * int(np.prod(cells)) * (n * m + 6)  # ratios and lengths
    one = 2 * int(np.prod(cells)) * n * m  # bytes of a direction
    most = min(max(widths), int(room / (one * _SMALLEST * PACKED)))
    if most < min(_FEWEST, max(widths)):
        return {}
    units = np.zeros((2, most, *cells, n, m), dtype=np.int8)
    ratio, moments = np.zeros((*cells, n, m), np.float32), np.zeros((*cells, most + 1, 6))
    for number, at in enumerate(np.ndindex(cells)):
        s, e, t, layer = at
        if layer > 0 and not sources[s].layered:  # the same at each layer
            same = (s, e, t, 0)
            units[:, :, *at], ratio[at], moments[at] = units[:, :, *same], ratio[same], moments[same]
        else:
            f_u, f_c = (of.flatten(0, 1).float().numpy() for of in sources[s].read(e, times[t], layers[layer]))
            stored, ratios, moments[at] = _cell(f_u, f_c - f_u, most)
            units[:, :, *at], ratio[at] = stored.reshape(2, most, n, m), ratios.reshape(n, m)
        progress(number + 1, int(np.prod(cells)))
    count = _directions_that_fit(units, room)
    if count < min(_FEWEST, max(widths)):
        return {}
    unit_u, unit_d = (np.ascontiguousarray(part[:count]) for part in units)
    lengths = moments[..., count, :].astype(np.float32)
    return {"unit_u": unit_u, "unit_d": unit_d, "ratio": ratio, "lengths": lengths}


def stored_tokens(
    arrays: Mapping[str, np.ndarray], at: tuple[int, int, int, int], w: float | int
) -> Float64[np.ndarray, "n m k"]:
    """f_g / |f_u| of all tokens at `at` = (source, step, t, layer), in the stored directions."""
    u, d = (arrays[name][:, *at].astype(np.float64) / _STEPS for name in ("unit_u", "unit_d"))
    return rearrange(u + w * arrays["ratio"][at].astype(np.float64) * d, "k n m -> n m k")


def stored_similarity(
    arrays: Mapping[str, np.ndarray],
    at: tuple[int, int, int, int],
    w: float | int,
    tokens: Sequence[Token],
    several: str,
) -> Float64[np.ndarray, "n m"]:
    """Cosine similarity of f_g of every token to chosen ones, from the stored coordinates."""
    return token_similarity(stored_tokens(arrays, at, w), tokens, several)


def left_out(arrays: Mapping[str, np.ndarray], at: tuple[int, int, int, int], w: float | int) -> float:
    """Share of |f_g|^2, summed over tokens, that the stored coordinates leave out; exact at any w."""
    whole, out = (float(a + 2 * w * b + w * w * c) for a, b, c in arrays["lengths"][at].reshape(2, 3).tolist())
    return max(0.0, out / whole) if whole > 0 else 0.0


def _cell(
    f_u: Float32[np.ndarray, "r d"], d: Float32[np.ndarray, "r d"], most: int
) -> tuple[Int8[np.ndarray, "2 k r"], Float32[np.ndarray, " r"], Float64[np.ndarray, "kept 6"]]:
    """Stored coordinates, |d| / |f_u|, and the six sums of `lengths` for each number of directions, 0 to `most`."""
    lengths = [np.linalg.norm(of, axis=1, keepdims=True) for of in (f_u, d)]
    u, s = (np.divide(of, by, out=np.zeros_like(of), where=by > 0) for of, by in zip((f_u, d), lengths, strict=True))
    covariance = torch.from_numpy((u.T @ u + s.T @ s).astype(np.float64))
    basis = torch.linalg.eigh(covariance)[1].flip(1).numpy().astype(np.float32)
    count = min(most, basis.shape[1])
    stored = np.zeros((2, most, len(f_u)), dtype=np.int8)
    exact, wrong = [], []  # with their lengths: of all directions, and what rounding leaves out of the stored ones
    for part, (unit, length) in enumerate(zip((u, s), lengths, strict=True)):
        coordinates = unit @ basis
        rounded = np.rint(_STEPS * coordinates[:, :count])
        stored[part, :count] = rounded.T
        exact.append(coordinates * length)
        wrong.append((coordinates[:, :count] - rounded / _STEPS) * length)
    inside, outside = _sums(*wrong), _sums(*exact)
    kept = np.arange(most + 1).clip(max=count)
    left = inside[kept] + outside[-1] - outside[kept]
    smallest = 1e-6 * float(lengths[0].mean())
    ratio = lengths[1] / np.maximum(lengths[0], smallest if smallest > 0 else 1.0)
    return stored, ratio[:, 0], np.concatenate([np.broadcast_to(outside[-1], left.shape), left], axis=1)


def _sums(u: Float32[np.ndarray, "r k"], d: Float32[np.ndarray, "r k"]) -> Float64[np.ndarray, "kept 3"]:
    """Sums of u^2, u d and d^2 over rows and the first 0 to k columns."""
    each = np.stack([np.einsum("rk,rk->k", a, b, dtype=np.float64) for a, b in ((u, u), (u, d), (d, d))], axis=1)
    return np.concatenate([np.zeros((1, 3)), np.cumsum(each, axis=0)])


def _directions_that_fit(units: Int8[np.ndarray, "..."], room: float | int) -> int:
    """Number of directions whose compressed coordinates, as text, are at most `room` bytes."""
    size = 0.0
    for count in range(units.shape[1]):
        size += PACKED * sum(deflated(part[count]) for part in units)
        if size > room:
            return count
    return units.shape[1]
