"""Principal directions of a set of rows, their signs, and Procrustes alignment of two sets."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_OUTLIERS = 0.9


def procrustes(scores: Float[Tensor, "r a"], reference: Float[Tensor, "r a"]) -> Float64[Tensor, "a a"]:
    """The orthogonal R for which centred scores R are closest to the centred `reference` (Schonemann 1966).

    Raises ValueError for non-finite values.
    """
    for name, rows in (("scores", scores), ("reference", reference)):
        if not rows.isfinite().all():
            raise ValueError(f"the {name} are not all finite, so they cannot be aligned")
    first, second = (rows.double() - rows.double().mean(dim=0) for rows in (scores, reference))
    return nearest_rotation(first.T @ second)


def nearest_rotation(cross: Float64[Tensor, "a a"]) -> Float64[Tensor, "a a"]:
    """The orthogonal R that maximizes the trace of R^T `cross`, where `cross` is scores^T reference."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def principal(covariance: Float64[Tensor, "d d"], count: int) -> tuple[Float64[Tensor, "d k"], Float64[Tensor, " k"]]:
    """The first `count` eigenvectors, with positive largest loadings, and their fractions of the trace.

    Raises ValueError if the trace is zero, a value is not finite, or `count` exceeds d.
    """
    width, total = len(covariance), covariance.trace()
    if not 1 <= count <= width:
        raise ValueError(f"got {count} components; allowed are 1 to the width, {width}")
    if not covariance.isfinite().all():
        raise ValueError("the features are not all finite, or too large for a covariance")
    if not total > 0:
        raise ValueError("all tokens are equal, so they have no principal directions")
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :count]
    return basis * largest_signs(basis), values.flip(0)[:count].clamp(min=0) / total


def largest_signs(directions: Float[Tensor, "*n d k"]) -> Float[Tensor, "*n 1 k"]:
    """Sign of the largest loading, by absolute value, of each direction (column)."""
    largest = directions.abs().argmax(dim=-2, keepdim=True)
    return torch.take_along_dim(directions, largest, dim=-2).sign()


def outlier_note(explained: Float[Tensor, " c"]) -> str | None:
    """A warning if the largest component has more than 90 % of the variance."""
    return "mostly position or norm outliers" if float(explained.max()) > _OUTLIERS else None
