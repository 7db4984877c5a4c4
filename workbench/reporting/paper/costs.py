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
    """Seconds of each phase of a run, linear between logged steps; ValueError if nothing was logged."""
    last, stop = run.config.training.steps, run.config.objective.options.get("stop_step")
    ends = [last] if stop is None or not 0 < stop < last else [stop, last]
    starts = [0, *ends[:-1]]
    spent = seconds_at(run, [0, *ends])
    parts = np.diff(spent)
    return Timed(tuple(e - s for s, e in zip(starts, ends, strict=True)), tuple(float(part) for part in parts))


def seconds_at(run: Run, steps: Sequence[int]) -> np.ndarray:
    """Training seconds of the run's own to reach each step; ValueError if nothing was logged."""
    metrics = run.metrics
    if not metrics:
        raise ValueError(f"run {run.name} has no metrics; it was not trained")
    known = [0, *(record["step"] for record in metrics)]
    return np.interp(steps, known, [0.0, *(record["seconds"] for record in metrics)])


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
