"""What a sweep has come to, and what it would take: its results as data, and the table of a dry run."""

import contextlib
import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.config import flatten
from workbench.files import write_json
from workbench.reporting.sweep.progress import finished, runs_by_fingerprint
from workbench.reporting.sweep.records import Place, read_job
from workbench.reporting.sweep.rows import Job
from workbench.reporting.sweep.specification import SweepSpec
from workbench.runs.state import LIVE
from workbench.runs.store import Run


@dataclass(frozen=True)
class Standing:
    """What there is of a job, and the seconds that the rest will take; None if nothing comparable was measured."""

    job: Job
    there: str
    teaches: int
    seconds: float | None


def standings(jobs: Sequence[Job], place: Place, root: Path) -> list[Standing]:
    """A standing for each job. Seconds are those of runs here with the same backbone and batch; nothing is started.

    Of the same method where there are such runs, and with scoring where an earlier row was scored alike.
    """
    runs, found = runs_by_fingerprint(root), []
    pace, scoring = _Pace(list(runs.values())), _scoring(root)
    for job in jobs:
        run, done = runs.get(job.fingerprint), finished(job, place, runs) is not None
        teaches = sum(job.id in other.after and other.fingerprint != job.fingerprint for other in jobs)
        seconds = 0.0 if done else _seconds(job, run, pace, scoring)
        found.append(Standing(job, "finished" if done else _there(job, run), teaches, seconds))
    return found


def results(spec: SweepSpec, jobs: Sequence[Job], place: Place, root: Path) -> list[dict[str, Any]]:
    """A record for each row and seed that is finished: run, fingerprint, step, scores; the same however it came."""
    runs, found = runs_by_fingerprint(root), {}
    for job in jobs:
        record = finished(job, place, runs)
        for name in job.names if record is not None else ():
            config = job.training.config
            about = {
                "row": name,
                "seed": job.training.seed,
                "run": runs[job.fingerprint].name,
                "fingerprint": job.fingerprint,
            }
            about |= {"method": config.objective.name, "backbone": config.backbone.name, "step": config.training.steps}
            found[name, job.training.seed] = {**about, "scores": record.get("scores", {})}
    return [found[key] for key in itertools.product([row.name for row in spec.rows], spec.seeds) if key in found]


def write_results(spec: SweepSpec, jobs: Sequence[Job], place: Place, root: Path) -> None:
    """Write `results` into ``results.json`` of the sweep, with how they were measured."""
    how = {"name": spec.name, "seeds": list(spec.seeds), "evaluate": asdict(spec.evaluate)}
    write_json(place.results, {**how, "rows": results(spec, jobs, place, root)})


def _there(job: Job, run: Run | None) -> str:
    steps = job.training.config.training.steps
    status = {"state": "created", "step": 0} if run is None else run.status
    if status["state"] == "finished":
        if job.evaluation is None:
            return "trained, to show"
        return "scored, to show" if _is_scored(job, run) else "trained, to score"
    if status["state"] in LIVE and "remark" not in status:
        return f"step {status['step']:,} of {steps:,}, {status['state']} elsewhere"
    saved = _saved(run)
    return f"step {saved:,} of {steps:,}" if saved else "to train"


def _is_scored(job: Job, run: Run) -> bool:
    """Whether every detector has scored the last step by the protocol of the job."""
    assert job.evaluation is not None
    from workbench.evaluation.generate import described  # with PyTorch, before which a sweep is checked

    how = described(run, run.config.training.steps, job.sampling)
    seen = {r.get("detector") for r in run.results if all(r.get(key) == value for key, value in how.items())}
    return seen >= set(job.evaluation.detector)


def _saved(run: Run | None) -> int:
    """The step from which a run would go on."""
    return max((each.step for each in run.checkpoints if each.resumable), default=0) if run else 0


def _seconds(job: Job, run: Run | None, pace: "_Pace", scoring: Mapping[tuple, float]) -> float | None:
    seconds, trained = 0.0, run is not None and run.status["state"] == "finished"
    if not trained:
        step = pace.seconds_a_step(job)
        if step is None:
            return None
        seconds += step * (job.training.config.training.steps - _saved(run))
    if job.evaluation is None or (trained and _is_scored(job, run)):
        return seconds
    scored = scoring.get(_scoring_key(job.protocol, job.training.config.backbone.name))
    # Without any scoring to go by, a row whose training is known is told by that alone.
    return seconds + (scored or 0.0) if scored is not None or not trained else None


class _Pace:
    """Seconds a step, from runs with the same backbone and batch, of the same method if there are such."""

    def __init__(self, runs: Sequence[Run]):
        alike: dict[tuple, list[float]] = defaultdict(list)
        for run in runs:
            status = run.status
            if status.get("seconds") and status["step"]:
                seconds = status["seconds"] / status["step"]
                config = run.config
                key = (repr(flatten(config.backbone)), config.training.batch)
                for known in (key, (*key, config.objective.name)):
                    alike[known].append(seconds)
        self._median = {key: statistics.median(values) for key, values in alike.items()}

    def seconds_a_step(self, job: Job) -> float | None:
        config = job.training.config
        key = (repr(flatten(config.backbone)), config.training.batch)
        return self._median.get((*key, config.objective.name), self._median.get(key))


def _scoring(root: Path) -> dict[tuple, float]:
    """Median seconds of scoring by what decides them, from the records of every sweep here."""
    known: dict[tuple, list[float]] = defaultdict(list)
    for file in root.glob("sweeps/*/*/job.json"):
        record = read_job(file.parent)
        seconds = record.get("spent", {}).get("score")
        if isinstance(seconds, int | float) and record.get("protocol") and record.get("backbone"):
            with contextlib.suppress(KeyError, TypeError):  # a protocol of another version
                known[_scoring_key(record["protocol"], record["backbone"])].append(seconds)
    return {key: statistics.median(values) for key, values in known.items()}


def _scoring_key(protocol: Mapping[str, Any] | None, backbone: str) -> tuple:
    assert protocol is not None
    keys = ("sampler", "steps", "count", "guidance_scale")
    return (backbone, *(protocol[key] for key in keys), *protocol["detector"])
