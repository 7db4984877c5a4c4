"""Scores from distances between neighbours: precision and recall, density and coverage, memorisation.

Distances are computed block by block: a call holds about four arrays of block x block numbers (4 bytes each, so
256 MiB at the default of 4096) beside the features in float32, whatever the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import mannwhitneyu
from torch import Tensor

BLOCK = 4096


@dataclass(frozen=True)
class PrecisionRecall:
    """precision: share of generated rows inside the real manifold; recall: share of real rows inside the other.

    `real_inside` says it of each real row, so that recall can be told by class.
    """

    precision: float
    recall: float
    real_inside: Bool[Tensor, " m"]


@dataclass(frozen=True)
class DensityCoverage:
    """Both about 1 for equal distributions; density can exceed 1."""

    density: float
    coverage: float


@dataclass(frozen=True)
class Nearest:
    """Euclidean distance of each query to its nearest training row, and the number of that row."""

    distance: Float64[Tensor, " n"]
    index: Int64[Tensor, " n"]


@dataclass(frozen=True)
class Memorisation:
    """Nearest training rows of generated and of test rows.

    closer: probability that a generated row lies closer to the training set than a test row (ties count half): 0.5
    for a model that samples the data's distribution, 1 for one that repeats its training set.
    p_value: one-sided Mann-Whitney test that generated rows lie closer.
    """

    generated: Nearest
    test: Nearest
    closer: float
    p_value: float


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, half: bool = False) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances |x|^2 - 2 x.y + |y|^2, at least 0, in float32.

    half: every step is rounded to float16, with sums accumulated in float32, as ADM's evaluator does on a GPU; if
    one result is not finite, all of the block is computed in float32, as there.
    """
    if half:
        u, v = x.half(), y.half()
        product = (u.float() @ v.float().T).half()
        norms = [(rows.square().float().sum(dim=1)).half() for rows in (u, v)]
        distances = (norms[0][:, None] - 2 * product + norms[1]).clamp(min=0)
        if distances.isfinite().all():
            return distances.float()
    x, y = x.float(), y.float()
    product = x @ y.T
    return product.mul_(-2).add_(x.square().sum(dim=1)[:, None]).add_(y.square().sum(dim=1)).clamp_(min=0)


def squared_radii(
    features: Float[Tensor, "n d"], k: int, *, half: bool = False, block: int = BLOCK
) -> Float[Tensor, " n"]:
    """Squared distance of each row to its k-th nearest other row: entry k of its sorted distances, itself included.

    As ADM's evaluator counts: exact copies of a row are neighbours of it. ValueError if k < 1 or k >= n.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k is {k}; allowed for {len(features)} rows are 1 to {len(features) - 1}")
    radii = []
    for rows in features.split(block):
        nearest = rows.new_empty((len(rows), 0), dtype=torch.float32)
        for others in features.split(block):
            nearest = torch.cat([nearest, squared_distances(rows, others, half=half)], dim=1)
            nearest = nearest.topk(min(k + 1, nearest.shape[1]), dim=1, largest=False).values
        radii.append(nearest.max(dim=1).values)
    return torch.cat(radii)


def precision_recall(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    k: int = 3,
    half: bool = False,
    block: int = BLOCK,
    real_radii: Float[Tensor, " m"] | None = None,
) -> PrecisionRecall:
    """Precision and recall (Kynkaanniemi et al. 2019) as openai/guided-diffusion's evaluator computes them.

    A row is inside a manifold if its squared distance to one of its rows is <= that row's squared radius. The
    sets may differ in size, and the values depend on both sizes. ADM: the reference file's 10,000 images as `real`,
    half and block = 10,000 (overflow is decided block by block), on Inception's pooled features. `real_radii` are the
    `squared_radii` of the real rows where they are known.
    ValueError if a row is not finite, the widths differ, or k does not lie between 1 and the smaller size - 1.
    """
    generated, real = _matching(generated=generated, real=real)
    generated_radii = squared_radii(generated, k, half=half, block=block)
    if real_radii is None:
        real_radii = squared_radii(real, k, half=half, block=block)
    inside_real = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    inside_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    # Real rows first, as in the evaluator: in float16 the order of the two norms changes the rounding.
    for rows, columns, distances in _blocks(real, generated, half, block):
        inside_generated[rows] |= (distances <= generated_radii[columns]).any(dim=1)
        inside_real[columns] |= (distances <= real_radii[rows, None]).any(dim=0)
    return PrecisionRecall(_share(inside_real), _share(inside_generated), inside_generated)


def density_coverage(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    k: int = 5,
    block: int = BLOCK,
    real_radii: Float[Tensor, " m"] | None = None,
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020) with the balls of the real rows' k-th neighbours.

    density: balls that hold a generated row, averaged over generated rows, divided by k. coverage: share of the
    balls that hold a generated row. The balls are closed (the authors' code has them open). ValueError as for
    `precision_recall`, with k below the number of real rows.
    """
    generated, real = _matching(generated=generated, real=real)
    radii = squared_radii(real, k, block=block) if real_radii is None else real_radii
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    hits = 0
    for rows, _, distances in _blocks(real, generated, False, block):
        inside = distances <= radii[rows, None]
        covered[rows] |= inside.any(dim=1)
        hits += int(inside.sum())
    return DensityCoverage(hits / (k * len(generated)), _share(covered))


def nearest_training(queries: Float[Tensor, "n d"], train: Float[Tensor, "m d"], *, block: int = BLOCK) -> Nearest:
    """Nearest training row of each query; the distance is computed from the difference, so a copy is at exactly 0.

    ValueError if a row is not finite, the widths differ or a set is empty.
    """
    queries, train = _matching(queries=queries, train=train)
    # Distances do not change with the origin; near the middle the squares lose fewer digits.
    middle = train.mean(dim=0)
    distance, index = [], []
    for rows in queries.split(block):
        best = rows.new_full((len(rows),), torch.inf)
        found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for number, others in enumerate(train.split(block)):
            least, where = squared_distances(rows - middle, others - middle).min(dim=1)
            found = torch.where(least < best, where + number * block, found)
            best = torch.minimum(best, least)
        index.append(found)
        distance.append((rows.double() - train[found].double()).norm(dim=1))
    return Nearest(torch.cat(distance), torch.cat(index))


def memorisation(generated: Nearest, test: Nearest) -> Memorisation:
    """Whether generated rows lie closer to the training rows than test rows do (Meehan et al. 2020).

    Their statistic over the whole space, without cells. Both are `nearest_training` of the same training rows.
    """
    ours, theirs = (found.distance.cpu().numpy() for found in (generated, test))
    result = mannwhitneyu(ours, theirs, alternative="less")
    closer = 1 - float(result.statistic) / (len(ours) * len(theirs))
    return Memorisation(generated, test, closer, float(result.pvalue))


def _blocks(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], half: bool, block: int
) -> Iterator[tuple[slice, slice, Float[Tensor, "a b"]]]:
    for i in range(0, len(x), block):
        for j in range(0, len(y), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            yield rows, columns, squared_distances(x[rows], y[columns], half=half)


def _matching(**sets: Tensor) -> list[Float[Tensor, "_ d"]]:
    """The sets in float32, after checks that name the set and the row at fault."""
    widths = {name: features.shape[1] for name, features in sets.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the sets have different dimensions, {widths}; both must come from one detector")
    result = []
    for name, features in sets.items():
        features = features.detach().float()
        if len(features) == 0:
            raise ValueError(f"got no {name} rows; at least 1 is needed")
        broken = (~features.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(f"row {int(broken[0])} of the {name} features is not finite ({len(broken)} rows are not)")
        result.append(features)
    return result


def _share(inside: Tensor) -> float:
    return float(inside.double().mean())
