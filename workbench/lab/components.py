"""Colours of a token map at one (source, step, t, layer) and w, as js/components.js computes them in the browser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float64

from workbench.features.colours import component_limits, nearer_the_middle, token_colours
from workbench.features.directions import largest_signs, nearest_rotation

_FEWEST = 4  # tokens of a foreground that components can be fitted to


@dataclass(frozen=True, eq=False)
class MapColumn:
    """Three scores of each token of every image, and their colour limits (low, high), for all images or for each.

    `shares` are the shares of variance that each shows: of the full features, or `of` the "subspace" or "foreground".
    `outside` is the share outside the subspace of a refit. Tokens outside the `foreground` are black.
    """

    scores: Float64[np.ndarray, "n m 3"]
    limits: Float64[np.ndarray, "*each 2 3"]
    shares: tuple[float, ...]
    of: str | None = None
    outside: float | None = None
    foreground: Bool[np.ndarray, "n m"] | None = None

    def share(self, component: int | None) -> float:
        """The share of a component, or with None of all three."""
        return sum(self.shares) if component is None else self.shares[component]


def map_column(
    arrays: Mapping[str, np.ndarray], at: tuple[int, int, int, int], w: float | int, basis: str
) -> MapColumn:
    """Scores of f_g = f_u + w d (Eq. 3) at `at` = (source, step, t, layer), in one of the `BASES`."""
    u, d = (arrays[name][at].astype(np.float64) * float(arrays[f"{name}_scale"][at]) for name in ("u", "d"))
    uu, ud, dd = arrays["total"][at].astype(np.float64)
    return BASES[basis](u + w * d, float(uu + 2 * w * ud + w * w * dd))


def map_pixels(column: MapColumn, component: int | None) -> Float64[np.ndarray, "n m 3"]:
    """Colours in 0..1: three components as red, green and blue, or one of them in viridis."""
    shown = slice(None) if component is None else slice(component, component + 1)
    painted = token_colours(column.scores[..., shown], column.limits[..., shown])
    return painted if column.foreground is None else painted * column.foreground[..., None]


def _fixed(rows: Float64[np.ndarray, "n m k"], total: float) -> MapColumn:
    scores = rows[..., :3]
    return MapColumn(scores, component_limits(_flat(scores)), _variances(_flat(scores), total))


def _refit(rows: Float64[np.ndarray, "n m k"], total: float) -> MapColumn:
    """Components of f_g itself, Procrustes-aligned with the fixed ones so that colours keep their meaning."""
    mean, covariance = _moments(_flat(rows))
    chosen = _eigen(covariance)[1][:, :3]
    rotation = nearest_rotation(torch.from_numpy(chosen.T @ covariance[:, :3])).numpy()
    scores = (rows - mean) @ (chosen @ rotation)
    outside = max(0.0, 1 - float(np.trace(covariance)) / total)
    return MapColumn(scores, component_limits(_flat(scores)), _variances(_flat(scores), total), outside=outside)


def _per_map(rows: Float64[np.ndarray, "n m k"], total: float) -> MapColumn:
    """Separate components for each image, with its extremes as limits: the style of the papers."""
    scores, shares = [], []
    for own in rows:
        mean, covariance = _moments(own)
        values, vectors = _eigen(covariance)
        scores.append((own - mean) @ _signed(vectors[:, :3]))
        shares.append(values[:3] / values.sum())
    stacked = np.stack(scores)
    return MapColumn(stacked, component_limits(stacked, "minmax"), _plain(np.mean(shares, axis=0)), of="subspace")


def _foreground(rows: Float64[np.ndarray, "n m k"], total: float) -> MapColumn:
    """As DINOv2 (Oquab et al. 2023): the first component splits the tokens at 0, others are fitted to one side."""
    mean, covariance = _moments(_flat(rows))
    first = (rows - mean) @ _signed(_eigen(covariance)[1][:, :1])[:, 0]
    shown = nearer_the_middle(first)
    scores, limits = np.zeros((*shown.shape, 3)), np.zeros((2, 3))
    shares: tuple[float, ...] = (0.0, 0.0, 0.0)
    if shown.sum() >= _FEWEST:
        mean, covariance = _moments(rows[shown])
        values, vectors = _eigen(covariance)
        scores = (rows - mean) @ _signed(vectors[:, :3])
        limits, shares = component_limits(scores[shown]), _plain(values[:3] / values.sum())
    return MapColumn(scores * shown[..., None], limits, shares, of="foreground", foreground=shown)


BASES: dict[str, Callable[..., MapColumn]] = {
    "fixed": _fixed,
    "refit": _refit,
    "per map": _per_map,
    "foreground": _foreground,
}


def _variances(scores: Float64[np.ndarray, "r 3"], total: float) -> tuple[float, ...]:
    """Variance of each component as a share of `total`."""
    return _plain(scores.var(axis=0) / total)


def _plain(values: Float64[np.ndarray, " c"]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _flat(scores: Float64[np.ndarray, "n m c"]) -> Float64[np.ndarray, "r c"]:
    return rearrange(scores, "n m c -> (n m) c")


def _moments(rows: Float64[np.ndarray, "r k"]) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def _eigen(covariance: Float64[np.ndarray, "k k"]) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1].copy(), vectors[:, ::-1].copy()


def _signed(directions: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "k c"]:
    """The directions with signs that make the largest loading of each positive."""
    return directions * largest_signs(torch.from_numpy(directions)).numpy()
