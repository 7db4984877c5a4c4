"""What training costs: seconds of a run's phases, and of everything that a run needed before it."""

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
    """Seconds of each phase, as `seconds_at` counts them of these runs; ValueError if nothing was logged."""
    ends = _phases(runs[0])
    steps, seconds = np.diff([0, *ends]), np.diff(seconds_at(runs, [0, *ends]))
    return Timed(tuple(int(count) for count in steps), tuple(float(part) for part in seconds))


def seconds_at(runs: Sequence[Run], steps: Sequence[int]) -> np.ndarray:
    """Training seconds to reach each step in the least disturbed of runs that do the same work, such as several seeds.

    Every step counts as the median of its phase, so that a machine that slept, or a run that was paused or begun with
    a compilation, does not cost what it waited. ValueError if nothing was logged.
    """
    ends = _phases(runs[0])
    counts, paces = np.diff([0, *ends]), np.min([_paces(run, ends) for run in runs], axis=0)
    return np.interp(steps, [0, *ends], np.cumsum([0.0, *(counts * paces)]))


def _paces(run: Run, ends: Sequence[int]) -> list[float]:
    """Seconds of a step in each phase, the median of those that were logged."""
    metrics = run.metrics
    if not metrics:
        raise ValueError(f"run {run.name} has no metrics; it was not trained")
    logged = np.array([0, *(record["step"] for record in metrics)])
    times = np.array([0.0, *(record["seconds"] for record in metrics)])
    steps = np.diff(logged)
    middles, paces = ((logged[1:] + logged[:-1]) / 2)[steps > 0], np.diff(times)[steps > 0] / steps[steps > 0]
    found = []
    for start, end in zip((0, *ends), ends, strict=False):
        inside = (start <= middles) & (middles <= end)
        if not inside.any():  # a phase that is shorter than the logging is
            away = np.abs(middles - (start + end) / 2)
            inside = away == away.min()
        found.append(float(np.median(paces[inside])))
    return found


def _phases(run: Run) -> list[int]:
    """The last step of each phase: with alignment and, if it stops, without."""
    last, stop = run.config.training.steps, run.config.objective.options.get("stop_step")
    return [last] if stop is None or not 0 < stop < last else [stop, last]


def teacher_seconds(run: Run, teachers: Sequence[Run]) -> float:
    """Seconds of a run's teacher, one of `teachers` by seed, up to the step that taught; 0 for a run without one.

    ValueError if it has one and there is none.
    """
    options = run.config.objective.options
    if options.get("teacher") is None:
        return 0.0
    if not teachers:
        raise ValueError(f"the teacher of {run.name} is not there, so its cost is not known")
    step = options.get("teacher_step") or teachers[0].config.training.steps
    return float(seconds_at(teachers, [step])[0])
