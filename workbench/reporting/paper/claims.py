"""What paired runs support of a claim, in words that are computed: it holds, it does not, or it cannot be told."""

from collections.abc import Mapping

from workbench.evaluation.statistics import Paired, paired
from workbench.reporting.paper.artifact import Claim

HOLDS, FAILS = "holds here", "does not hold here"


def claim(
    text: str, base: Mapping[int, float], other: Mapping[int, float], *, lower: bool, of: str, names: tuple[str, str]
) -> Claim:
    """Whether `other` is better than `base` by training seed, `names` being theirs and `of` the score.

    It holds where the 95 % t interval of the mean difference leaves out 0 and every seed agrees, and fails where both
    say the contrary. That interval is of this comparison alone, and takes differences as normal.
    """
    shared = base.keys() & other.keys()
    if len(shared) < 2:
        return Claim(text, untold(len(shared)), _one(base, other, of, names) if shared else "No pair of runs is there.")
    found = paired(base, other)
    better = -1 if lower else 1
    return Claim(text, verdict(found, better), _confidence(found, better, of, names))


def verdict(found: Paired, better: int) -> str:
    """What differences in the direction `better` (+1 or -1) support."""
    values = [better * value for value in found.differences.values()]
    sure = found.interval is not None and not found.interval.low <= 0 <= found.interval.high
    if sure and all(value > 0 for value in values):
        return HOLDS
    if sure and all(value < 0 for value in values):
        return FAILS
    return untold(len(values))


def untold(count: int) -> str:
    """The verdict of too little."""
    return "cannot be told: nothing is there" if count == 0 else f"cannot be told with {count} seed{'s'[: count > 1]}"


def _confidence(found: Paired, better: int, of: str, names: tuple[str, str]) -> str:
    count, interval = len(found.differences), found.interval
    assert interval is not None  # as there are two pairs or more
    agreeing = sum(better * value > 0 for value in found.differences.values())
    told = f"{of} of {names[1]} less that of {names[0]}: {_signed(found.mean)}"
    return (
        f"{told} (95\u202f% t interval {_signed(interval.low)} to {_signed(interval.high)}); "
        f"better in {agreeing} of {count} seeds; sign-flip p = {found.test.p:.2g}, with so many seeds at "
        f"least {found.test.least:.2g}."
    )


def _one(base: Mapping[int, float], other: Mapping[int, float], of: str, names: tuple[str, str]) -> str:
    (seed,) = base.keys() & other.keys()
    return f"{of}, seed {seed}: {names[1]} {other[seed]:.3g}, {names[0]} {base[seed]:.3g}."


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")
