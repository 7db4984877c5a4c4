"""Projections of tokens to a few directions, fixed or refitted at each guidance scale.

Guidance is linear in w (Eq. 3), and so are the projections: the coordinates of f_g = f_u + w (f_c - f_u) are u + w d
for any w, and the covariance of f_g is quadratic in w. Showing another w needs two arrays and three small matrices, and
no network.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from workbench.features.directions import largest_signs, nearest_rotation, outlier_note, principal, procrustes

_ROWS = 32768  # rows in float64 at a time
_COLOURS = 3  # red, green, blue


@dataclass(frozen=True, eq=False)
class Moments:
    """Covariances of f_u and d = f_c - f_u over the tokens of one time.

    `uu`, `ud` and `dd` are inside the subspace of a projection; the totals are traces over the full width, `total_ud`
    that of Cov(f_u, d). They are all that a browser needs to refit, and to show how much variance is left out.
    """

    uu: Float64[Tensor, "k k"]
    ud: Float64[Tensor, "k k"]
    dd: Float64[Tensor, "k k"]
    total_uu: float
    total_ud: float
    total_dd: float

    def covariance(self, w: float) -> Float64[Tensor, "k k"]:
        """Covariance of f_g inside the subspace, C_uu + w (C_ud + C_ud^T) + w^2 C_dd."""
        return self.uu + w * (self.ud + self.ud.T) + w * w * self.dd

    def total(self, w: float) -> float:
        """Variance of f_g over the full width; ValueError if it is zero."""
        total = self.total_uu + 2 * w * self.total_ud + w * w * self.total_dd
        if not total > 0:
            raise ValueError(f"at w = {w:g} all tokens are equal, so there is no variance to explain")
        return total


@dataclass(frozen=True, eq=False)
class Refit:
    """Principal components of f_g: `explained` are fractions of its total variance, largest first.

    Aligned `coordinates` are a rotation of these components, with other colours and the same total of `explained`.
    `left_out` is the fraction of the variance outside the subspace of the projection.
    """

    coordinates: Float32[Tensor, "n m c"]
    explained: Float64[Tensor, " c"]
    left_out: float

    @property
    def note(self) -> str | None:
        """A warning if the first component has almost all of the variance."""
        return outlier_note(self.explained)


@dataclass(frozen=True, eq=False)
class GuidedProjection:
    """Tokens of one layer at several times, in one basis of k directions.

    `u` are the coordinates of f_u - `mean` and `d` those of f_c - f_u, by time. `pooled` is the covariance, inside the
    subspace and about `mean`, of all tokens that the basis was fitted on, and `total` its trace over the full width.
    """

    basis: Float64[Tensor, "d k"]
    mean: Float64[Tensor, " d"]
    pooled: Float64[Tensor, "k k"]
    total: float
    u: dict[float, Float32[Tensor, "n m k"]]
    d: dict[float, Float32[Tensor, "n m k"]]
    moments: dict[float, Moments]

    @property
    def times(self) -> tuple[float, ...]:
        """The times, in order."""
        return tuple(self.u)

    @property
    def explained(self) -> Float64[Tensor, " k"]:
        """Fraction of the pooled variance along each direction."""
        return self.pooled.diagonal() / self.total

    def at(self, t: float, w: float) -> Float32[Tensor, "n m k"]:
        """Coordinates of f_g - mean at scale w, u + w d (Eq. 3): 0 gives f_u, 1 gives f_c.

        Raises ValueError for another t, or a w that is not finite.
        """
        self._check(t, w)
        return self.u[t] + w * self.d[t]

    def energy(self, t: float, w: float) -> Float64[Tensor, " c"]:
        """Fraction of the variance of f_g at t and w along each of the first three fixed components."""
        self._check(t, w)
        moments = self.moments[t]
        return moments.covariance(w).diagonal()[:_COLOURS] / moments.total(w)

    def refit(self, t: float, w: float, components: int = _COLOURS, *, align: bool = True) -> Refit:
        """Principal components of the centred f_g at t and w inside the subspace, from a k x k eigenproblem.

        With k = d this is the PCA of f_g. If `align`, they are Procrustes-aligned to the fixed components, so that
        colours keep their meaning; else the largest loading of each is positive. Raises ValueError for another t, or
        more components than k.
        """
        self._check(t, w)
        k = self.basis.shape[1]
        if not 1 <= components <= k:
            raise ValueError(f"got {components} components; allowed are 1 to the {k} of the projection")
        moments = self.moments[t]
        covariance, total = moments.covariance(w), moments.total(w)
        values, vectors = torch.linalg.eigh(covariance)
        chosen = vectors.flip(1)[:, :components]
        chosen = chosen * largest_signs(self.basis @ chosen)
        # Procrustes only needs the cross-covariance of refitted and fixed scores.
        turned = chosen @ nearest_rotation(chosen.T @ covariance[:, :components]) if align else chosen
        scores = self.at(t, w)
        return Refit(
            coordinates=(scores - scores.mean(dim=(0, 1), dtype=torch.float64).float()) @ turned.float(),
            explained=values.flip(0)[:components].clamp(min=0) / total,
            left_out=max(0.0, 1 - float(covariance.trace()) / total),
        )

    def aligned_to(self, reference: Float[Tensor, "n m c"], t: float, w: float = 1.0) -> "GuidedProjection":
        """This projection with its first three directions Procrustes-aligned to `reference` at t and w.

        `reference` are coordinates of the same tokens in another projection: of another layer, time, checkpoint or
        model. One orthogonal matrix aligns all times. Raises ValueError for another t or token grid.
        """
        scores = self.at(t, w)
        if reference.shape[:2] != scores.shape[:2]:
            raise ValueError(
                f"the reference has {_grid(reference)}, this projection {_grid(scores)}; they must be the same tokens"
            )
        return _aligned(self, scores, reference)

    def _check(self, t: float, w: float) -> None:
        if not math.isfinite(w):
            raise ValueError(f"w is {w}; allowed are finite numbers")
        if t not in self.u:
            raise ValueError(f"t = {t!r} is not in this projection; there are {', '.join(map(repr, self.times))}")


def project(
    f_u: Mapping[float, Float[Tensor, "n m d"]] | Float[Tensor, "n m d"],
    f_c: Mapping[float, Float[Tensor, "n m d"]] | None = None,
    *,
    components: int = 8,
) -> GuidedProjection:
    """Joint PCA of the tokens of one layer over all images, times and both label modes, with equal weights.

    The largest loading of each direction is positive. One d x d eigenproblem in float64.

    Args:
        f_u: Tokens ``n m d`` with the null label, by time. A single tensor, such as the tokens of an image encoder, is
            taken as clean images, t = 0.
        f_c: Tokens with the label, by time. Without it f_c is f_u, and coordinates do not depend on w.
        components: Number of directions.

    Returns:
        A ``GuidedProjection``. ``at(t, w)`` gives coordinates ``n m k`` of f_u + w (f_c - f_u), Eq. 3; ``refit(t, w)``
        the principal components at that w; ``explained`` the fraction of the variance along each direction.

    Raises:
        ValueError: For shapes or times that differ, features that are not finite or do not vary, or more components
            than d.

    Examples:
        >>> features = wb.extract(wb.zoo("guided"), images=4, layers=[8], times=[0.5])
        >>> f_u, f_c = features.read(8, 0.5, "null"), features.read(8, 0.5, "true")
        >>> projection = wb.project({0.5: f_u}, {0.5: f_c}, components=3)
        >>> projection.at(0.5, w=10.0).shape
        torch.Size([4, 64, 3])
    """
    by_time = dict(f_u) if isinstance(f_u, Mapping) else {0.0: f_u}
    _check_sets(by_time, f_c, components)
    sets = {t: (tokens,) if f_c is None else (tokens, f_c[t]) for t, tokens in by_time.items()}
    means = {t: torch.stack([_mean(tokens, t) for tokens in of]) for t, of in sets.items()}
    mean = torch.cat(list(means.values())).mean(dim=0)
    covariance = _covariance([tokens for of in sets.values() for tokens in of], mean)
    basis, _ = principal(covariance, components)
    projected = {t: _project_time(of, means[t], mean, basis) for t, of in sets.items()}
    return GuidedProjection(
        basis=basis,
        mean=mean,
        pooled=basis.T @ covariance @ basis,
        total=float(covariance.trace()),
        u={t: u for t, (u, _, _) in projected.items()},
        d={t: d for t, (_, d, _) in projected.items()},
        moments={t: moments for t, (_, _, moments) in projected.items()},
    )


def project_pair(
    first: tuple[Mapping[float, Tensor], Mapping[float, Tensor]],
    second: tuple[Mapping[float, Tensor], Mapping[float, Tensor]],
    *,
    components: int = 8,
) -> tuple[GuidedProjection, GuidedProjection]:
    """Project (f_u, f_c) of two models, each in its own basis, and align the second to the first.

    Procrustes is fitted on the scores of the same tokens, of f_u and f_c at all common times; widths may differ. Raises
    ValueError if there is no common time or the token grids differ, and as `project`.
    """
    one, other = (project(*pair, components=components) for pair in (first, second))
    common = [t for t in one.times if t in other.times]
    if not common:
        raise ValueError(f"the two have no time in common: {one.times} and {other.times}")
    scores, reference = (torch.cat([p.at(t, w) for t in common for w in (0.0, 1.0)]) for p in (other, one))
    if scores.shape[:2] != reference.shape[:2]:
        raise ValueError(
            f"the second has {_grid(scores)} over common times, the first {_grid(reference)}; they must be the same"
        )
    return one, _aligned(other, scores, reference)


def _aligned(projection: GuidedProjection, scores: Tensor, reference: Tensor) -> GuidedProjection:
    """`projection` with its first directions rotated by the Procrustes alignment of `scores` to `reference`."""
    count = min(_COLOURS, scores.shape[2], reference.shape[2])
    turn = torch.eye(scores.shape[2], dtype=torch.float64)
    rows = (rearrange(of[..., :count], "n m c -> (n m) c") for of in (scores, reference))
    turn[:count, :count] = procrustes(*rows)
    return replace(
        projection,
        basis=projection.basis @ turn,
        pooled=turn.T @ projection.pooled @ turn,
        u={t: u @ turn.float() for t, u in projection.u.items()},
        d={t: d @ turn.float() for t, d in projection.d.items()},
        moments={
            t: replace(of, uu=turn.T @ of.uu @ turn, ud=turn.T @ of.ud @ turn, dd=turn.T @ of.dd @ turn)
            for t, of in projection.moments.items()
        },
    )


def _project_time(
    of: tuple[Tensor, ...], means: Float64[Tensor, "s d"], mean: Float64[Tensor, " d"], basis: Float64[Tensor, "d k"]
) -> tuple[Float32[Tensor, "n m k"], Float32[Tensor, "n m k"], Moments]:
    """Coordinates u and d of one time, and their moments; for a single set f_c is f_u, so d is zero."""
    f_u, f_c, k = of[0], of[-1], basis.shape[1]
    offset = torch.cat([(means[0] - mean) @ basis, (means[-1] - means[0]) @ basis])
    count, parts = f_u.shape[0] * f_u.shape[1], []
    inside = torch.zeros(2 * k, 2 * k, dtype=torch.float64)
    totals = torch.zeros(3, dtype=torch.float64)
    for part in _parts(f_u):
        u = _rows(f_u[part]) - means[0]
        d = _rows(f_c[part]) - means[-1] - u
        pair = torch.cat([u @ basis, d @ basis], dim=1)
        inside += pair.T @ pair / count
        totals += torch.stack([(u * u).sum(), (u * d).sum(), (d * d).sum()]) / count
        parts.append((pair + offset).float())
    coordinates = rearrange(torch.cat(parts), "(n m) (two k) -> two n m k", two=2, n=len(f_u))
    moments = Moments(inside[:k, :k], inside[:k, k:], inside[k:, k:], *totals.tolist())
    u_coordinates, d_coordinates = coordinates.contiguous().unbind()
    return u_coordinates, d_coordinates, moments


def _covariance(sets: list[Tensor], mean: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for tokens in sets:
        for part in _parts(tokens):
            rows = _rows(tokens[part]) - mean
            total += rows.T @ rows
    return total / sum(tokens.shape[0] * tokens.shape[1] for tokens in sets)


def _mean(tokens: Float[Tensor, "n m d"], t: float) -> Float64[Tensor, " d"]:
    total = torch.zeros(tokens.shape[2], dtype=torch.float64)
    for part in _parts(tokens):
        total += _rows(tokens[part]).sum(dim=0)
    mean = total / (tokens.shape[0] * tokens.shape[1])
    if not mean.isfinite().all():
        raise ValueError(f"features at t = {t:g} are not all finite")
    return mean


def _parts(tokens: Float[Tensor, "n m d"]) -> Iterator[slice]:
    """Slices of the images, so that memory-mapped tokens are read and converted to float64 in parts."""
    step = max(1, _ROWS // tokens.shape[1])
    return (slice(start, start + step) for start in range(0, len(tokens), step))


def _rows(tokens: Float[Tensor, "n m d"]) -> Float64[Tensor, "r d"]:
    return rearrange(tokens.detach().cpu().double(), "n m d -> (n m) d")


def _check_sets(f_u: Mapping[float, Tensor], f_c: Mapping[float, Tensor] | None, components: int) -> None:
    if not f_u or (f_c is not None and set(f_c) != set(f_u)):
        raise ValueError(f"f_u has the times {list(f_u)}, f_c {list(f_c or ())}; allowed are the same, one or more")
    shapes = {tuple(tokens.shape) for of in (f_u, f_c or {}) for tokens in of.values()}
    if len(shapes) > 1:
        raise ValueError(f"features have the shapes {sorted(shapes)}; they must be the same tokens of one layer")
    ((_, _, width),) = shapes
    if not 1 <= components <= width:
        raise ValueError(f"got {components} components; allowed are 1 to the width, {width}")


def _grid(coordinates: Tensor) -> str:
    return f"{coordinates.shape[0]} images of {coordinates.shape[1]} tokens"
