"""Frechet distance between two sets of features, in two forms that are numerically stable for any sample count.

Mean and covariance are computed from all features (`statistics`) or batch by batch (`Moments`).
"""

from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.diffusion.devices import one_core


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance (divisor n - 1) of `count` feature rows; count is None if unknown."""

    count: int | None
    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


@dataclass(frozen=True)
class Frechet:
    """value = mean_term + covariance_term, not clipped: rounding can give about -1e-9 for equal sets.

    x_rank, y_rank: effective ranks of the covariances. n, m, d: rows of x, rows of y, dimensions.
    small: a set has fewer rows than twice its dimensions, which favours sets of little variance.
    identical: both sets have the same rows in any order, or the same stored moments.
    """

    value: float
    mean_term: float
    covariance_term: float
    x_rank: float
    y_rank: float
    n: int | None
    m: int | None
    d: int
    small: bool
    identical: bool

    @property
    def terms(self) -> dict[str, float | int | bool]:
        """The terms that are stored with a distance."""
        return {key: getattr(self, key) for key in ("mean_term", "covariance_term", "small", "d")}


@dataclass(frozen=True)
class ExtrapolatedFrechet:
    """Line value = intercept + slope / size through Frechet distances of `sizes` rows.

    residual: standard deviation of the values about the line (divisor: points - 2).
    """

    intercept: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def finite_rows(features: Float[Tensor, "n d"], *, least: int = 2, before: int = 0) -> Float64[np.ndarray, "n d"]:
    """The feature rows in float64 on the CPU.

    Raises ValueError if there are fewer than `least`, or one is not finite; rows are numbered from `before`.
    """
    rows = features.detach().cpu().double().numpy()
    if len(rows) < least:
        raise ValueError(f"got {len(rows)} feature rows; a covariance needs at least {least}")
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if broken.size:
        row, count = before + broken[0], f"{broken.size} of {len(rows)} rows are not"
        raise ValueError(f"row {row} of the features is not finite ({count})")
    return rows


def spatial_rows(maps: Float[Tensor, "b c h w"], channels: int = 7) -> Float[Tensor, "b d"]:
    """Rows for the spatial Frechet distance (sFID, Nash et al. 2021): the first channels, flattened channel-last.

    The order is that of the moments in ADM's files (`mu_s`, `sigma_s`). Raises ValueError if there are fewer channels.
    """
    if maps.shape[1] < channels:
        raise ValueError(f"got maps of {maps.shape[1]} channels; the spatial rows need {channels}")
    return rearrange(maps[:, :channels], "b c h w -> b (h w c)")


def statistics(features: Float[Tensor, "n d"]) -> Statistics:
    """Mean and unbiased covariance of feature rows, in float64.

    Raises ValueError if there are fewer than two rows or a row is not finite. Constant columns are allowed.
    """
    return _statistics(finite_rows(features))


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of the centred rows) of the rows seen so far, in float64.

    Start with `Moments.none(d)`, `add` batches, `merge` the parts of several processes, and read `statistics`.
    Centred products are summed, so that features far from zero lose no digits. A step needs about four d x d arrays
    (32 MiB each at d = 2048) and float64 copies of the batch.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def none(cls, dimensions: int) -> "Moments":
        """Moments of no rows."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    def add(self, features: Float[Tensor, "b d"]) -> "Moments":
        """Moments of the rows seen so far and a batch.

        Raises ValueError if the batch is empty, its width differs, or a row (numbered over all batches) is not finite.
        """
        rows = finite_rows(features, least=1, before=self.count)
        mean = rows.mean(axis=0)
        centred = rows - mean
        return self.merge(Moments(len(rows), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union of both sets (Chan, Golub and LeVeque 1979); ValueError if the widths differ."""
        if len(self.mean) != len(other.mean):
            raise ValueError(f"the parts have {len(self.mean)} and {len(other.mean)} dimensions; they must be the same")
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        between = np.outer(shift * (self.count * other.count / count), shift)
        return Moments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)

    def statistics(self) -> Statistics:
        """Mean and covariance with divisor n - 1, for `frechet_distance`; ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"got {self.count} feature rows; a covariance needs at least 2")
        return Statistics(self.count, self.mean, self.scatter / (self.count - 1))


def frechet_distance(x: Statistics, y: Statistics, *, small_ok: bool = False) -> Frechet:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson, Landau 1982; Heusel et al. 2017, Eq. 6).

    With S_x = r r^T the last trace is the sum of the square roots of the eigenvalues of the symmetric r^T S_y r, which
    avoids the complex root of a non-symmetric product. If a set has no more rows than dimensions, the rounding error is
    about 1e-8 of the traces and `frechet_from_features` is more accurate. Raises ValueError if the dimensions differ,
    or if a set has fewer rows than twice its dimensions and small_ok is not given.
    """
    small = _small(x.count, y.count, len(x.mean), len(y.mean), small_ok)
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    # LAPACK is slower with several threads if there are few or busy cores.
    with one_core():
        cross = _cross(x.covariance, y.covariance)
    ranks = (effective_rank(x.covariance), effective_rank(y.covariance))
    identical = np.array_equal(x.mean, y.mean) and np.array_equal(x.covariance, y.covariance)
    return _frechet(x.mean - y.mean, traces, cross, ranks, (x.count, y.count), small, identical)


def frechet_from_features(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, small_ok: bool = False) -> Frechet:
    """Frechet distance between two feature sets (Heusel et al. 2017, Eq. 6), in the more accurate form.

    If both sets have more rows than dimensions, it is that of `frechet_distance`. Otherwise tr (S_x S_y)^(1/2) is the
    nuclear norm of Xc Yc^T / sqrt((n-1)(m-1)) for the centred rows, which is exact for covariances without full rank.
    Raises ValueError if a set has fewer than two rows, a row is not finite, the dimensions differ, or a set has fewer
    rows than twice its dimensions and small_ok is not given.
    """
    first, second = finite_rows(x), finite_rows(y)
    small = _small(len(first), len(second), first.shape[1], second.shape[1], small_ok)
    identical = _same_rows(first, second)
    if min(len(first), len(second)) > first.shape[1]:
        moments = _statistics(first), _statistics(second)
        return replace(frechet_distance(*moments, small_ok=small_ok), identical=identical)
    shift = first.mean(axis=0) - second.mean(axis=0)
    first = (first - first.mean(axis=0)) / np.sqrt(len(first) - 1)
    second = (second - second.mean(axis=0)) / np.sqrt(len(second) - 1)
    with one_core():
        cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    traces = np.square(first).sum() + np.square(second).sum()
    # The smaller of rows^T rows and rows rows^T, which have the same non-zero eigenvalues.
    x_rank, y_rank = (effective_rank(a.T @ a if len(a) > a.shape[1] else a @ a.T) for a in (first, second))
    return _frechet(shift, traces, cross, (x_rank, y_rank), (len(first), len(second)), small, identical)


def extrapolated_frechet(
    x: Float[Tensor, "n d"],
    y: Statistics,
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int,
    small_ok: bool = False,
) -> ExtrapolatedFrechet:
    """Frechet distance extrapolated to infinitely many rows of x (FID-infinity, Chong and Forsyth 2020).

    Distances from y are computed for `points` random subsets of x, drawn by np.random.default_rng(seed) without
    replacement, with sizes evenly spaced from `smallest` (default n // 10, as in the paper: 5,000 of 50,000) to n. The
    result is the value at 1 / size = 0 of a line fitted by least squares; the bias due to the size of y remains. Raises
    ValueError if points < 3, the sizes are not distinct, `smallest` is below 2 d and small_ok is not given, or as
    `frechet_from_features`.
    """
    rows = finite_rows(x)
    smallest = len(rows) // 10 if smallest is None else smallest
    sizes = np.linspace(smallest, len(rows), points).astype(int)
    if points < 3 or smallest < 2 or (np.diff(sizes) < 1).any():
        allowed = "at least 3 points whose sizes differ, from at least 2 rows"
        raise ValueError(f"got {points} points from {smallest} to {len(rows)} rows; allowed are {allowed}")
    _small(smallest, y.count, rows.shape[1], len(y.mean), small_ok)
    generator = np.random.default_rng(seed)
    values = []
    with one_core():
        for size in sizes:
            part = _statistics(rows[generator.choice(len(rows), size, replace=False)])
            shift, traces = part.mean - y.mean, np.trace(part.covariance) + np.trace(y.covariance)
            values.append(float(shift @ shift + traces - 2 * _cross(y.covariance, part.covariance)))
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    misses = np.array(values) - intercept - slope / sizes
    residual = float(np.sqrt(misses @ misses / (points - 2)))
    return ExtrapolatedFrechet(float(intercept), float(slope), residual, tuple(sizes.tolist()), tuple(values))


def effective_rank(covariance: Float64[np.ndarray, "d d"]) -> float:
    """Effective rank of a covariance: exp of the entropy of its normalized eigenvalues (Roy and Vetterli 2007).

    Between 1 and d; 0 for a covariance of zeros.
    """
    with one_core():
        eigenvalues = np.linalg.eigvalsh(covariance).clip(min=0)
    if eigenvalues.sum() == 0:
        return 0.0
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _statistics(rows: Float64[np.ndarray, "n d"]) -> Statistics:
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Statistics(len(rows), mean, centred.T @ centred / (len(rows) - 1))


def check_rows(count: int, dimensions: int, small_ok: bool, score: str = "the Frechet distance") -> bool:
    """Whether `count` rows are too few for a Frechet distance; ValueError if they are, unless `small_ok`."""
    small = count < 2 * dimensions
    if small and not small_ok:
        raise ValueError(
            f"got {count} rows of {dimensions} dimensions; {score} needs at least {2 * dimensions}, twice "
            f"as many, as fewer rows favour sets of little variance; small_ok (--small-ok) allows and marks it"
        )
    return small


def _small(n: int | None, m: int | None, d: int, other: int, small_ok: bool) -> bool:
    if d != other:
        raise ValueError(f"the sets have {d} and {other} dimensions; both must come from one detector")
    return check_rows(min(count for count in (n, m, 2 * d) if count is not None), d, small_ok)


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    """r with r r^T = covariance, by Cholesky, or by eigenvectors (ten times slower) if the rank is not full."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(eigenvalues.clip(min=0))


def _cross(x: Float64[np.ndarray, "d d"], y: Float64[np.ndarray, "d d"]) -> float:
    """tr (S_x S_y)^(1/2) for the covariances x and y."""
    # A feature that is constant in either set contributes 0, but rounding would turn this into about 1e-8.
    alive = np.flatnonzero((x.diagonal() > 0) & (y.diagonal() > 0))
    if not alive.size:
        return 0.0
    x, y = x[np.ix_(alive, alive)], y[np.ix_(alive, alive)]
    root = _root(x)
    product = root.T @ y @ root
    return float(np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum())


def _same_rows(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> bool:
    # Comparing one column first avoids hashing the rows of almost all different sets.
    if len(x) != len(y) or not np.array_equal(np.sort(x[:, 0]), np.sort(y[:, 0])):
        return False
    hashes = [sorted(hash(row.tobytes()) for row in rows) for rows in (x, y)]
    return hashes[0] == hashes[1]


def _frechet(
    shift: Float64[np.ndarray, " d"],
    traces: float,
    cross: float,
    ranks: tuple[float, float],
    counts: tuple[int | None, int | None],
    small: bool,
    identical: bool,
) -> Frechet:
    mean_term = float(shift @ shift)
    covariance_term = float(traces - 2 * cross)
    value = mean_term + covariance_term
    return Frechet(value, mean_term, covariance_term, *ranks, *counts, len(shift), small, identical)
