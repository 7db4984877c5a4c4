"""Scores over training of every row, at all steps that its runs kept, as curves with bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.evaluation.statistics import t_interval
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Missing
from workbench.reporting.paper.scores import ScoreQuery, common_floor, how, matching_records, metric_title, scored_steps
from workbench.reporting.paper.table import Number
from workbench.runs.store import Run


@dataclass(frozen=True)
class Series:
    """A metric by row, step and seed, with one protocol."""

    name: str
    values: dict[str, dict[int, dict[int, float]]]
    floor: float | None
    how: str
    missing: tuple[Missing, ...]

    def curve(self, row: str, label: str, method: str, x: Mapping[int, float | int] | None = None) -> style.Curve:
        """Means over seeds with 95 % t intervals; `x` has the position of each step, by default the step itself."""
        by_step = self.values.get(row, {})
        steps = sorted(by_step)
        means = [summary(list(by_step[step].values())) for step in steps]
        seeds = max((len(by_step[step]) for step in steps), default=0)
        return style.Curve(
            f"{label}, {seeds} seed{'s'[: seeds != 1]}",
            palette.METHODS[method],
            steps if x is None else [x[step] for step in steps],
            [mean for mean, _, _ in means],
            [low for _, low, _ in means],
            [high for _, _, high in means],
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
    query: ScoreQuery,
    steps: Sequence[int] | None = None,
) -> Series:
    """A metric of every run at `steps`, by default at all steps that were scored or kept, and the last."""
    keys = [
        (row, seed, step)
        for row, by_seed in runs.items()
        for seed, run in by_seed.items()
        for step in _steps(run, metric, detector, query)
        if steps is None or step in steps
    ]
    records, missing = matching_records(runs, keys, metric, detector, query)
    values: dict[str, dict[int, dict[int, float]]] = {}
    for (row, seed, step), record in records.items():
        values.setdefault(row, {}).setdefault(step, {})[seed] = float(record["value"])
    protocol = how(next(iter(records.values()))) if records else "nothing was scored"
    return Series(metric_title(metric, detector), values, common_floor(records.values()), protocol, missing)


def _steps(run: Run, metric: str, detector: str, query: ScoreQuery) -> list[int]:
    """Steps with a score, which need no weights, and steps with weights, some of which are not scored yet."""
    kept = {checkpoint.step for checkpoint in run.checkpoints}
    return sorted({run.config.training.steps, *kept, *scored_steps(run, metric, detector, query)})


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t interval, both equal to the mean for a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, mean, mean
    interval = t_interval(values)
    return mean, interval.low, interval.high
