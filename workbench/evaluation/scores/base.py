"""All scores of an image set against a reference, from the features of one detector."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from workbench.evaluation.frechet import statistics
from workbench.evaluation.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from workbench.evaluation.metrics import Metric, metrics
from workbench.evaluation.reference import Reference, Seen
from workbench.evaluation.statistics import sampling_deviation, wilson
from workbench.files import to_json

NORMAL = 1.96  # half the width of a normal 95 % interval, in standard deviations
_SMALLEST_SHARE = 10  # the smallest subset of FD at infinite N is a tenth of the images

Scores = dict[str, dict[str, Any]]  # by kind: value and further terms
_RESERVED = ("metric", "floor")  # added to the values that a score returns


@dataclass(frozen=True, eq=False)
class Measurement:
    """Generated images and a reference: the argument of a score's function.

    `generated` and `reference.train` have float32 features (n, d), `statistics` (their mean and covariance), logits
    (n, k) and labels (n); those that do not exist are None, such as the labels of held-out real images. Results that
    several scores need are computed once, on first access. `seed` is the seed of random subsets. With `small_ok` too
    few images are marked instead of refused.
    """

    generated: Seen
    reference: Reference
    seed: int = 0
    small_ok: bool = False
    _scores: Scores = field(default_factory=dict, repr=False)

    @cached_property
    def precision_recall(self) -> PrecisionRecall:
        real, radii = self.reference.manifold, self.reference.radii["precision"]
        return precision_recall(self.generated.features, real, half=self.reference.half, block=10_000, real_radii=radii)

    @cached_property
    def density_coverage(self) -> DensityCoverage:
        real, radii = self.reference.manifold, self.reference.radii["density"]
        return density_coverage(self.generated.features, real, real_radii=radii)

    def score(self, metric: Metric) -> dict[str, Any]:
        """A score, measured once; ValueError if its function does not return numbers that can be stored."""
        if metric.kind not in self._scores:
            assert metric.measure is not None
            self._scores[metric.kind] = _checked(metric.kind, metric.measure(self))
        return self._scores[metric.kind]


def kinds(reference: Reference, count: int, *, classes: bool = False) -> tuple[str, ...]:
    """Names of the scores that `measure` returns for `count` images; `classes` if their classes are known."""
    train = reference.train
    available = {
        "spatial": train.spatial is not None,
        "logits": train.logits is not None,
        "held-out": reference.test is not None,
        "many": _can_extrapolate(count, train.features.shape[1]),
        "classes": classes,
    }
    return tuple(m.kind for m in metrics().values() if m.measure and all(available[need] for need in m.needs))


def measure(
    generated: Seen, reference: Reference, *, seed: int, small_ok: bool = False, classes: bool = False
) -> Scores:
    """The scores of `generated` by kind (those of `kinds`): `value`, `low`, `high`, `floor` and further terms.

    `low` and `high` are a 95 % interval over the choice of generated images, by `sampling_deviation`, or for shares by
    Wilson with both manifolds taken as given; some scores have none. `floor` is the score of as many held-out real
    images, or of all if there are fewer. `classes`: whether the labels are the detector's classes. Raises ValueError
    for too few images unless small_ok (then `small` is set), for images of the reference itself, and as the individual
    scores do.
    """
    measurement = Measurement(generated, reference, seed, small_ok)
    # A file with moments only has no spatial features and no logits.
    lacking = {"spatial": generated.spatial is None, "logits": generated.logits is None}
    table, expected = metrics(), kinds(reference, len(generated.features), classes=classes)
    wanted = [table[kind] for kind in expected if not any(lacking.get(need) for need in table[kind].needs)]
    scores = {metric.kind: dict(measurement.score(metric)) for metric in wanted}
    if reference.test is not None:
        real = _held_out(reference, len(generated.features), seed)
        for metric in wanted:
            if metric.floor and _has_floor(metric, real):
                scores[metric.kind]["floor"] = real.score(metric)["value"]
    return scores


@lru_cache(maxsize=8)
def _held_out(reference: Reference, count: int, seed: int) -> Measurement:
    """Held-out real images and the reference: `count` images, or all if there are fewer."""
    test = reference.test
    assert test is not None
    rows = test.features[:count]
    logits = None if test.logits is None else test.logits[:count]
    return Measurement(Seen(statistics(rows), None, rows, logits, None), reference, seed, small_ok=True)


def _has_floor(metric: Metric, real: Measurement) -> bool:
    """Whether the held-out images meet the needs of a score."""
    n, d = real.generated.features.shape
    available = {"logits": real.generated.logits is not None, "many": _can_extrapolate(n, d)}
    return all(available.get(need, False) for need in metric.needs)


def with_interval(
    statistic: Callable[[np.ndarray], float], of: Seen, seed: int, value: float | None = None
) -> dict[str, float]:
    """A value, by default the statistic of all rows, with its 95 % interval from the spread over halves of the rows."""
    count = len(of.features)
    value = statistic(np.arange(count)) if value is None else value
    if count < 4:
        return {"value": value}
    deviation = sampling_deviation(statistic, strata(of), seed=seed)
    reach = NORMAL * deviation
    return {"value": value, "low": value - reach, "high": value + reach, "deviation": deviation}


def strata(of: Seen) -> np.ndarray:
    """Strata of the rows: the labels if the classes are balanced, as they would be in other samples; else only one."""
    if of.labels is not None and len(of.labels):
        counts = np.bincount(of.labels.numpy())
        if counts.max() - counts.min() <= 1:
            return of.labels.numpy()
    return np.zeros(len(of.features), np.int64)


def _can_extrapolate(count: int, dimensions: int) -> bool:
    return count // _SMALLEST_SHARE >= 2 * dimensions


def share(value: float, count: int) -> dict[str, Any]:
    """A fraction of ``count`` images, with its 95 % Wilson interval."""
    interval = wilson(round(value * count), count)
    return {"value": value, "low": interval.low, "high": interval.high}


def by_class(hits: Bool[Tensor, " n"], labels: Integer[Tensor, " n"]) -> list[float | None]:
    """Fraction of hits in each class; None for a class without images."""
    counts = torch.bincount(labels)
    shares = torch.bincount(labels, hits.double(), len(counts)) / counts
    return [float(value) if count else None for value, count in zip(shares, counts, strict=True)]


def _checked(kind: str, returned: Any) -> dict[str, Any]:
    """The values that the function of a score returned; ValueError if they cannot be stored."""
    if not isinstance(returned, Mapping) or not isinstance(returned.get("value"), Real):
        is_mapping = isinstance(returned, Mapping)
        shown = {key: type(value).__name__ for key, value in returned.items()} if is_mapping else returned
        raise ValueError(f"score {kind!r} returned {shown!r}; it must return a dict with a Python number under 'value'")
    if taken := [key for key in _RESERVED if key in returned]:
        raise ValueError(f"score {kind!r} returned the reserved key {taken[0]!r}; choose another name")
    try:
        to_json(dict(returned), kind)
    except TypeError as error:
        raise ValueError(f"score {kind!r} returned values that cannot be stored: {error}") from error
    except ValueError:  # a number that is not finite, which is refused when the scores are stored
        pass
    return dict(returned)
