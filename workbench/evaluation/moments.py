"""Running mean and covariance of features that need not be kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.evaluation.frechet import Statistics, finite_rows


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of the centred rows) of the rows seen so far, in float64.

    Start with `Moments.none(d)`, `add` batches, `merge` the parts of several processes, and read `statistics`.
    Sums of centred products, not of raw ones, so features far from zero lose no digits. A step holds about four
    d x d arrays (32 MiB each at d = 2048) and float64 copies of the batch.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def none(cls, dimensions: int) -> "Moments":
        """Moments of no rows."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    def add(self, features: Float[Tensor, "b d"]) -> "Moments":
        """Moments of the rows seen so far and of a batch of at least one row.

        ValueError if the batch is empty, its width is another one, or a row, numbered over all batches, is not finite.
        """
        rows = finite_rows(features, least=1, before=self.count)
        mean = rows.mean(axis=0)
        centred = rows - mean
        return self.merge(Moments(len(rows), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows together (Chan, Golub and LeVeque 1979). ValueError if the widths differ."""
        if len(self.mean) != len(other.mean):
            raise ValueError(f"the parts have {len(self.mean)} and {len(other.mean)} dimensions; they must be the same")
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        between = np.outer(shift * (self.count * other.count / count), shift)
        return Moments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)

    def statistics(self) -> Statistics:
        """Mean and covariance with divisor n - 1, for `frechet_distance`. ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"got {self.count} feature rows; a spread needs at least 2")
        return Statistics(self.count, self.mean, self.scatter / (self.count - 1))
