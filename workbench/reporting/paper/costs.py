"""Training cost: seconds of each phase of a run, and of the training of its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.runs.store import Run


@dataclass(frozen=True)
class Timed:
    """Seconds of a run by phase: with alignment and, if it stops, without."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Steps a second of each phase."""
        return tuple(steps / seconds for steps, seconds in zip(self.steps, self.seconds, strict=True))

    @property
    def total(self) -> float:
        return sum(self.seconds)


def timed_runs(runs: Sequence[Run]) -> Timed:
    """Seconds of each phase, counted as by `seconds_at`; ValueError if nothing was logged."""
    ends = _phases(runs[0])
    steps, seconds = np.diff([0, *ends]), np.diff(seconds_at(runs, [0, *ends]))
    return Timed(tuple(int(count) for count in steps), tuple(float(part) for part in seconds))


def seconds_at(runs: Sequence[Run], steps: Sequence[int]) -> np.ndarray:
    """Training seconds to reach each step, in the fastest of several runs of the same work, such as seeds.

    Each step counts as the median of its phase, which leaves out pauses, a sleeping machine and compilation.
    ValueError if nothing was logged.
    """
    ends = _phases(runs[0])
    counts, paces = np.diff([0, *ends]), np.min([_paces(run, ends) for run in runs], axis=0)
    return np.interp(steps, [0, *ends], np.cumsum([0.0, *(counts * paces)]))


def _paces(run: Run, ends: Sequence[int]) -> list[float]:
    """Seconds per step of each phase, the median over what was logged."""
    metrics = run.metrics
    if not metrics:
        raise ValueError(f"run {run.name} has no metrics; it was not trained")
    logged = np.array([0, *(record["step"] for record in metrics)])
    times = np.array([0.0, *(record["seconds"] for record in metrics)])
    steps = np.diff(logged)
    middles, paces = ((logged[1:] + logged[:-1]) / 2)[steps > 0], np.diff(times)[steps > 0] / steps[steps > 0]
    medians = []
    for start, end in zip((0, *ends), ends, strict=False):
        inside = (start <= middles) & (middles <= end)
        if not inside.any():  # the phase is shorter than the logging interval
            away = np.abs(middles - (start + end) / 2)
            inside = away == away.min()
        medians.append(float(np.median(paces[inside])))
    return medians


def _phases(run: Run) -> list[int]:
    """The last step of each phase: with alignment and, if it stops, without."""
    last, stop = run.config.training.steps, run.config.objective.options.get("stop_step")
    return [last] if stop is None or not 0 < stop < last else [stop, last]


def teacher_seconds(run: Run, teachers: Sequence[Run]) -> float:
    """Seconds of training a run's teacher, given as its seeds, up to the step that was used; 0 without a teacher.

    ValueError if the run has a teacher and `teachers` is empty.
    """
    options = run.config.objective.options
    if options.get("teacher") is None:
        return 0.0
    if not teachers:
        raise ValueError(f"the teacher of {run.name} is missing, so its cost is unknown")
    step = options.get("teacher_step") or teachers[0].config.training.steps
    return float(seconds_at(teachers, [step])[0])
