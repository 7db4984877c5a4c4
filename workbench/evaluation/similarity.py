"""Similarity of two representations (CKA, CKNNA, alignment), and rank and uniformity of one."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from workbench.diffusion.devices import one_core
from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import unit_rows

_BLOCK = 1000  # rows of a Gram matrix in memory at once


@dataclass(frozen=True)
class Cknna:
    """CKNNA and its null distribution under row shuffles; both depend on `count` and `neighbours`.

    `null_mean` and `null_high` (95 % quantile) are over `permutations` shuffles; `p` is the fraction of shuffles,
    including the true order, with at least this value.
    """

    value: float
    null_mean: float
    null_high: float
    p: float
    neighbours: int
    count: int
    permutations: int

    @property
    def calibrated(self) -> float:
        """(value - null_high) / (1 - null_high), at least 0 (Groger et al. 2026): 0 is chance, 1 is identity."""
        return max(0.0, (self.value - self.null_high) / (1 - self.null_high))


def unbiased_hsic(first: Float64[np.ndarray, "n n"], second: Float64[np.ndarray, "n n"]) -> float:
    """Unbiased HSIC of two symmetric Gram matrices (Song et al. 2012, Eq. 5); their diagonals are ignored.

    Zero in expectation for independent sets, so it can be negative. Raises ValueError for fewer than four rows.
    """
    n = len(first)
    if n < 4:
        raise ValueError(f"got {n} rows; the unbiased HSIC needs at least 4")
    products = np.vdot(first, second) - np.diagonal(first) @ np.diagonal(second)
    return _hsic(n, products, *(gram.sum(axis=1) - np.diagonal(gram) for gram in (first, second)))


def linear_cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """Linear CKA (Kornblith et al. 2019) of matching rows, with the unbiased HSIC: about 0 for independent sets.

    Invariant to rotation, shift and isotropic scaling of either set; 1 for equal sets. Raises ValueError for non-finite
    rows, fewer than four rows, or a constant set.
    """
    # The estimator is invariant to shifts, but a large mean would lose precision in floating point.
    centred = [rows - rows.mean(axis=0) for rows in map(finite_rows, (x, y))]
    with one_core():
        first, second = (_linear_hsic(rows, rows) for rows in centred)
        for self_term, rows in zip((first, second), centred, strict=True):
            # |X^T X|^2 / n^2 is the mean square of the Gram matrix.
            if self_term <= 1e-12 * np.square(rows.T @ rows).sum() / len(rows) ** 2:
                raise ValueError("one of the sets does not vary between its rows; CKA is undefined")
        return _linear_hsic(*centred) / math.sqrt(first * second)


def cknna(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n e"],
    *,
    neighbours: int = 10,
    permutations: int = 100,
    seed: int,
) -> Cknna:
    """CKNNA (Huh et al. 2024, in the form of the released code) of matching rows, with its permutation null.

    On cosine similarities, not centred: HSIC of the two Gram matrices restricted to pairs that are neighbours in both
    sets, divided by the root of the two self terms (each on its own neighbours) plus 1e-6. "j is a neighbour of i" is
    not symmetric, and the released code multiplies by a transpose, so its first sum only counts mutual neighbours; so
    does this one. The null distribution shuffles the rows of y by np.random.default_rng(seed). Uses two n x n boolean
    tables. Raises ValueError for zero or non-finite rows, neighbours outside 2 .. n - 1, n < 4, permutations < 1, or a
    self term that is not positive.
    """
    first, second = unit_rows(finite_rows(x)), unit_rows(finite_rows(y))
    n = len(first)
    if n < 4 or not 2 <= neighbours < n or permutations < 1:
        raise ValueError(
            f"got {n} rows, {neighbours} neighbours and {permutations} permutations; "
            f"allowed are at least 4 rows, 2 to {n - 1} neighbours and at least 1 permutation"
        )
    here, there, same = _neighbourhood(first, neighbours), _neighbourhood(second, neighbours), np.arange(n)
    squared = _local_hsic(here, here, same) * _local_hsic(there, there, same)
    if squared <= 0:
        raise ValueError(f"CKNNA is undefined here: a self term is not positive ({neighbours} neighbours of {n} rows)")
    generator = np.random.default_rng(seed)
    orders = (same, *(generator.permutation(n) for _ in range(permutations)))
    hsic = np.array([_local_hsic(here, there, order) for order in orders])
    value, *null = hsic / (math.sqrt(squared) + 1e-6)
    p = (1 + sum(shuffled >= value for shuffled in null)) / (1 + permutations)
    high = float(np.quantile(null, 0.95))
    return Cknna(float(value), float(np.mean(null)), high, float(p), neighbours, n, permutations)


def rank_me(features: Float[Tensor, "n d"], *, centred: bool = False) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalized singular values, plus 1e-7 each.

    Published without centring; `centred` subtracts the mean row first. At most min(n, d), so compare at equal n, layer
    and time. `frechet.effective_rank` uses variances instead. Raises ValueError if a row is not finite or all are zero.
    """
    rows = finite_rows(features)
    with one_core():
        values = np.linalg.svd(rows - rows.mean(axis=0) if centred else rows, compute_uv=False)
    if not values.any():
        raise ValueError("all features are zero; there is no rank")
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """Mean squared distance of positive pairs on the unit sphere (Wang and Isola 2020, alpha = 2).

    Row i of both sets is one image with two noise draws. 0 if they are equal, 4 if opposite. Raises ValueError if a row
    is zero or not finite.
    """
    return float(np.square(unit_rows(finite_rows(x)) - unit_rows(finite_rows(y))).sum(axis=1).mean())


def uniformity(features: Float[Tensor, "n d"]) -> float:
    """log of the mean of exp(-2 |u - v|^2) over the pairs of rows on the unit sphere (Wang and Isola 2020, t = 2).

    0 if all rows are equal; lower is more uniform. Raises ValueError if a row is zero or not finite.
    """
    unit = unit_rows(finite_rows(features))
    n, total = len(unit), 0.0
    for start in range(0, n, _BLOCK):
        # |u - v|^2 = 2 - 2 u . v
        total += np.exp(4 * (unit[start : start + _BLOCK] @ unit.T) - 4).sum()
    return float(np.log((total - n) / (n * (n - 1))))


def _hsic(n: int, products: float, columns: Float64[np.ndarray, " n"], rows: Float64[np.ndarray, " n"]) -> float:
    """Song et al. 2012, Eq. 5, from tr(K L), the column sums of K and the row sums of L, without diagonals."""
    rest = columns.sum() * rows.sum() / ((n - 1) * (n - 2)) - 2 * (columns @ rows) / (n - 2)
    return float((products + rest) / (n * (n - 3)))


def _linear_hsic(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "n e"]) -> float:
    """`unbiased_hsic` of X X^T and Y Y^T without forming them: tr(K L) = |X^T Y|^2, and K 1 = X (X^T 1)."""
    if len(x) < 4:
        raise ValueError(f"got {len(x)} rows; the unbiased HSIC needs at least 4")
    (first, columns), (second, rows) = (_diagonal_and_sums(part) for part in (x, y))
    return _hsic(len(x), np.square(x.T @ y).sum() - first @ second, columns, rows)


def _diagonal_and_sums(x: Float64[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal of X X^T, and its row sums without the diagonal."""
    diagonal = np.square(x).sum(axis=1)
    return diagonal, x @ x.sum(axis=0) - diagonal


@dataclass(frozen=True)
class _Neighbourhood:
    """Unit rows, the nearest neighbours of each row, and the same as a boolean table [i, j]: j is a neighbour of i."""

    unit: Float64[np.ndarray, "n d"]
    closest: Integer[np.ndarray, "n k"]
    table: Bool[np.ndarray, "n n"]


def _neighbourhood(unit: Float64[np.ndarray, "n d"], count: int) -> _Neighbourhood:
    closest = np.empty((len(unit), count), np.int64)
    for start in range(0, len(unit), _BLOCK):
        cosines = unit[start : start + _BLOCK] @ unit.T
        block = np.arange(len(cosines))
        cosines[block, start + block] = -np.inf
        closest[start : start + _BLOCK] = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    table = np.zeros((len(unit), len(unit)), bool)
    np.put_along_axis(table, closest, True, axis=1)
    return _Neighbourhood(unit, closest, table)


def _local_hsic(here: _Neighbourhood, there: _Neighbourhood, order: Integer[np.ndarray, " n"]) -> float:
    """HSIC of two Gram matrices on pairs that are neighbours in both; `there` is permuted by `order`."""
    n, count = here.closest.shape
    rows, columns = np.repeat(np.arange(n), count), here.closest.ravel()
    both = there.table[order[rows], order[columns]]
    rows, columns = rows[both], columns[both]
    mutual = here.table[columns, rows] & there.table[order[columns], order[rows]]
    first = (here.unit[rows] * here.unit[columns]).sum(axis=1)
    second = (there.unit[order[rows]] * there.unit[order[columns]]).sum(axis=1)
    return _hsic(n, first[mutual] @ second[mutual], np.bincount(columns, first, n), np.bincount(rows, second, n))
