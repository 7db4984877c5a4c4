"""Shares and their confidence intervals."""

import math
from dataclasses import dataclass

from jaxtyping import Float, Integer
from scipy.special import ndtri
from torch import Tensor


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
