"""Every score of one image set against a reference, by the features of one detector."""

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

# By how much a normal statistic misses its expectation at most, 19 times of 20, in standard deviations.
_NORMAL = 1.96
_SMALLEST_SHARE = 10  # the smallest subset of FD at infinite N is a tenth of the images

Scores = dict[str, dict[str, Any]]  # by kind: value, and what goes with it
_RESERVED = ("metric", "floor")  # added to what a score gives


@dataclass(frozen=True, eq=False)
class Measurement:
    """Generated images beside a reference: what the function of a score gets.

    `generated` and `reference.train` have features (n, d), float32, `statistics` (their mean and covariance), logits
    (n, k) and labels (n), or None where there are none; held-out real images have no labels. What several scores need
    is computed once, when first asked for. `seed` is that of random subsets; with `small_ok` too few images are marked
    instead of refused.
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

    def score(self, metric: Metric) -> dict[str, Any]:
        """A score, measured once. ValueError if its function gives anything but numbers and what goes with them."""
        if metric.kind not in self._scores:
            assert metric.measure is not None
            self._scores[metric.kind] = _checked(metric.kind, metric.measure(self))
        return self._scores[metric.kind]


def kinds(reference: Reference, count: int, *, classes: bool = False) -> tuple[str, ...]:
    """The scores that `measure` gives of so many images, whatever the images are; `classes` if theirs are known."""
    train = reference.train
    there = {
        "spatial": train.spatial is not None,
        "logits": train.logits is not None,
        "held-out": reference.test is not None,
        "many": _can_extrapolate(count, train.features.shape[1]),
        "classes": classes,
    }
    return tuple(m.kind for m in metrics().values() if m.measure and all(there[need] for need in m.needs))


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
    table, expected = metrics(), kinds(reference, len(generated.features), classes=classes)
    wanted = [table[kind] for kind in expected if not any(lacking.get(need) for need in table[kind].needs)]
    found = {metric.kind: dict(measurement.score(metric)) for metric in wanted}
    if reference.test is not None:
        real = _held_out(reference, len(generated.features), seed)
        for metric in wanted:
            if metric.floor and _has_floor(metric, real):
                found[metric.kind]["floor"] = real.score(metric)["value"]
    return found


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


def with_interval(
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


def share(value: float, count: int) -> dict[str, Any]:
    """A share of ``count`` images, with its 95 % Wilson interval."""
    interval = wilson(round(value * count), count)
    return {"value": value, "low": interval.low, "high": interval.high}


def by_class(hits: Bool[Tensor, " n"], labels: Integer[Tensor, " n"]) -> list[float | None]:
    """Share of hits of each class, None of one that has no image."""
    counts = torch.bincount(labels)
    shares = torch.bincount(labels, hits.double(), len(counts)) / counts
    return [float(value) if count else None for value, count in zip(shares, counts, strict=True)]


def _checked(kind: str, found: Any) -> dict[str, Any]:
    """What the function of a score gave, if it can be kept."""
    if not isinstance(found, Mapping) or not isinstance(found.get("value"), Real):
        given = {key: type(value).__name__ for key, value in found.items()} if isinstance(found, Mapping) else found
        raise ValueError(f"score {kind!r} gave {given!r}; it must give a dict whose 'value' is a number of Python")
    if taken := [key for key in _RESERVED if key in found]:
        raise ValueError(f"score {kind!r} gives {taken[0]!r}, which is added to it; call that differently")
    try:
        to_json(dict(found), kind)
    except TypeError as error:
        raise ValueError(f"score {kind!r} gave what cannot be stored: {error}") from error
    except ValueError:  # a number that is not finite, which whoever keeps the scores refuses under their names
        pass
    return dict(found)
