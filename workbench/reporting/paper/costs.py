"""What training costs: seconds of a run's phases, and of everything that a run needed before it."""

from collections.abc import Mapping, Sequence
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


def timed_run(run: Run) -> Timed:
    """Seconds of each phase of a run, as `seconds_at` counts; ValueError if nothing was logged."""
    ends = _phases(run)
    steps, seconds = np.diff([0, *ends]), np.diff(seconds_at(run, [0, *ends]))
    return Timed(tuple(int(count) for count in steps), tuple(float(part) for part in seconds))


def seconds_at(run: Run, steps: Sequence[int]) -> np.ndarray:
    """Training seconds of the run's own to reach each step; ValueError if nothing was logged.

    Every step counts as the median of its phase, so that a machine that slept, or a run that was paused or begun with
    a compilation, does not cost what it waited.
    """
    metrics = run.metrics
    if not metrics:
        raise ValueError(f"run {run.name} has no metrics; it was not trained")
    logged = np.array([0, *(record["step"] for record in metrics)])
    times = np.array([0.0, *(record["seconds"] for record in metrics)])
    count = np.diff(logged)
    middles, paces = ((logged[1:] + logged[:-1]) / 2)[count > 0], (np.diff(times)[count > 0] / count[count > 0])
    ends = _phases(run)
    starts, spent = [0, *ends[:-1]], [0.0]
    for start, end in zip(starts, ends, strict=True):
        inside = (start <= middles) & (middles <= end)
        if not inside.any():  # a phase that is shorter than the logging is
            inside = np.abs(middles - (start + end) / 2) == np.abs(middles - (start + end) / 2).min()
        spent.append(spent[-1] + (end - start) * float(np.median(paces[inside])))
    return np.interp(steps, [0, *ends], spent)


def _phases(run: Run) -> list[int]:
    """The last step of each phase: with alignment and, if it stops, without."""
    last, stop = run.config.training.steps, run.config.objective.options.get("stop_step")
    return [last] if stop is None or not 0 < stop < last else [stop, last]


def teacher_seconds(run: Run, teachers: Mapping[int, Run]) -> float:
    """Seconds of the run's teacher, that of the same seed, up to the step that taught; 0 for a run without one.

    ValueError if it has one that is not among `teachers`.
    """
    options = run.config.objective.options
    if options.get("teacher") is None:
        return 0.0
    teacher = teachers.get(run.config.training.seed)
    if teacher is None:
        raise ValueError(f"the teacher of {run.name} is not there, so its cost is not known")
    step = options.get("teacher_step") or teacher.config.training.steps
    return float(seconds_at(teacher, [step])[0])
