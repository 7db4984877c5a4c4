"""Rows of a benchmark: medians, confidence intervals, and whether a goal is met."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.evaluation.statistics import t_interval


@dataclass(frozen=True)
class Block:
    """A stretch of training: seconds and the trainer's CPU seconds per step, and the panels' CPU seconds per second."""

    watched: bool
    steps: int
    step: float
    trainer_cpu: float
    panels_cpu: float


@dataclass(frozen=True)
class Figure:
    """One row. ``value`` is a median, or the mean of paired blocks with its 95 % interval; None if it was skipped.

    ``met`` is "yes", "no", "unclear" where the goal lies inside the interval, or "" without a goal or a value.
    """

    what: str
    unit: str
    value: float | None
    p95: float | None = None
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    met: str = ""
    about: str = ""
    blocks: tuple[Block, ...] = ()


def lags(written: Sequence[tuple[int, float]], drawn: Sequence[tuple[int, float]]) -> np.ndarray:
    """Seconds from writing each step to the first frame that shows it or a later one; infinite if none does.

    Both are (step, time) in order; a frame is listed with its newest step.
    """
    shown, times = np.array([step for step, _ in drawn]), np.array([*(time for _, time in drawn), np.inf])
    return np.array([times[np.searchsorted(shown, step)] - time for step, time in written])


def paired(blocks: Sequence[Block]) -> list[tuple[Block, Block]]:
    """Consecutive blocks as pairs (without panels, with panels), in whichever order they were measured."""
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return [(after, before) if before.watched else (before, after) for before, after in pairs]


def verdict(goal: float | None, value: float | None, high: float | None = None, low: float | None = None) -> str:
    """Whether a goal is met: ``met`` of a row."""
    if goal is None or value is None:
        return ""
    high, low = (value if high is None else high), (value if low is None else low)
    return "yes" if high <= goal else "no" if low > goal else "unclear"


def timed(what: str, unit: str, values: Sequence[float], goal: float | None, about: str) -> Figure:
    """Row of a repeated timing; a single time has no percentile."""
    p50, p95 = np.percentile(values, (50, 95)).tolist()
    return Figure(what, unit, p50, p95 if len(values) > 1 else None, goal=goal, met=verdict(goal, p50), about=about)


def compared(blocks: Sequence[Block], where: str, goal: float, about: str) -> Iterator[Figure]:
    """Cost of panels from pairs of blocks: step time, the trainer's CPU time and the panels' own, with intervals."""
    pairs = paired(blocks)
    sides = [[block.step for block in side] for side in zip(*pairs, strict=True)]
    spread = " / ".join(f"{100 * np.std(side, ddof=1) / np.mean(side):.1f} %" for side in sides)
    about = f"{about}, a step {1e3 * np.median(sides[0]):.3g} ms, blocks without / with panels spread by {spread}"
    rows = (
        ("slowdown", "%", [100 * (b.step / a.step - 1) for a, b in pairs], goal, tuple(blocks)),
        ("trainer's CPU", "%", [100 * (b.trainer_cpu / a.trainer_cpu - 1) for a, b in pairs], None, ()),
        ("panels' CPU", "% core", [100 * (b.panels_cpu - a.panels_cpu) for a, b in pairs], None, ()),
    )
    for what, unit, values, goal, kept in rows:
        mean, within = float(np.mean(values)), t_interval(values)
        met = verdict(goal, mean, within.high, within.low)
        yield Figure(f"{what}, {where}", unit, mean, None, within.low, within.high, goal, met, about, kept)
