"""Directions of a set of rows: principal ones, their signs, and the rotation that lays one set on another."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_OUTLIERS = 0.9


def procrustes(scores: Float[Tensor, "r a"], reference: Float[Tensor, "r a"]) -> Float64[Tensor, "a a"]:
    """The orthogonal R that makes scores R nearest to `reference`, both about their means (Schonemann 1966).

    ValueError for what is not finite.
    """
    for name, rows in (("scores", scores), ("reference", reference)):
        if not rows.isfinite().all():
            raise ValueError(f"the {name} are not all finite; no rotation lays them on others")
    first, second = (rows.double() - rows.double().mean(dim=0) for rows in (scores, reference))
    return nearest_rotation(first.T @ second)


def nearest_rotation(cross: Float64[Tensor, "a a"]) -> Float64[Tensor, "a a"]:
    """The orthogonal R that makes the trace of R^T `cross` largest, `cross` being scores^T reference."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def principal(covariance: Float64[Tensor, "d d"], count: int) -> tuple[Float64[Tensor, "d k"], Float64[Tensor, " k"]]:
    """The first `count` eigenvectors, largest loading positive, and their shares of the trace.

    ValueError if the trace is zero, a number is not finite, or for more than d.
    """
    width, total = len(covariance), covariance.trace()
    if not 1 <= count <= width:
        raise ValueError(f"got {count} components; allowed are 1 to the width, {width}")
    if not covariance.isfinite().all():
        raise ValueError("the features are not all finite, or too large for a covariance")
    if not total > 0:
        raise ValueError("all tokens are equal; there are no directions in which they vary")
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :count]
    return basis * largest_signs(basis), values.flip(0)[:count].clamp(min=0) / total


def largest_signs(directions: Float[Tensor, "*n d k"]) -> Float[Tensor, "*n 1 k"]:
    """The sign, for each direction (column), of the loading of largest size."""
    largest = directions.abs().argmax(dim=-2, keepdim=True)
    return torch.take_along_dim(directions, largest, dim=-2).sign()


def outlier_note(explained: Float[Tensor, " c"]) -> str | None:
    """A warning where the largest component has more than 90 % of the variance."""
    return "mostly position or norm outliers" if float(explained.max()) > _OUTLIERS else None
