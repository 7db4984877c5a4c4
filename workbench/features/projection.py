"""Projections of tokens to a few directions, fixed or refitted at each guidance scale, all of them linear in w.

Guidance is linear (Eq. 3), and so is a projection: coordinates of f_g = f_u + w (f_c - f_u) are u + w d at any w, and
the covariance of f_g is a quadratic in w. A picture at a new w needs two arrays and three small matrices, no network.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from workbench.features.directions import largest_signs, nearest_rotation, outlier_note, principal, procrustes

_ROWS = 32768  # rows held in float64 at once
_COLOURS = 3  # red, green, blue


@dataclass(frozen=True, eq=False)
class Moments:
    """Covariances over the tokens of one time, about their means, of f_u and of d = f_c - f_u.

    `uu`, `ud` and `dd` are inside the subspace of a projection; the totals are traces over the whole width, `total_ud`
    that of Cov(f_u, d). From these alone a page in a browser refits and knows what it leaves out.
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
        """Variance of f_g over the whole width; ValueError if there is none."""
        total = self.total_uu + 2 * w * self.total_ud + w * w * self.total_dd
        if not total > 0:
            raise ValueError(f"at w = {w:g} all tokens are equal; there is no variance to share out")
        return total


@dataclass(frozen=True, eq=False)
class Refit:
    """Principal components of f_g itself: `explained` are shares of its whole variance, largest first.

    Where `coordinates` were aligned they are a rotation of these components: the same picture in other colours, of
    the same sum of shares. `left_out` is the share outside the subspace searched, which no refit in it can show.
    """

    coordinates: Float32[Tensor, "n m c"]
    explained: Float64[Tensor, " c"]
    left_out: float

    @property
    def note(self) -> str | None:
        """A warning where one component has almost everything."""
        return outlier_note(self.explained)


@dataclass(frozen=True, eq=False)
class GuidedProjection:
    """Tokens of one layer at several times in one basis of k directions.

    `u` are the coordinates of f_u - `mean` and `d` those of f_c - f_u, by time. `pooled` is the covariance, in the
    subspace and about `mean`, of all that the basis was fitted on, and `total` its trace over the whole width.
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
        """The times it holds."""
        return tuple(self.u)

    @property
    def explained(self) -> Float64[Tensor, " k"]:
        """Share of the pooled variance along each direction."""
        return self.pooled.diagonal() / self.total

    def at(self, t: float, w: float) -> Float32[Tensor, "n m k"]:
        """Coordinates of f_g - mean at scale w, u + w d (Eq. 3): 0 gives f_u, 1 gives f_c.

        ValueError for another t, or a w that is not finite."""
        self._check(t, w)
        return self.u[t] + w * self.d[t]

    def energy(self, t: float, w: float) -> Float64[Tensor, " c"]:
        """Share of the variance of f_g at t and w that each of the (first three) fixed components shows."""
        self._check(t, w)
        moments = self.moments[t]
        return moments.covariance(w).diagonal()[:_COLOURS] / moments.total(w)

    def refit(self, t: float, w: float, components: int = _COLOURS, *, align: bool = True) -> Refit:
        """Principal components of f_g at t and w inside the subspace, from an eigenproblem of k x k; about their mean.

        With k = d this is the PCA of f_g. Aligned, they are turned (and mirrored) onto the fixed components by
        Procrustes so that colours keep their meaning; else each has its largest loading positive. ValueError for
        another t, or more components than k.
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
        # The cross-covariance of refitted and fixed scores is all that Procrustes needs of the tokens.
        turned = chosen @ nearest_rotation(chosen.T @ covariance[:, :components]) if align else chosen
        scores = self.at(t, w)
        return Refit(
            coordinates=(scores - scores.mean(dim=(0, 1), dtype=torch.float64).float()) @ turned.float(),
            explained=values.flip(0)[:components].clamp(min=0) / total,
            left_out=max(0.0, 1 - float(covariance.trace()) / total),
        )

    def aligned_to(self, reference: Float[Tensor, "n m c"], t: float, w: float = 1.0) -> "GuidedProjection":
        """The same projection, its first three directions turned so that the scores at t and w come near `reference`.

        `reference` are coordinates of the same tokens in another projection: of another layer, time, checkpoint or
        model. One orthogonal matrix, rotation or mirroring, by Procrustes. ValueError for another t or token grid.
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
    """Joint PCA of the tokens of one layer over all images, times and both label modes, each with the same weight.

    Each direction has its largest loading positive. One eigenproblem of d x d in float64.

    Args:
        f_u: Tokens ``n m d`` with the null label, by time. A bare tensor, such as the tokens of an image encoder, is
            that of clean images, t = 0.
        f_c: The same with the label. Without it there is one set, the same at any w.
        components: Number of directions.

    Returns:
        A ``GuidedProjection``. ``at(t, w)`` gives coordinates ``n m k`` of f_u + w (f_c - f_u), Eq. 3; ``refit(t, w)``
        the principal components at that w; ``explained`` the share of the variance along each direction.

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
    placed = {t: _place(of, means[t], mean, basis) for t, of in sets.items()}
    return GuidedProjection(
        basis=basis,
        mean=mean,
        pooled=basis.T @ covariance @ basis,
        total=float(covariance.trace()),
        u={t: u for t, (u, _, _) in placed.items()},
        d={t: d for t, (_, d, _) in placed.items()},
        moments={t: moments for t, (_, _, moments) in placed.items()},
    )


def project_pair(
    first: tuple[Mapping[float, Tensor], Mapping[float, Tensor]],
    second: tuple[Mapping[float, Tensor], Mapping[float, Tensor]],
    *,
    components: int = 8,
) -> tuple[GuidedProjection, GuidedProjection]:
    """Two models side by side: (f_u, f_c) of each in its own basis, the second aligned to the first.

    By Procrustes on the scores of the same tokens, of f_u and of f_c at every time that both have; widths may differ.
    ValueError if no time is common or the token grids differ, and as `project`.
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
    """`projection` with its first directions turned by the Procrustes of `scores` onto `reference`."""
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


def _place(
    of: tuple[Tensor, ...], means: Float64[Tensor, "s d"], mean: Float64[Tensor, " d"], basis: Float64[Tensor, "d k"]
) -> tuple[Float32[Tensor, "n m k"], Float32[Tensor, "n m k"], Moments]:
    """Coordinates u and d of one time, and their moments; with one set f_c is f_u, so d is zero."""
    f_u, f_c, k = of[0], of[-1], basis.shape[1]
    offset = torch.cat([(means[0] - mean) @ basis, (means[-1] - means[0]) @ basis])
    count, found = f_u.shape[0] * f_u.shape[1], []
    inside = torch.zeros(2 * k, 2 * k, dtype=torch.float64)
    totals = torch.zeros(3, dtype=torch.float64)
    for part in _parts(f_u):
        u = _rows(f_u[part]) - means[0]
        d = _rows(f_c[part]) - means[-1] - u
        pair = torch.cat([u @ basis, d @ basis], dim=1)
        inside += pair.T @ pair / count
        totals += torch.stack([(u * u).sum(), (u * d).sum(), (d * d).sum()]) / count
        found.append((pair + offset).float())
    coordinates = rearrange(torch.cat(found), "(n m) (two k) -> two n m k", two=2, n=len(f_u))
    moments = Moments(inside[:k, :k], inside[:k, k:], inside[k:, k:], *totals.tolist())
    return *coordinates.contiguous().unbind(), moments


def _covariance(sets: list[Tensor], mean: Float64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for tokens in sets:
        for part in _parts(tokens):
            rows = _rows(tokens[part]) - mean
            total += rows.T @ rows
    return total / sum(tokens.shape[0] * tokens.shape[1] for tokens in sets)


def _mean(tokens: Float[Tensor, "n m d"], t: float) -> Float64[Tensor, " d"]:
    mean = sum(_rows(tokens[part]).sum(dim=0) for part in _parts(tokens)) / (tokens.shape[0] * tokens.shape[1])
    if not mean.isfinite().all():
        raise ValueError(f"features at t = {t:g} are not all finite")
    return mean


def _parts(tokens: Float[Tensor, "n m d"]) -> Iterator[slice]:
    """Slices of the images: what lies on a disk is read, and widened to float64, a part at a time."""
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
