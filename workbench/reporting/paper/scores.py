"""Scores of rows by seed, all of one protocol, and their differences."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.config import SamplingConfig
from workbench.evaluation import metrics
from workbench.evaluation.metrics import default_detector, metric_name
from workbench.evaluation.statistics import Paired, measured_alike, paired, t_interval
from workbench.evaluation.suite import score
from workbench.reporting.figures import Record
from workbench.reporting.paper.artifact import Missing, in_other_folder
from workbench.reporting.paper.table import Number, Protocol
from workbench.runs.store import Run

DETECTORS = {"demo": "clf64", "laptop": "clf64", "scenes": "clf64-scenes", "paper": "inception-2015"}
_ODE = ("euler", "heun")
Key = tuple[str, int, int]  # row, seed, step


@dataclass(frozen=True)
class ScoreQuery:
    """Selects scores by guidance (None: as configured in each run) and number of images (None: any).

    With `evaluate`, missing scores are computed first.
    """

    guidance_scale: float | None = 1.0
    count: int | None = None
    evaluate: bool = False

    def sampling(self, run: Run) -> SamplingConfig:
        """Sampling options of a run's configuration, with this guidance and number of images."""
        own = run.config.sampling
        guided = own.guidance_scale if self.guidance_scale is None else float(self.guidance_scale)
        return replace(own, guidance_scale=guided, count=own.count if self.count is None else self.count)

    def matches(self, record: Record, settings: SamplingConfig) -> bool:
        """Whether a score has this number of images, and the sampler and guidance of `settings`, by the null label."""
        same = ("sampler", "guidance_scale")
        alike = all(record[key] == getattr(settings, key) for key in same) and record["sampler_steps"] == settings.steps
        return alike and record.get("weak") is None and self.count in (None, record["n_generated"])

    @property
    def overrides(self) -> str:
        """The same as overrides of `workbench evaluate`."""
        guided = "" if self.guidance_scale in (None, 1.0) else f" guidance_scale={self.guidance_scale:g}"
        return guided + ("" if self.count is None else f" count={self.count}")


@dataclass(frozen=True)
class Scores:
    """A metric of rows by seed with one protocol, which `how` describes; `missing` lists runs without such a score."""

    metric: str
    detector: str
    values: dict[str, dict[int, float]]
    floor: float | None
    protocol: Protocol | None
    how: str
    missing: tuple[Missing, ...]

    @property
    def name(self) -> str:
        """Name for axes and columns."""
        return metric_title(self.metric, self.detector)

    def number(self, row: str) -> Number | None:
        """Mean over seeds, with its 95 % t interval from two seeds on; None without scores."""
        values = list(self.values.get(row, {}).values())
        if not values:
            return None
        mean, digits = sum(values) / len(values), _digits(values)
        if len(values) == 1:
            return Number(mean, digits, n=1, protocol=self.protocol)
        interval = t_interval(values)
        return Number(mean, digits, interval.low, interval.high, len(values), self.protocol)

    def against(self, row: str, base: str) -> Paired | None:
        """Differences row - base by seed; None if they share no seed."""
        first, second = self.values.get(base, {}), self.values.get(row, {})
        return paired(first, second) if first.keys() & second.keys() else None

    def change(self, row: str, base: str) -> Number | None:
        """Mean of `against`, with its 95 % t interval from two seeds on; None if they share no seed."""
        pair = self.against(row, base)
        if pair is None:
            return None
        low, high = (pair.interval.low, pair.interval.high) if pair.interval else (None, None)
        return Number(pair.mean, 2, low, high, len(pair.differences), signed=True)


def scores_of(
    runs: Mapping[str, Mapping[int, Run]],
    metric: str,
    *,
    detector: str,
    steps: Mapping[str, int],
    query: ScoreQuery,
) -> Scores:
    """A metric ("fid", "sfid", "is", "precision", "recall") of every run at its row's step.

    All scores share one protocol (`measured_alike`); runs without such a score are listed as missing.
    """
    metrics.get_metric(metric)
    keys = [(row, seed, steps[row]) for row, by_seed in runs.items() for seed in by_seed]
    records, missing = matching_records(runs, keys, metric, detector, query)
    if not records:
        return Scores(metric, detector, {}, None, None, "", missing)
    values: dict[str, dict[int, float]] = {}
    for (row, seed, _), record in records.items():
        values.setdefault(row, {})[seed] = float(record["value"])
    first = next(iter(records.values()))
    protocol = Protocol(first["n_generated"], _kind(first), metric_title(metric, detector))
    return Scores(metric, detector, values, common_floor(records.values()), protocol, how(first), missing)


def matching_records(
    runs: Mapping[str, Mapping[int, Run]],
    keys: Sequence[Key],
    metric: str,
    detector: str,
    query: ScoreQuery,
) -> tuple[dict[Key, Record], tuple[Missing, ...]]:
    """The record of each (row, seed, step), all of one protocol (`measured_alike`), and the missing ones."""
    name = metric_name(detector, metrics.get_metric(metric).kind)
    known: dict[tuple[str, int], list[Record]] = {}
    for row, seed, step in keys:
        run = runs[row][seed]
        settings = query.sampling(run)
        if query.evaluate and run_has(run, step):
            score(run, step, settings, detector=detector, small_ok=True)
        scored = [r for r in run.results if (r["metric"], r["step"]) == (name, step)]
        known.setdefault((row, seed), []).extend(r for r in scored if query.matches(r, settings))
    alike = measured_alike(known).records
    records: dict[Key, Record] = {}
    unscored: dict[tuple[str, int], list[Run]] = {}
    for row, seed, step in keys:
        record = alike.get((row, seed), {}).get(step)
        if record is None:
            unscored.setdefault((row, step), []).append(runs[row][seed])
        else:
            records[row, seed, step] = record
    missing = tuple(_unscored(several, step, detector, query) for (_, step), several in unscored.items())
    return records, missing


def common_floor(records: Iterable[Record]) -> float | None:
    """The score of real images, if the records agree on it."""
    floors = {record["floor"] for record in records if record.get("floor") is not None}
    return floors.pop() if len(floors) == 1 else None


def scored_steps(run: Run, metric: str, detector: str, query: ScoreQuery) -> set[int]:
    """The steps at which a run has a score that the query matches."""
    name, settings = metric_name(detector, metrics.get_metric(metric).kind), query.sampling(run)
    return {record["step"] for record in run.results if record["metric"] == name and query.matches(record, settings)}


def metric_title(metric: str, detector: str) -> str:
    """Name of a metric by its detector; only Inception's Frechet distance is called FID."""
    return metrics.metric_title(metric_name(detector, metrics.get_metric(metric).kind))


def run_has(run: Run, step: int) -> bool:
    """Whether a run has the weights of a step."""
    return any(checkpoint.step == step for checkpoint in run.checkpoints)


def common_steps(runs: Mapping[str, Mapping[int, Run]], groups: Mapping[str, str]) -> dict[str, int]:
    """For each row, the last step that all rows of its group reached."""
    last = {row: min(run.config.training.steps for run in by_seed.values()) for row, by_seed in runs.items()}
    return {row: min(last[other] for other in last if groups[other] == groups[row]) for row in last}


def how(record: Record) -> str:
    """Describe the protocol of a score."""
    kind = "ODE" if _kind(record) == "ode" else "SDE"
    weights = "average" if record["weights"] == "ema" else "raw"
    guided = "no guidance" if record["guidance_scale"] == 1 else f"guidance {record['guidance_scale']:g}"
    return (
        f"{record['n_generated']:,} images by {record['sampler']} ({kind}), {record['sampler_steps']} steps, {guided}, "
        f"{weights} weights, detector {record['detector']}"
    )


def evaluate_command(run: Run, step: int, detector: str, query: ScoreQuery) -> str:
    """Command that scores a run at a step."""
    option = "" if detector == default_detector(run.config.data.name) else f" --detector {detector}"
    return f"workbench evaluate {run.name}{query.overrides} --step {step}{option}"


def unique(missing: Sequence[Missing]) -> tuple[Missing, ...]:
    """`missing` without repeats."""
    return tuple(dict.fromkeys(missing))


def _unscored(runs: Sequence[Run], step: int, detector: str, query: ScoreQuery) -> Missing:
    """Missing scores of one preset's runs at a step, or missing weights if those were not kept."""
    names = f"{runs[0].config.name}, seed{'s'[: len(runs) > 1]} {', '.join(str(r.config.training.seed) for r in runs)}"
    if all(run_has(run, step) for run in runs):
        at = f" with{query.overrides}" if query.overrides else ""
        commands = (evaluate_command(run, step, detector, query) for run in runs)
        return Missing(f"scores of {names} at step {step:,}{at}", " && ".join(commands))
    again = ["workbench", "train", str(runs[0].folder / "config.yaml"), f"training.milestone_every={step}"]
    teacher = runs[0].config.objective.options.get("teacher")
    if teacher and (runs[0].folder.parent / teacher).is_dir():  # under the name it has here
        again.append(f"objective.teacher={runs[0].folder.parent / teacher}")
    return Missing(f"weights of {names} at step {step:,}, which were not kept", in_other_folder(shlex.join(again)))


def _kind(record: Record) -> str:
    return "ode" if record["sampler"] in _ODE else "sde"


def _digits(values: Sequence[float]) -> int:
    """Number of decimals that shows three significant digits."""
    size = max(abs(value) for value in values)
    return 1 if size >= 100 else 2 if size >= 1 else 3
