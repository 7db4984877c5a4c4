"""Every score of one image set against a reference, by the features of one detector."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from workbench.evaluation.frechet import (
    Frechet,
    Statistics,
    extrapolated_frechet,
    frechet_distance,
    frechet_from_features,
    statistics,
)
from workbench.evaluation.inception_score import inception_score
from workbench.evaluation.kernel import kid
from workbench.evaluation.manifold import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    memorisation,
    nearest_training,
    precision_recall,
)
from workbench.evaluation.metrics import METRICS, Metric
from workbench.evaluation.reference import Reference, Seen
from workbench.evaluation.statistics import Share, sampling_deviation, wilson

# By how much a normal statistic misses its expectation at most, 19 times of 20, in standard deviations.
_NORMAL = 1.96
_SMALLEST_SHARE = 10  # the smallest subset of FD at infinite N is a tenth of the images

Scores = dict[str, dict[str, Any]]  # by kind: value, and what goes with it


@dataclass(frozen=True, eq=False)
class Measurement:
    """Generated images beside a reference, as the functions of `metrics.METRICS` take them.

    What several scores need is computed once, when first asked for. `seed` is that of random subsets; with `small_ok`
    too few images are marked instead of refused.
    """

    generated: Seen
    reference: Reference
    seed: int = 0
    small_ok: bool = False
    _scores: Scores = field(default_factory=dict, repr=False)

    @cached_property
    def precision_recall(self) -> PrecisionRecall:
        reference = self.reference
        options = {"half": reference.half, "block": 10_000, "real_radii": reference.radii["precision"]}
        return precision_recall(self.generated.features, reference.manifold, **options)

    @cached_property
    def density_coverage(self) -> DensityCoverage:
        real, radii = self.reference.manifold, self.reference.radii["density"]
        return density_coverage(self.generated.features, real, real_radii=radii)

    def score(self, kind: str) -> dict[str, Any]:
        """The score of a kind, measured once."""
        if kind not in self._scores:
            self._scores[kind] = METRICS[kind].load()(self)
        return self._scores[kind]


def kinds(reference: Reference, count: int, *, classes: bool = False) -> tuple[str, ...]:
    """The scores that `measure` gives of so many images, whatever the images are; `classes` if theirs are known.

    ValueError for a row of the table of metrics without a function, so before anything is measured.
    """
    train = reference.train
    there = {
        "spatial": train.spatial is not None,
        "logits": train.logits is not None,
        "held-out": reference.test is not None,
        "many": _can_extrapolate(count, train.features.shape[1]),
        "classes": classes,
    }
    found = [m for m in METRICS.values() if m.function and all(there[need] for need in m.needs)]
    for metric in found:
        metric.load()
    return tuple(metric.kind for metric in found)


def measure(
    generated: Seen, reference: Reference, *, seed: int, small_ok: bool = False, classes: bool = False
) -> Scores:
    """The scores of `generated` by kind: `value`, where there is one `low` and `high`, `floor`, and terms.

    Those of `kinds`, as their functions have them. The intervals are of 95 % and tell only what the choice of images
    does: by `sampling_deviation`, or of shares by Wilson with both manifolds taken as given. `floor` is the same of as
    many held-out real images, as far as there are so many. `classes` if the labels are the detector's classes.
    ValueError for too few images unless small_ok (then `small` marks them), for images that are the reference's own,
    and as the single measures.
    """
    measurement = Measurement(generated, reference, seed, small_ok)
    # Statistics of a file come without the parts that only images have.
    lacking = {"spatial": generated.spatial is None, "logits": generated.logits is None}
    wanted = [
        kind
        for kind in kinds(reference, len(generated.features), classes=classes)
        if not any(lacking.get(need) for need in METRICS[kind].needs)
    ]
    found = {kind: dict(measurement.score(kind)) for kind in wanted}
    if reference.test is not None:
        real = _held_out(reference, len(generated.features), seed)
        for kind in wanted:
            if METRICS[kind].floor and _has_floor(METRICS[kind], real):
                found[kind]["floor"] = real.score(kind)["value"]
    return found


def frechet(of: Measurement) -> dict[str, Any]:
    """Frechet distance of the features; ValueError for images that are those of the reference itself."""
    rows, train = of.generated.features, of.reference.train
    n, d = rows.shape
    # All rows of both sets are here: then rank-deficient covariances need not be formed.
    whole = len(train.features) == train.statistics.count and min(n, len(train.features)) <= d
    distance = (
        frechet_from_features(rows, train.features, small_ok=of.small_ok)
        if whole
        else frechet_distance(of.generated.statistics, train.statistics, small_ok=of.small_ok)
    )
    if distance.identical:
        raise ValueError("the images are those of the reference itself: every distance would be 0 and say nothing")
    return {
        **_with_interval(partial(_frechet, rows, train.statistics), of.generated, of.seed, distance.value),
        **_terms(distance),
        "effective_rank": distance.x_rank,
        "reference_rank": distance.y_rank,
    }


def frechet_at_infinity(of: Measurement) -> dict[str, Any]:
    """Frechet distance extrapolated to infinitely many images."""
    rows, real = of.generated.features, of.reference.train.statistics
    line = extrapolated_frechet(rows, real, seed=of.seed, small_ok=of.small_ok)
    return {"value": line.intercept, "slope": line.slope, "residual": line.residual}


def spatial_frechet(of: Measurement) -> dict[str, Any]:
    """Frechet distance of the spatial features."""
    spatial = frechet_distance(of.generated.spatial, of.reference.train.spatial, small_ok=of.small_ok)
    return {"value": spatial.value, **_terms(spatial)}


def kernel_distance(of: Measurement) -> dict[str, Any]:
    """Kernel distance (KID)."""
    found = kid(of.generated.features, of.reference.train.features, seed=of.seed)
    return {"value": found.value, "subset_sd": found.subset_sd, "subset_size": found.subset_size}


def inception(of: Measurement) -> dict[str, Any]:
    """Inception score over the detector's classes."""
    return _with_interval(partial(_inception_score, of.generated), of.generated, of.seed)


def precision(of: Measurement) -> dict[str, Any]:
    """Share of generated images on the real manifold."""
    return _share(of.precision_recall.precision, len(of.generated.features))


def recall(of: Measurement) -> dict[str, Any]:
    """Share of real images on the generated manifold, in all and by class."""
    real, found = of.reference, _share(of.precision_recall.recall, len(of.reference.manifold))
    if real.train.labels is not None:
        found["by_class"] = _by_class(of.precision_recall.real_inside, real.train.labels[real.manifold_rows])
    return found


def density(of: Measurement) -> dict[str, Any]:
    """Density of the real manifold at the generated images."""
    return {"value": of.density_coverage.density}


def coverage(of: Measurement) -> dict[str, Any]:
    """Share of real images with a generated one beside them."""
    return _share(of.density_coverage.coverage, len(of.reference.manifold))


def memorised(of: Measurement) -> dict[str, Any]:
    """Probability that an image lies closer to the training images than a held-out one does."""
    held_out = of.reference.test_nearest
    ours = nearest_training(of.generated.features, of.reference.train.features)
    closer = memorisation(ours, held_out)
    return {
        "value": closer.closer,
        "p": closer.p_value,
        "copies": int((ours.distance == 0).sum()),
        "median_distance": float(ours.distance.median()),
        "median_test_distance": float(held_out.distance.median()),
    }


def class_agreement(logits: Float[Tensor, "b k"], labels: Integer[Tensor, " b"]) -> Share:
    """Share of images whose most likely class is the one that was asked for, with its 95 % Wilson interval.

    logits come from a detector on the generated images, labels (0..k-1) are the conditions of those images.
    ValueError if there are no images, a logit is NaN, or a label is not one of the k classes.
    """
    count, classes = logits.shape
    if count == 0:
        raise ValueError("got no images; class agreement needs at least one")
    if logits.isnan().any():
        raise ValueError(f"the logits of row {int(logits.isnan().any(dim=1).nonzero()[0])} hold NaN")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}; allowed are 0 to {classes - 1}")
    successes = int((logits.argmax(dim=1) == labels.to(logits.device)).sum())
    interval = wilson(successes, count)
    return Share(successes / count, interval.low, interval.high, count)


def agreement(of: Measurement) -> dict[str, Any]:
    """Share of images that the detector takes for the class that was asked for, in all and by class."""
    logits, labels = of.generated.logits, of.generated.labels
    assert logits is not None and labels is not None
    found = class_agreement(logits, labels)
    by_class = _by_class(logits.argmax(dim=1) == labels, labels)
    return {"value": found.value, "low": found.low, "high": found.high, "by_class": by_class}


@lru_cache(maxsize=8)
def _held_out(reference: Reference, count: int, seed: int) -> Measurement:
    """Held-out real images beside the reference, as many as were generated if there are so many."""
    test = reference.test
    rows = test.features[:count]
    logits = None if test.logits is None else test.logits[:count]
    return Measurement(Seen(statistics(rows), None, rows, logits, None), reference, seed, small_ok=True)


def _has_floor(metric: Metric, real: Measurement) -> bool:
    """Whether the held-out images have what a score needs."""
    n, d = real.generated.features.shape
    there = {"logits": real.generated.logits is not None, "many": _can_extrapolate(n, d)}
    return all(there.get(need, False) for need in metric.needs)


def _terms(distance: Frechet) -> dict[str, Any]:
    return {key: getattr(distance, key) for key in ("mean_term", "covariance_term", "small", "d")}


def _frechet(rows: torch.Tensor, of: Statistics, chosen: np.ndarray) -> float:
    return frechet_distance(statistics(rows[chosen]), of, small_ok=True).value


def _inception_score(of: Seen, chosen: np.ndarray) -> float:
    return inception_score(of.logits[chosen]).value


def _with_interval(
    statistic: Callable[[np.ndarray], float], of: Seen, seed: int, value: float | None = None
) -> dict[str, float]:
    """A value, by default the statistic of all rows, with the 95 % interval that the spread of halves gives it."""
    count = len(of.features)
    value = statistic(np.arange(count)) if value is None else value
    if count < 4:
        return {"value": value}
    deviation = sampling_deviation(statistic, _strata(of), seed=seed)
    reach = _NORMAL * deviation
    return {"value": value, "low": value - reach, "high": value + reach, "deviation": deviation}


def _strata(of: Seen) -> np.ndarray:
    """The labels if every class was drawn as often as the others, which other draws would repeat; else one stratum."""
    counts = np.bincount(of.labels.numpy()) if of.labels is not None else np.zeros(0)
    balanced = counts.size > 0 and counts.max() - counts.min() <= 1
    return of.labels.numpy() if balanced else np.zeros(len(of.features), np.int64)


def _can_extrapolate(count: int, dimensions: int) -> bool:
    return count // _SMALLEST_SHARE >= 2 * dimensions


def _share(value: float, count: int) -> dict[str, Any]:
    interval = wilson(round(value * count), count)
    return {"value": value, "low": interval.low, "high": interval.high}


def _by_class(hits: torch.Tensor, labels: torch.Tensor) -> list[float | None]:
    """Share of hits of each class, None of one that has no image."""
    counts = torch.bincount(labels)
    shares = torch.bincount(labels, hits.double(), len(counts)) / counts
    return [float(share) if count else None for share, count in zip(shares, counts, strict=True)]
