"""Kernel distance (KID) between two sets of features, unbiased for any number of samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """The distance and its spread over subsets."""
    distance = kid(of.generated.features, of.reference.train.features, seed=of.seed)
    return {"value": distance.value, "subset_sd": distance.subset_sd, "subset_size": distance.subset_size}


METRIC = Metric(title="KID", better="lower", measure=measure, order=40)


@dataclass(frozen=True)
class Kid:
    """Mean over subsets; `subset_sd` is the spread over subsets, which overlap, so it is not a standard error."""

    value: float
    subset_sd: float
    subset_size: int


def kid(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int,
) -> Kid:
    """Kernel distance KID (Binkowski et al. 2018): mean of `squared_discrepancy` over random subsets.

    Subsets of min(subset_size, n, m) rows are drawn without replacement by np.random.default_rng(seed), from x and y
    alternately. The distance can be slightly negative for equal distributions. If a subset has all rows of both sets,
    all subsets are equal and subset_sd is 0 up to rounding. Raises ValueError if a set has fewer than two rows, a row
    is not finite, subsets < 1 or subset_size < 2.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"got {subsets} subsets of {subset_size} rows; allowed are at least 1 subset of at least 2")
    first, second = finite_rows(x), finite_rows(y)
    size = min(subset_size, len(first), len(second))
    generator = np.random.default_rng(seed)
    values = np.empty(subsets)
    for index in range(subsets):
        rows = generator.choice(len(first), size, replace=False)
        others = generator.choice(len(second), size, replace=False)
        values[index] = squared_discrepancy(first[rows], second[others])
    return Kid(float(values.mean()), float(values.std()), size)


def squared_discrepancy(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> float:
    """Unbiased squared MMD (Gretton et al. 2012, Eq. 3) with the kernel (a . b / d + 1)^3.

    x, y: at least two rows each.
    """
    n, m = len(x), len(y)
    within = (_cubes(rows, rows) - _own_cubes(rows) for rows in (x, y))
    within_x, within_y = (total / (len(rows) * (len(rows) - 1)) for total, rows in zip(within, (x, y), strict=True))
    return within_x + within_y - 2 * _cubes(x, y) / (n * m)


def _cubes(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"]) -> float:
    """Sum of the kernel over all pairs."""
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    # NumPy's general power is several times slower, and would need a third array.
    return float(np.vdot(base * base, base))


def _own_cubes(a: Float64[np.ndarray, "n d"]) -> float:
    """Sum of the kernel of each row with itself."""
    return float(((np.square(a).sum(axis=1) / a.shape[1] + 1) ** 3).sum())
