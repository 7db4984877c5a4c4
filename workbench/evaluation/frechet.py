"""Frechet distance between two sets of features, in the two forms that stay stable for every sample count."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from threadpoolctl import threadpool_limits
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance (divisor n - 1) of `count` feature rows."""

    count: int
    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


@dataclass(frozen=True)
class Frechet:
    """value = mean_term + covariance_term, kept raw: rounding can leave about -1e-9 for equal sets."""

    value: float
    mean_term: float
    covariance_term: float


def finite_rows(features: Float[Tensor, "n d"]) -> Float64[np.ndarray, "n d"]:
    """The feature rows in float64 on the CPU. ValueError if there are fewer than two or one is not finite."""
    rows = features.detach().cpu().double().numpy()
    if len(rows) < 2:
        raise ValueError(f"got {len(rows)} feature rows; a spread needs at least 2")
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if broken.size:
        raise ValueError(f"row {broken[0]} of the features is not finite ({broken.size} of {len(rows)} rows are not)")
    return rows


def statistics(features: Float[Tensor, "n d"]) -> Statistics:
    """Mean and unbiased covariance of feature rows, in float64.

    ValueError if there are fewer than two rows or a row is not finite. Constant columns are allowed.
    """
    rows = finite_rows(features)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Statistics(len(rows), mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(x: Statistics, y: Statistics) -> Frechet:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson, Landau 1982; Heusel et al. 2017, Eq. 6).

    With S_x = r r^T the last trace is the sum of the roots of the eigenvalues of the symmetric r^T S_y r, so
    no complex root of a non-symmetric product is ever taken. Without full rank the rounding is about 1e-8 of
    the traces, so prefer `frechet_from_features` there. ValueError if the dimensions differ.
    """
    if len(x.mean) != len(y.mean):
        raise ValueError(f"the sets have {len(x.mean)} and {len(y.mean)} dimensions; both must come from one detector")
    # On few or busy cores LAPACK gets slower with more threads.
    with threadpool_limits(1):
        eigenvalues, vectors = np.linalg.eigh(x.covariance)
        root = vectors * np.sqrt(eigenvalues.clip(min=0))
        product = root.T @ y.covariance @ root
        cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return _frechet(x.mean - y.mean, np.trace(x.covariance) + np.trace(y.covariance), cross)


def frechet_from_features(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Frechet:
    """Frechet distance between two feature sets (Heusel et al. 2017, Eq. 6), in the form that suits them.

    With more rows than dimensions on both sides: `frechet_distance`. Otherwise tr (S_x S_y)^(1/2) is the
    nuclear norm of Xc Yc^T / sqrt((n-1)(m-1)) for the centred rows, exact for covariances without full rank.
    ValueError if a set has fewer than two rows or a row is not finite.
    """
    if min(len(x), len(y)) > x.shape[1]:
        return frechet_distance(statistics(x), statistics(y))
    first, second = finite_rows(x), finite_rows(y)
    shift = first.mean(axis=0) - second.mean(axis=0)
    first = (first - first.mean(axis=0)) / np.sqrt(len(first) - 1)
    second = (second - second.mean(axis=0)) / np.sqrt(len(second) - 1)
    with threadpool_limits(1):
        cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return _frechet(shift, np.square(first).sum() + np.square(second).sum(), cross)


def effective_rank(covariance: Float64[np.ndarray, "d d"]) -> float:
    """exp of the entropy of the eigenvalues divided by their sum (Roy and Vetterli 2007), on a covariance.

    Between 1 and d; 0 for a covariance of zeros, which has no direction at all.
    """
    with threadpool_limits(1):
        eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0)
    if eigenvalues.sum() == 0:
        return 0.0
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _frechet(shift: Float64[np.ndarray, " d"], traces: float, cross: float) -> Frechet:
    mean_term = float(shift @ shift)
    covariance_term = float(traces - 2 * cross)
    return Frechet(mean_term + covariance_term, mean_term, covariance_term)
