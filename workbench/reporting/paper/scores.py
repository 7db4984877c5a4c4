"""Scores of rows by seed, all measured alike, and what their differences are worth."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.config import SamplingConfig
from workbench.evaluation import metrics
from workbench.evaluation.metrics import metric_name
from workbench.evaluation.statistics import Paired, measured_alike, paired, t_interval
from workbench.evaluation.suite import score
from workbench.reporting.figures import Record
from workbench.reporting.paper.artifact import Missing, beside
from workbench.reporting.paper.table import Number, Protocol
from workbench.runs.store import Run

DETECTORS = {"demo": "clf64", "laptop": "clf64", "paper": "inception-2015"}  # what judges at each scale
_ODE = ("euler", "heun")
Place = tuple[str, int, int]  # row, seed, step


@dataclass(frozen=True)
class Asked:
    """Which scores are meant: of this guidance (None: each run's own) and of so many images (None: any number).

    With `evaluate` what was not scored is scored first.
    """

    guidance_scale: float | None = 1.0
    count: int | None = None
    evaluate: bool = False

    def of(self, run: Run) -> SamplingConfig:
        """The sampling of a run's configuration with these changes."""
        own = run.config.sampling
        guided = own.guidance_scale if self.guidance_scale is None else float(self.guidance_scale)
        return replace(own, guidance_scale=guided, count=own.count if self.count is None else self.count)

    def fits(self, record: Record, settings: SamplingConfig) -> bool:
        """Whether a score was measured so, by the sampler of `settings`."""
        same = ("sampler", "guidance_scale")
        alike = all(record[key] == getattr(settings, key) for key in same) and record["sampler_steps"] == settings.steps
        return alike and self.count in (None, record["n_generated"])

    @property
    def words(self) -> str:
        """As overrides of `workbench evaluate`."""
        guided = "" if self.guidance_scale in (None, 1.0) else f" guidance_scale={self.guidance_scale:g}"
        return guided + ("" if self.count is None else f" count={self.count}")


@dataclass(frozen=True)
class Scores:
    """A metric of rows by seed, by one protocol; `how` says it in words, `missing` what lacks it."""

    metric: str
    detector: str
    values: dict[str, dict[int, float]]
    floor: float | None
    protocol: Protocol | None
    how: str
    missing: tuple[Missing, ...]

    @property
    def name(self) -> str:
        """As an axis or a column says it."""
        return metric_title(self.metric, self.detector)

    def number(self, row: str) -> Number | None:
        """Mean over seeds with its 95 % t interval, from two seeds on; None if there is none."""
        found = list(self.values.get(row, {}).values())
        if not found:
            return None
        mean, digits = sum(found) / len(found), _digits(found)
        if len(found) == 1:
            return Number(mean, digits, n=1, protocol=self.protocol)
        interval = t_interval(found)
        return Number(mean, digits, interval.low, interval.high, len(found), self.protocol)

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
    asked: Asked,
) -> Scores:
    """A metric ("fid", "sfid", "is", "precision", "recall") of every run at its row's step.

    All measured alike (`measured_alike`). Runs without such a score are missing.
    """
    metrics.get_metric(metric)
    places = [(row, seed, steps[row]) for row, by_seed in runs.items() for seed in by_seed]
    found, missing = gathered(runs, places, metric, detector, asked)
    if not found:
        return Scores(metric, detector, {}, None, None, "", missing)
    values: dict[str, dict[int, float]] = {}
    for (row, seed, _), record in found.items():
        values.setdefault(row, {})[seed] = float(record["value"])
    first = next(iter(found.values()))
    floors = {record["floor"] for record in found.values() if record.get("floor") is not None}
    measured = Protocol(first["n_generated"], _kind(first), metric_title(metric, detector))
    return Scores(metric, detector, values, floors.pop() if len(floors) == 1 else None, measured, how(first), missing)


def gathered(
    runs: Mapping[str, Mapping[int, Run]],
    places: Sequence[Place],
    metric: str,
    detector: str,
    asked: Asked,
) -> tuple[dict[Place, Record], tuple[Missing, ...]]:
    """The record of each (row, seed, step), all measured alike (`measured_alike`), and what lacks one."""
    name = metric_name(detector, metrics.get_metric(metric).kind)
    known: dict[tuple[str, int], list[Record]] = {}
    for row, seed, step in places:
        run = runs[row][seed]
        settings = asked.of(run)
        if asked.evaluate and run_has(run, step):
            score(run, step, settings, detector=detector, small_ok=True)
        chosen = [r for r in run.results if (r["metric"], r["step"]) == (name, step)]
        known.setdefault((row, seed), []).extend(r for r in chosen if asked.fits(r, settings))
    alike = measured_alike(known).records
    found: dict[Place, Record] = {}
    lacking: dict[tuple[str, int], list[Run]] = {}
    for row, seed, step in places:
        record = alike.get((row, seed), {}).get(step)
        if record is None:
            lacking.setdefault((row, step), []).append(runs[row][seed])
        else:
            found[row, seed, step] = record
    missing = tuple(_unscored(several, step, detector, asked) for (_, step), several in lacking.items())
    return found, missing


def scored_steps(run: Run, metric: str, detector: str, asked: Asked) -> set[int]:
    """The steps at which a run was scored as asked."""
    name, settings = metric_name(detector, metrics.get_metric(metric).kind), asked.of(run)
    return {record["step"] for record in run.results if record["metric"] == name and asked.fits(record, settings)}


def metric_title(metric: str, detector: str) -> str:
    """What a metric of the paper may be called by this detector: FID is Inception's alone."""
    return metrics.metric_title(metric_name(detector, metrics.get_metric(metric).kind))


def run_has(run: Run, step: int) -> bool:
    """Whether the weights of that step were kept."""
    return any(checkpoint.step == step for checkpoint in run.checkpoints)


def common_steps(runs: Mapping[str, Mapping[int, Run]], groups: Mapping[str, str]) -> dict[str, int]:
    """The last step that all rows of a group trained to, for each row."""
    last = {row: min(run.config.training.steps for run in by_seed.values()) for row, by_seed in runs.items()}
    return {row: min(last[other] for other in last if groups[other] == groups[row]) for row in last}


def how(record: Record) -> str:
    """The protocol of a score in words."""
    kind = "ODE" if _kind(record) == "ode" else "SDE"
    weights = "average" if record["weights"] == "ema" else "raw"
    guided = "no guidance" if record["guidance_scale"] == 1 else f"guidance {record['guidance_scale']:g}"
    return (
        f"{record['n_generated']:,} images by {record['sampler']} ({kind}), {record['sampler_steps']} steps, {guided}, "
        f"{weights} weights, judged by {record['detector']}"
    )


def evaluate_command(run: Run, step: int, detector: str, asked: Asked) -> str:
    """`workbench evaluate` of a run at a step."""
    judge = "" if detector == "clf64" else f" --detector {detector}"
    return f"workbench evaluate {run.name}{asked.words} --step {step}{judge}"


def condensed(missing: Sequence[Missing]) -> tuple[Missing, ...]:
    """Each once."""
    return tuple(dict.fromkeys(missing))


def _unscored(runs: Sequence[Run], step: int, detector: str, asked: Asked) -> Missing:
    """One preset's runs at a step: their scores, or their weights if those were not kept."""
    told = f"{runs[0].config.name}, seed{'s'[: len(runs) > 1]} {', '.join(str(r.config.training.seed) for r in runs)}"
    if all(run_has(run, step) for run in runs):
        at = f" with{asked.words}" if asked.words else ""
        commands = (evaluate_command(run, step, detector, asked) for run in runs)
        return Missing(f"scores of {told} at step {step:,}{at}", " && ".join(commands))
    again = ["workbench", "train", str(runs[0].folder / "config.yaml"), f"training.milestone_every={step}"]
    teacher = runs[0].config.objective.options.get("teacher")
    if teacher and (runs[0].folder.parent / teacher).is_dir():  # named as it is called here
        again.append(f"objective.teacher={runs[0].folder.parent / teacher}")
    return Missing(f"weights of {told} at step {step:,}, which were not kept", beside(shlex.join(again)))


def _kind(record: Record) -> str:
    return "ode" if record["sampler"] in _ODE else "sde"


def _digits(values: Sequence[float]) -> int:
    """So many that three places are shown."""
    size = max(abs(value) for value in values)
    return 1 if size >= 100 else 2 if size >= 1 else 3
