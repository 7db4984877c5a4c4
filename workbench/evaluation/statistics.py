"""Statistics of scores: comparability, intervals, paired differences over seeds, and multiple tests."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int64, Integer
from scipy.special import ndtri, stdtr, stdtrit

# Two scores are comparable only if all of these agree; those from "layer" on belong to features.
PROTOCOL = (
    "n_generated",
    "n_reference",
    "sampler",
    "sampler_steps",
    "last_step",
    "shift",
    "guidance_scale",
    "guidance_low",
    "guidance_high",
    "guidance_channels",
    "weak",
    "weak_step",
    "weights",
    "sample_seed",
    "label_scheme",
    "decoder",
    "quantisation",
    "resize",
    "detector_hash",
    "reference",
    "supervised",
    "layer",
    "t",
    "count",
    "probe_seed",
    "label",
    "pooling",
    "splits",
    "precision",
    "detector_precision",
)
K = TypeVar("K", bound=Hashable)
# 2^23 sums of eight bytes; far more pairs than are ever trained.
_MOST_PAIRS = 24


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A fraction of `count` cases with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval over its `count` cases; the ends are NaN where it is undefined."""

    value: float
    low: float
    high: float
    count: int


def protocol(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a score was measured; missing entries are None. Values of unexpected types are compared by their repr."""
    values = (record.get(key) for key in PROTOCOL)
    return tuple(v if v is None or isinstance(v, str | int | float) else repr(v) for v in values)


@dataclass(frozen=True)
class Alike(Generic[K]):
    """Scores with the same protocol: the protocol, and the record of each run at each step, sorted by step.

    `left_out` is the number of scores with other protocols. Without any record the protocol is None.
    """

    protocol: tuple[Any, ...] | None
    records: dict[K, dict[int, Mapping[str, Any]]]
    left_out: int = 0

    @property
    def how(self) -> dict[str, Any]:
        """The protocol as a dictionary, without missing entries."""
        return {key: value for key, value in zip(PROTOCOL, self.protocol or (), strict=False) if value is not None}


def measured_alike(records: Mapping[K, Iterable[Mapping[str, Any]]]) -> Alike[K]:
    """Select the records of one metric, by run, that share one protocol and are therefore comparable.

    Selects the protocol of the most runs. Ties are broken by the number of scores (a run at a step), then by the number
    of generated images, then in favour of the last one, which for a single run is the newest. Of two records with the
    same run, step and protocol the later one counts. Runs without such a score are left out. Tables, curves,
    comparisons and panels all use this rule.
    """
    ways: dict[tuple[Any, ...], dict[K, dict[int, Mapping[str, Any]]]] = {}
    for run, found in records.items():
        for record in found:
            way = protocol(record)
            ways[way] = ways.pop(way, {})  # move to the end
            ways[way].setdefault(run, {})[record["step"]] = record
    if not ways:
        return Alike(None, {})

    def rank(way: tuple[Any, ...]) -> tuple[int, int, float]:
        images = dict(zip(PROTOCOL, way, strict=True))["n_generated"]
        return len(ways[way]), _count(ways[way]), float(images) if isinstance(images, int | float) else 0.0

    chosen = max(reversed(ways), key=rank)
    ordered = {run: dict(sorted(ways[chosen][run].items())) for run in records if run in ways[chosen]}
    return Alike(chosen, ordered, sum(map(_count, ways.values())) - _count(ordered))


def _count(by_run: Mapping[Any, Mapping[int, Any]]) -> int:
    return sum(map(len, by_run.values()))


def wilson(successes: int, count: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a binomial share (Wilson, JASA 1927).

    With p = successes / count and z the two-sided normal quantile of `level`, the ends q solve
    |p - q| = z sqrt(q (1 - q) / count).
    Raises ValueError if count < 1, successes are outside 0..count or level is outside (0, 1).
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"got {successes} successes of {count}; allowed are 0 <= successes <= count and count >= 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed are numbers between 0 and 1, such as 0.95")
    z = float(ndtri((1 + level) / 2))
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at count one end is exactly 0 or 1, which rounding errors would change slightly.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == count else middle + half
    return Interval(low, high)


def sampling_deviation(
    statistic: Callable[[Int64[np.ndarray, " r"]], float],
    strata: Integer[np.ndarray, " n"],
    *,
    repeats: int = 20,
    seed: int,
) -> float:
    """Standard deviation of a statistic over the sampling of its n rows, by the delete-half jackknife.

    `statistic` gets the indices of about half the rows of each stratum (equal entries of `strata`; a constant if rows
    were sampled freely), drawn without replacement by np.random.default_rng(seed). The standard deviation over such
    halves, times sqrt(r / (n - r)) for r of n rows, estimates that of the whole sample (Shao and Wu, Ann. Statist.
    1989). A bootstrap would repeat rows, which lowers the rank of a covariance and biases a Frechet distance. It does
    not include the variation between trainings. Raises ValueError for fewer than four rows or two repeats.
    """
    count = len(strata)
    if count < 4 or repeats < 2:
        raise ValueError(f"got {count} rows and {repeats} repeats; allowed are at least 4 rows and 2 repeats")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        # Shuffled, then sorted by stratum: every second row gives half of each stratum, odd sizes rounded alternately.
        order = generator.permutation(count)
        order = order[np.argsort(strata[order], kind="stable")]
        values.append(statistic(np.sort(order[::2][: count // 2])))
    return float(np.std(values) * math.sqrt((count // 2) / (count - count // 2)))


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p of a sign-flip test, and the smallest p possible with this number of pairs."""

    p: float
    least: float


@dataclass(frozen=True)
class Paired:
    """Differences second - first by training seed, their mean, its interval (None for one pair) and the test."""

    differences: dict[int, float]
    mean: float
    interval: Interval | None
    test: SignFlip


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean: mean +- t s / sqrt(n), with t the two-sided quantile of n - 1 degrees of freedom.

    For few values it assumes that they are normal, which cannot be verified from few values. Raises ValueError for
    fewer than two values, non-finite values, or a level outside (0, 1).
    """
    count = len(values)
    if count < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval of a mean needs two or more finite values; got {list(values)}")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed are numbers between 0 and 1, such as 0.95")
    half = float(stdtrit(count - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = math.fsum(values) / count
    return Interval(mean - half, mean + half)


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t test: below 1 - level exactly if `t_interval` excludes 0.

    It assumes normal differences. p is 1 if all of them are 0, and 0 if all are the same other number. Raises
    ValueError for fewer than two or a non-finite one.
    """
    count = len(differences)
    if count < 2 or not np.isfinite(differences).all():
        raise ValueError(f"a t test needs two or more finite differences; got {list(differences)}")
    mean, deviation = math.fsum(differences) / count, float(np.std(differences, ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(count - 1, -abs(mean) * math.sqrt(count) / deviation))


def sign_flip(differences: Sequence[float]) -> SignFlip:
    """Exact sign-flip (randomization) test that paired differences are symmetric about 0 (Fisher 1935, section 21).

    p is the fraction of all 2^n sign patterns whose |sum| is at least the observed one, ties included. The observed
    pattern and its negative are among them, so p is at least 2^(1-n): 1/4 for 3 pairs, 1/16 for 5, 1/32 for 6. Raises
    ValueError for no difference, more than 24, or a non-finite one.
    """
    count = len(differences)
    if not 1 <= count <= _MOST_PAIRS or not np.isfinite(differences).all():
        raise ValueError(f"a sign-flip test takes 1 to {_MOST_PAIRS} finite differences; got {list(differences)}")
    # Negated patterns have the same |sum|, so fixing the first sign halves the work and leaves the fraction unchanged.
    sums = np.array(differences[:1], dtype=np.float64)
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    # Sums that are equal in exact arithmetic may differ by rounding, and must still count as ties.
    tolerance = 1e-12 * math.fsum(map(abs, differences))
    share = np.mean(np.abs(sums) >= abs(math.fsum(differences)) - tolerance)
    return SignFlip(float(share), 2.0 ** (1 - count))


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95) -> Paired:
    """Differences second - first of values by training seed, at the seeds that both have.

    Raises ValueError if they have no common seed.
    """
    differences = {seed: second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())}
    if not differences:
        raise ValueError(f"there is no common seed: one has {sorted(first)}, the other {sorted(second)}")
    values = list(differences.values())
    interval = t_interval(values, level) if len(values) > 1 else None
    return Paired(differences, math.fsum(values) / len(values), interval, sign_flip(values))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm-adjusted p values of a family of tests, in the given order (Scand. J. Statist. 1979, step-down).

    The i-th smallest of m is multiplied by m - i + 1, and is at least the previous one and at most 1. Rejecting those
    below a level controls the family-wise error rate at that level, for any dependence of the tests. Raises ValueError
    for a p outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"p values must be between 0 and 1; got {list(ps)}")
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted
