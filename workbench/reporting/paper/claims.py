"""Verdict on a claim of the paper from paired seeds: it holds, it does not hold, or it is inconclusive."""

from collections.abc import Mapping

from workbench.evaluation.statistics import Paired, paired, t_test
from workbench.reporting.paper.artifact import NO_RUNS, Claim

HOLDS, FAILS = "holds here", "does not hold here"


def claim(
    text: str, base: Mapping[int, float], other: Mapping[int, float], *, lower: bool, of: str, names: tuple[str, str]
) -> Claim:
    """Whether `other` is better than `base`, paired by training seed; `names` are the two models, `of` is the score.

    The claim holds if the 95 % t interval of the mean difference excludes 0 and all seeds agree, and fails if both
    show the opposite. The interval and the p of the paired t test are of this comparison alone and assume normal
    differences.
    """
    shared = base.keys() & other.keys()
    if len(shared) < 2:
        return Claim(
            text, inconclusive(len(shared)), _one(base, other, of, names) if shared else "There is no pair of runs."
        )
    pairs = paired(base, other)
    better = -1 if lower else 1
    p = t_test(list(pairs.differences.values()))
    return Claim(text, verdict(pairs, better), _confidence(pairs, better, of, names), p)


def verdict(pairs: Paired, better: int) -> str:
    """Verdict from paired differences, of which those with the sign of `better` (+1 or -1) support the claim."""
    values = [better * value for value in pairs.differences.values()]
    sure = pairs.interval is not None and not pairs.interval.low <= 0 <= pairs.interval.high
    if sure and all(value > 0 for value in values):
        return HOLDS
    if sure and all(value < 0 for value in values):
        return FAILS
    return inconclusive(len(values))


def inconclusive(count: int) -> str:
    """Verdict for too few or disagreeing seeds."""
    return NO_RUNS if count == 0 else f"inconclusive with {count} seed{'s'[: count > 1]}"


def seed_verdict(better: bool, worse: bool) -> str:
    """Verdict from the runs of a single training seed, by intervals over images."""
    return "holds for this seed" if better else "does not hold for this seed" if worse else inconclusive(1)


def _confidence(pairs: Paired, better: int, of: str, names: tuple[str, str]) -> str:
    count, interval = len(pairs.differences), pairs.interval
    assert interval is not None  # there are at least two pairs
    agreeing = sum(better * value > 0 for value in pairs.differences.values())
    return (
        f"{of} of {names[1]} minus that of {names[0]}: {_signed(pairs.mean)} "
        f"(95\u202f% t interval {_signed(interval.low)} to {_signed(interval.high)}); "
        f"better in {agreeing} of {count} seeds; sign-flip p = {pairs.test.p:.2g} (with this many seeds at "
        f"least {pairs.test.least:.2g})."
    )


def _one(base: Mapping[int, float], other: Mapping[int, float], of: str, names: tuple[str, str]) -> str:
    (seed,) = base.keys() & other.keys()
    return f"{of}, seed {seed}: {names[1]} {other[seed]:.3g}, {names[0]} {base[seed]:.3g}."


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")
