"""Scores over training: of every row at every step that its runs kept, as curves with a band over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.evaluation.statistics import t_interval
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Missing
from workbench.reporting.paper.scores import Asked, gathered, how, metric_title, scored_steps
from workbench.reporting.paper.table import Number
from workbench.runs.store import Run


@dataclass(frozen=True)
class Series:
    """A metric by row, step and seed, by one protocol."""

    name: str
    values: dict[str, dict[int, dict[int, float]]]
    floor: float | None
    how: str
    missing: tuple[Missing, ...]

    def curve(self, row: str, label: str, method: str, places: Mapping[int, float | int] | None = None) -> style.Curve:
        """Means over the seeds of each step with 95 % t intervals; `places` are other positions than the steps."""
        by_step = self.values.get(row, {})
        steps = sorted(by_step)
        found = [summary(list(by_step[step].values())) for step in steps]
        seeds = max((len(by_step[step]) for step in steps), default=0)
        return style.Curve(
            f"{label}, {seeds} seed{'s'[: seeds != 1]}",
            palette.METHODS[method],
            steps if places is None else [places[step] for step in steps],
            [mean for mean, _, _ in found],
            [low for _, low, _ in found],
            [high for _, _, high in found],
        )

    def points(self, row: str) -> list[tuple[int, Number]]:
        """Each step with the mean over its seeds and, from two seeds on, a 95 % t interval."""
        numbers = []
        for step, by_seed in sorted(self.values.get(row, {}).items()):
            mean, low, high = summary(list(by_seed.values()))
            several = len(by_seed) > 1
            numbers.append((step, Number(mean, 2, low if several else None, high if several else None, len(by_seed))))
        return numbers


def series_of(
    runs: Mapping[str, Mapping[int, Run]],
    metric: str,
    *,
    detector: str,
    asked: Asked,
    steps: Sequence[int] | None = None,
) -> Series:
    """A metric of every run at `steps`, by default at each that was scored or kept, and at its last."""
    places = [
        (row, seed, step)
        for row, by_seed in runs.items()
        for seed, run in by_seed.items()
        for step in _steps(run, metric, detector, asked)
        if steps is None or step in steps
    ]
    found, missing = gathered(runs, places, metric, detector, asked)
    values: dict[str, dict[int, dict[int, float]]] = {}
    for (row, seed, step), record in found.items():
        values.setdefault(row, {}).setdefault(step, {})[seed] = float(record["value"])
    floors = {record["floor"] for record in found.values() if record.get("floor") is not None}
    floor = floors.pop() if len(floors) == 1 else None
    told = how(next(iter(found.values()))) if found else "nothing was scored"
    return Series(metric_title(metric, detector), values, floor, told, missing)


def _steps(run: Run, metric: str, detector: str, asked: Asked) -> list[int]:
    """Scored steps need no weights, so those of a run come from its results; of kept ones some are not scored yet."""
    kept = {checkpoint.step for checkpoint in run.checkpoints}
    return sorted({run.config.training.steps, *kept, *scored_steps(run, metric, detector, asked)})


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t interval, which for one value are the value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, mean, mean
    interval = t_interval(values)
    return mean, interval.low, interval.high
