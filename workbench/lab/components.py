"""What the colours of a token map are, in numpy: the same numbers as the browser's (js/components.js)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float64
from matplotlib import colormaps

_PERCENTILES = (2, 98)
_FEWEST = 4  # tokens of a foreground that components can be fitted to


@dataclass(frozen=True, eq=False)
class MapColumn:
    """Three scores of each token of every image, and the limits (low, high) of their colours by image.

    `share` is the variance they show: of the full features, or `of` the "subspace" or the "foreground". `outside` is
    what a refit cannot reach. `foreground` says which tokens are not black.
    """

    scores: Float64[np.ndarray, "n m 3"]
    limits: Float64[np.ndarray, "n 3 2"]
    share: float
    of: str | None = None
    outside: float | None = None
    foreground: Bool[np.ndarray, "n m"] | None = None


def map_column(
    arrays: Mapping[str, np.ndarray], at: tuple[int, int, int, int], w: float | int, basis: str, side: int
) -> MapColumn:
    """Scores at one place (source, step, t, layer) of f_g = f_u + w d (Eq. 3) in one of the `BASES`."""
    u, d = (arrays[name][at].astype(np.float64) * float(arrays[f"{name}_scale"][at]) for name in ("u", "d"))
    uu, ud, dd = arrays["total"][at].astype(np.float64)
    return BASES[basis](u + w * d, float(uu + 2 * w * ud + w * w * dd), side)


def map_pixels(column: MapColumn, component: int | None) -> Float64[np.ndarray, "n m 3"]:
    """Colours in 0..1: three components as red, green and blue, or one of them in viridis."""
    low, high = (rearrange(column.limits[..., end], "n c -> n 1 c") for end in (0, 1))
    values = ((column.scores - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    painted = values if component is None else colormaps["viridis"](values[..., component])[..., :3]
    return painted if column.foreground is None else painted * column.foreground[..., None]


def _fixed(rows: Float64[np.ndarray, "n m k"], total: float, side: int) -> MapColumn:
    scores = rows[..., :3]
    return MapColumn(scores, _joint_limits(scores), float(np.trace(_moments(_flat(scores))[1])) / total)


def _refit(rows: Float64[np.ndarray, "n m k"], total: float, side: int) -> MapColumn:
    """Components of f_g itself, turned by Procrustes onto the fixed ones so that colours keep their meaning."""
    mean, covariance = _moments(_flat(rows))
    values, vectors = _eigen(covariance)
    chosen = vectors[:, :3]
    left, _, right = np.linalg.svd(chosen.T @ covariance[:, :3])
    scores = (rows - mean) @ (chosen @ (left @ right))
    outside = max(0.0, 1 - float(np.trace(covariance)) / total)
    return MapColumn(scores, _joint_limits(scores), float(values[:3].sum()) / total, outside=outside)


def _per_map(rows: Float64[np.ndarray, "n m k"], total: float, side: int) -> MapColumn:
    """Each image its own components, from least to most: the style of the papers."""
    scores, shares = [], []
    for own in rows:
        mean, covariance = _moments(own)
        values, vectors = _eigen(covariance)
        scores.append((own - mean) @ _signed(vectors[:, :3]))
        shares.append(values[:3].sum() / values.sum())
    found = np.stack(scores)
    limits = np.stack([found.min(axis=1), found.max(axis=1)], axis=-1)
    return MapColumn(found, limits, float(np.mean(shares)), of="subspace")


def _foreground(rows: Float64[np.ndarray, "n m k"], total: float, side: int) -> MapColumn:
    """The two steps of DINOv2 (Oquab et al. 2023): the first component parts at 0, components of the foreground."""
    mean, covariance = _moments(_flat(rows))
    first = (rows - mean) @ _signed(_eigen(covariance)[1][:, :1])[:, 0]
    shown = _nearer_the_middle(first, side)
    scores, share = np.zeros((*shown.shape, 3)), 0.0
    if shown.sum() >= _FEWEST:
        mean, covariance = _moments(rows[shown])
        values, vectors = _eigen(covariance)
        scores = (rows - mean) @ _signed(vectors[:, :3])
        share = float(values[:3].sum() / values.sum())
    limits = _joint_limits(scores, shown)
    return MapColumn(scores * shown[..., None], limits, share, of="foreground", foreground=shown)


BASES: dict[str, Callable[..., MapColumn]] = {
    "fixed": _fixed,
    "refit": _refit,
    "per map": _per_map,
    "foreground": _foreground,
}


def _nearer_the_middle(first: Float64[np.ndarray, "n m"], side: int) -> Bool[np.ndarray, "n m"]:
    """The side of 0 whose mean distance to the middle of the grid is smaller; of equals the fewer, then the upper."""
    places = np.arange(side) - (side - 1) / 2
    distance = np.broadcast_to(np.hypot(places[:, None], places[None, :]).ravel(), first.shape)

    def order(part: Any) -> tuple[float, int]:
        return (round(float(distance[part].mean()), 9) if part.any() else np.inf, int(part.sum()))

    return min((first > 0, first < 0), key=order)


def _joint_limits(scores: Float64[np.ndarray, "n m 3"], shown: Any = None) -> Float64[np.ndarray, "n 3 2"]:
    rows = _flat(scores) if shown is None else scores[shown]
    joint = np.percentile(rows, _PERCENTILES, axis=0).T if len(rows) else np.zeros((3, 2))
    return np.repeat(joint[None], len(scores), axis=0)


def _flat(scores: Float64[np.ndarray, "n m c"]) -> Float64[np.ndarray, "r c"]:
    return rearrange(scores, "n m c -> (n m) c")


def _moments(rows: Float64[np.ndarray, "r k"]) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def _eigen(covariance: Float64[np.ndarray, "k k"]) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1], vectors[:, ::-1]


def _signed(directions: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "k c"]:
    """The loading of largest size of each direction is positive, since a direction and its opposite are the same."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return directions * np.sign(largest)
