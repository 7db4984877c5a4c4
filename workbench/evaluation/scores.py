"""Every score of one image set against a reference, by the features of one detector."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from workbench.evaluation.frechet import (
    Statistics,
    extrapolated_frechet,
    frechet_distance,
    frechet_from_features,
    statistics,
)
from workbench.evaluation.inception_score import inception_score
from workbench.evaluation.kernel import kid
from workbench.evaluation.manifold import density_coverage, memorisation, nearest_training, precision_recall
from workbench.evaluation.reference import Reference, Seen
from workbench.evaluation.statistics import class_agreement, sampling_deviation, wilson

# By how much a normal statistic misses its expectation at most, 19 times of 20, in standard deviations.
_NORMAL = 1.96
_SMALLEST_SHARE = 10  # the smallest subset of FD at infinite N is a tenth of the images

Scores = dict[str, dict[str, Any]]  # by kind: value, and what goes with it


def kinds(reference: Reference, count: int) -> tuple[str, ...]:
    """The scores that `measure` gives of so many images, whatever the images are."""
    train = reference.train
    given = {
        "fd": True,
        "fd-inf": _can_extrapolate(count, train.features.shape[1]),
        "sfd": train.spatial is not None,
        "kid": True,
        "is": train.logits is not None,
        "precision": True,
        "recall": True,
        "density": True,
        "coverage": True,
        "memorisation": reference.test is not None,
    }
    return tuple(kind for kind, is_given in given.items() if is_given)


def measure(generated: Seen, reference: Reference, *, seed: int, small_ok: bool = False) -> Scores:
    """The scores of `generated` by kind: `value`, where there is one `low` and `high`, `floor`, and terms.

    fd, sfd: Frechet distance of features and of spatial features. fd-inf: at infinitely many images. kid. is: inception
    score over the detector's classes. precision, recall, density, coverage. memorisation: probability that an image
    lies closer to the training images than a held-out one does. The intervals are of 95 % and tell only what the choice
    of images does: of fd and is by `sampling_deviation`, of shares by Wilson with both manifolds taken as given.
    `floor` is the same of as many held-out real images, as far as there are so many.
    ValueError for too few images unless small_ok (then `small` marks them), for images that are the reference's own,
    and as the single measures.
    """
    distances = _distances(generated, reference, seed, small_ok)
    found = {**distances, **_shares(generated, reference)}
    if generated.logits is not None:
        found["is"] = _with_interval(partial(_inception_score, generated), generated, seed)
    if reference.test_nearest is not None:
        ours = nearest_training(generated.features, reference.train.features)
        closer = memorisation(ours, reference.test_nearest)
        found["memorisation"] = {
            "value": closer.closer,
            "p": closer.p_value,
            "copies": int((ours.distance == 0).sum()),
            "median_distance": float(ours.distance.median()),
            "median_test_distance": float(reference.test_nearest.distance.median()),
        }
    if reference.test is not None:
        for kind, value in _floors(reference, len(generated.features), seed).items():
            if kind in found:
                found[kind]["floor"] = value
    return found


def agreement(generated: Seen) -> dict[str, Any]:
    """Share of images that the detector takes for the class that was asked for, in all and by class."""
    assert generated.logits is not None and generated.labels is not None
    found = class_agreement(generated.logits, generated.labels)
    right = generated.logits.argmax(dim=1) == generated.labels
    return {"value": found.value, "low": found.low, "high": found.high, "by_class": _by_class(right, generated.labels)}


def _distances(generated: Seen, reference: Reference, seed: int, small_ok: bool) -> Scores:
    train, rows = reference.train, generated.features
    n, d = rows.shape
    # All rows of both sets are here: then rank-deficient covariances need not be formed.
    whole = len(train.features) == train.statistics.count and min(n, len(train.features)) <= d
    distance = (
        frechet_from_features(rows, train.features, small_ok=small_ok)
        if whole
        else frechet_distance(generated.statistics, train.statistics, small_ok=small_ok)
    )
    if distance.identical:
        raise ValueError("the images are those of the reference itself: every distance would be 0 and say nothing")
    terms = ("mean_term", "covariance_term", "small", "d")
    found: Scores = {
        "fd": {
            **_with_interval(partial(_frechet, rows, train.statistics), generated, seed, distance.value),
            **{key: getattr(distance, key) for key in terms},
            "effective_rank": distance.x_rank,
            "reference_rank": distance.y_rank,
        }
    }
    if _can_extrapolate(n, d):
        line = extrapolated_frechet(rows, train.statistics, seed=seed, small_ok=small_ok)
        found["fd-inf"] = {"value": line.intercept, "slope": line.slope, "residual": line.residual}
    if generated.spatial is not None and train.spatial is not None:
        spatial = frechet_distance(generated.spatial, train.spatial, small_ok=small_ok)
        found["sfd"] = {"value": spatial.value, **{key: getattr(spatial, key) for key in terms}}
    kernel = kid(rows, train.features, seed=seed)
    found["kid"] = {"value": kernel.value, "subset_sd": kernel.subset_sd, "subset_size": kernel.subset_size}
    return found


def _shares(generated: Seen, reference: Reference) -> Scores:
    radii, rows, real = reference.radii, generated.features, reference.manifold
    pair = precision_recall(rows, real, half=reference.half, block=10_000, real_radii=radii["precision"])
    balls = density_coverage(rows, real, real_radii=radii["density"])
    found = {
        "precision": _share(pair.precision, len(rows)),
        "recall": _share(pair.recall, len(real)),
        "density": {"value": balls.density},
        "coverage": _share(balls.coverage, len(real)),
    }
    if reference.train.labels is not None:
        found["recall"]["by_class"] = _by_class(pair.real_inside, reference.train.labels[reference.manifold_rows])
    return found


@lru_cache(maxsize=8)
def _floors(reference: Reference, count: int, seed: int) -> Mapping[str, float]:
    """The scores of held-out real images, as many as were generated if there are so many."""
    test = reference.test
    rows = test.features[:count]
    logits = None if test.logits is None else test.logits[:count]
    held_out = Seen(statistics(rows), None, rows, logits, None)
    found = {**_distances(held_out, reference, seed, True), **_shares(held_out, reference)}
    values = {kind: score["value"] for kind, score in found.items()}
    return values if logits is None else {**values, "is": inception_score(logits).value}


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
