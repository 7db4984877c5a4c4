"""What numbers are worth: which are comparable, intervals, paired differences over seeds, families of tests."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int64, Integer
from scipy.special import ndtri, stdtrit

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
)
K = TypeVar("K", bound=Hashable)
# 2^23 sums of eight bytes; more pairs than anybody trains.
_MOST_PAIRS = 24


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A share of `count` cases with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int


def protocol(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a score was measured; absent entries are None. What no workbench writes, a list, counts by its text."""
    values = (record.get(key) for key in PROTOCOL)
    return tuple(v if v is None or isinstance(v, str | int | float) else repr(v) for v in values)


@dataclass(frozen=True)
class Alike(Generic[K]):
    """Scores that were measured alike: their protocol, and the record of each run at each step, steps in order.

    `left_out` is the number of scores that were measured otherwise. Without any record the protocol is None.
    """

    protocol: tuple[Any, ...] | None
    records: dict[K, dict[int, Mapping[str, Any]]]
    left_out: int = 0

    @property
    def how(self) -> dict[str, Any]:
        """The protocol by name, without what is absent."""
        return {key: value for key, value in zip(PROTOCOL, self.protocol or (), strict=False) if value is not None}


def measured_alike(records: Mapping[K, Iterable[Mapping[str, Any]]]) -> Alike[K]:
    """Of records of one metric, by run, those that share one protocol: only such may stand side by side.

    The protocol that most runs have; of ties the one that most scores (a run at a step) have; then the one of more
    generated images; then the one that comes last, which for one run is the newest. Of two records of one run, step and
    protocol the later counts. Runs without such a score are absent. Tables, curves, comparisons and panels all choose
    by this rule.
    """
    ways: dict[tuple[Any, ...], dict[K, dict[int, Mapping[str, Any]]]] = {}
    for run, found in records.items():
        for record in found:
            way = protocol(record)
            ways[way] = ways.pop(way, {})  # the one seen last comes last
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
    ValueError if count < 1, successes lie outside 0..count or level outside (0, 1).
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"got {successes} successes of {count}; allowed are 0 <= successes <= count and count >= 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed are numbers between 0 and 1, such as 0.95")
    z = float(ndtri((1 + level) / 2))
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at count one end is 0 or 1 in exact arithmetic; rounding would leave dust of either sign there.
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
    """Standard deviation that a statistic of n rows owes to which rows were drawn: the delete-half jackknife.

    `statistic` is given the numbers of about half the rows of each stratum (equal entries of `strata`; all equal for
    rows that were drawn freely), taken without replacement by np.random.default_rng(seed). The spread of such halves
    about their mean, times sqrt(r / (n - r)) for r rows of n, estimates the deviation of the whole (Shao and Wu, Ann.
    Statist. 1989). A bootstrap would repeat rows, which lowers the rank of a covariance and shifts a Frechet distance.
    It says nothing of what another training would give. ValueError below four rows or two repeats.
    """
    count = len(strata)
    if count < 4 or repeats < 2:
        raise ValueError(f"got {count} rows and {repeats} repeats; allowed are at least 4 rows and 2 repeats")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        # Shuffled, then by stratum: every second row is half of each, odd ones rounded by turns.
        order = generator.permutation(count)
        order = order[np.argsort(strata[order], kind="stable")]
        values.append(statistic(np.sort(order[::2][: count // 2])))
    return float(np.std(values) * math.sqrt((count // 2) / (count - count // 2)))


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p of a sign-flip test, and the least p that so many pairs can give whatever their values."""

    p: float
    least: float


@dataclass(frozen=True)
class Paired:
    """Differences second - first by training seed: each, their mean, its interval (none for one pair) and the test."""

    differences: dict[int, float]
    mean: float
    interval: Interval | None
    test: SignFlip


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean: mean +- t s / sqrt(n), with t the two-sided quantile of n - 1 degrees of freedom.

    It holds for few values if they are normal, which few values cannot show.
    ValueError for fewer than two values, one that is not finite, or a level outside (0, 1).
    """
    count = len(values)
    if count < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval of a mean needs two finite values or more; got {list(values)}")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed are numbers between 0 and 1, such as 0.95")
    half = float(stdtrit(count - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = math.fsum(values) / count
    return Interval(mean - half, mean + half)


def sign_flip(differences: Sequence[float]) -> SignFlip:
    """Exact sign-flip (randomisation) test that paired differences are symmetric about 0 (Fisher 1935, section 21).

    p is the share of all 2^n sign patterns whose |sum| is at least the one seen, ties included. The pattern seen and
    its mirror image are among them, so p is never below 2^(1-n): 1/4 for 3 pairs, 1/16 for 5, 1/32 for 6.
    ValueError for no difference, more than 24, or one that is not finite.
    """
    count = len(differences)
    if not 1 <= count <= _MOST_PAIRS or not np.isfinite(differences).all():
        raise ValueError(f"a sign-flip test takes 1 to {_MOST_PAIRS} finite differences; got {list(differences)}")
    # Mirrored patterns have the same |sum|: keeping the first sign halves the work and changes no share.
    sums = np.array(differences[:1], dtype=np.float64)
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    # Sums that are equal in exact arithmetic differ by rounding here, and must still count as ties.
    dust = 1e-12 * math.fsum(map(abs, differences))
    share = np.mean(np.abs(sums) >= abs(math.fsum(differences)) - dust)
    return SignFlip(float(share), 2.0 ** (1 - count))


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95) -> Paired:
    """Differences second - first of values by training seed, at the seeds that both have.

    ValueError if they share no seed.
    """
    differences = {seed: second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())}
    if not differences:
        raise ValueError(f"no seed is shared: one has {sorted(first)}, the other {sorted(second)}")
    values = list(differences.values())
    interval = t_interval(values, level) if len(values) > 1 else None
    return Paired(differences, math.fsum(values) / len(values), interval, sign_flip(values))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values of a family, in the order given (Holm, Scand. J. Statist. 1979, step-down).

    The i-th smallest of m is multiplied by m - i + 1, is not less than the one before it and not more than 1. Calling
    those below a level differences errs anywhere in the family at most that often, however the tests depend.
    ValueError for a p outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"p values lie between 0 and 1; got {list(ps)}")
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted
