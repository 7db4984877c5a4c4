"""Progress of a sweep, read from the folders of its runs: running rows, ended rows, results, time left."""

import contextlib
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench import plugins
from workbench.config import flatten
from workbench.files import write_json
from workbench.reporting.sweep.records import SweepFolder, read_job
from workbench.reporting.sweep.specification import Job, SweepSpec
from workbench.runs.state import LIVE
from workbench.runs.store import Run, find_runs

_SCORING = 0.2  # first estimate of the time for scoring and plotting, as a fraction of the training
_ESTIMATED = 0.02  # fraction of the work after which the time left is estimated


@dataclass(frozen=True)
class Active:
    """A running row: its stage ("starts", "trains", "scores" ..., "" between stages) and the step of its run."""

    id: str
    stage: str
    step: int
    steps: int
    rate: float | None = None  # steps a second

    def __str__(self) -> str:
        pace = f", {self.rate:.3g} steps a second" if self.rate and self.stage == "trains" else ""
        stage = f"{self.stage}, " if self.stage else ""
        return f"{self.id}: {stage}step {self.step:,} of {self.steps:,}{pace}"


@dataclass(frozen=True)
class Outcome:
    """How a row ended: "finished", "failed", "stopped", or "left out" because a teacher did not finish.

    ``before`` is true if an earlier sweep finished it; ``cell`` and ``reason`` are where and why it failed,
    ``notebook`` is its executed notebook.
    """

    id: str
    names: tuple[str, ...]
    state: str
    reason: str = ""
    cell: str = ""
    seconds: float = 0.0
    notebook: Path | None = None
    before: bool = False

    def __str__(self) -> str:
        text = f"{self.id}: {self.state}"
        if self.state == "finished":
            return f"{text} before" if self.before else f"{text} in {self.seconds:.0f} s"
        if self.state == "stopped":
            return text
        text += f" in cell {self.cell!r}" if self.cell else ""
        return text + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Progress:
    """Progress of a sweep: ``done`` counts rows with fractions, ``ended`` has the rows that ended, in that order.

    ``queued`` has the states, such as "pending", of submitted rows that have not started, as the queue says.
    """

    done: float
    total: int
    seconds_left: float | None
    active: tuple[Active, ...]
    ended: tuple[Outcome, ...]
    stopping: bool = False
    queued: Mapping[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Rows that failed, and rows that were left out because of that."""
        return tuple(outcome for outcome in self.ended if outcome.state in ("failed", "left out"))


def finished(job: Job, place: SweepFolder, runs: Mapping[str, Run]) -> dict[str, Any] | None:
    """The record of a job if it is finished and its notebook, run and scores exist, else None."""
    folder = place.job(job.id)
    record = read_job(folder)
    run = runs.get(job.fingerprint)
    same = record.get("fingerprint") == job.fingerprint and record.get("protocol") == job.protocol
    complete = same and record.get("state") == "finished" and (folder / "row.ipynb").is_file()
    if not complete or run is None or run.status["state"] != "finished":
        return None
    from workbench.runs.models import stale_positions  # with PyTorch, which a sweep of new rows does without

    return record if stale_positions(run) is None else None


def runs_by_fingerprint(root: Path) -> dict[str, Run]:
    """The runs under ``root`` by fingerprint; of two with the same one, the older."""
    return {run.fingerprint: run for run in reversed(find_runs(root))}


class Meter:
    """Measures the progress of jobs by their training steps since the sweep began."""

    def __init__(self, jobs: Sequence[Job], place: SweepFolder, root: Path):
        self._place, self._root, self._began = place, root, time.monotonic()
        self._folders: dict[str, Path] = {}
        self._start = {job.id: self._step(job) for job in jobs}
        self._weights = {job.id: max(self._weight(job), 1.0) for job in jobs}

    def active(self, job: Job) -> Active | None:
        """The running row of a job; None if it is not running."""
        record = read_job(self._place.job(job.id))
        if record.get("state") != "running":
            return None
        status, steps = self._status(job), job.training.config.training.steps
        states = {"created": "starts", "running": "trains", "paused": "is paused", "finished": "scores"}
        stage = states.get(status.get("state", "created"), "")
        return Active(job.id, stage, status.get("step", 0), steps, status.get("rate"))

    def measure(
        self, jobs: Sequence[Job], ended: Mapping[str, Outcome], active: Sequence[Active]
    ) -> tuple[float, float | None]:
        """Number of jobs done, with fractions, and the estimated seconds left, None if they cannot be estimated yet."""
        parts = {each.id: each for each in active}
        over = {id for id, outcome in ended.items() if outcome.state != "stopped"}
        shares = {job.id: 1.0 if job.id in over else self._share(job, parts.get(job.id)) for job in jobs}
        now = [id for id in shares if not (id in ended and (ended[id].before or ended[id].state != "finished"))]
        total = sum(self._weights[id] for id in now)
        done = sum(self._weights[id] * shares[id] for id in now)
        share = done / total if total else 1.0
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 - share) / share if share > _ESTIMATED else None
        return sum(shares.values()), left

    def _share(self, job: Job, active: Active | None) -> float:
        if active is None:
            return 0.0
        return (active.step - min(self._start[job.id], active.step)) / self._weights[job.id]

    def _weight(self, job: Job) -> float:
        steps = job.training.config.training.steps
        return steps - min(self._start[job.id], steps) + _SCORING * steps

    def _step(self, job: Job) -> int:
        return self._status(job).get("step", 0)

    def _status(self, job: Job) -> dict[str, Any]:
        folder = self._folders.get(job.fingerprint)
        if folder is None:
            for run in map(Run, self._root.glob(f"*-{job.fingerprint[:8]}")):
                if (run.folder / "provenance.json").is_file() and run.fingerprint == job.fingerprint:
                    folder = self._folders[job.fingerprint] = run.folder
        return {} if folder is None else Run(folder).status


@dataclass(frozen=True)
class RowState:
    """State of a job for a dry run, and estimated seconds left; None if no comparable run was timed."""

    job: Job
    there: str
    teaches: int
    seconds: float | None


def row_states(jobs: Sequence[Job], place: SweepFolder, root: Path) -> list[RowState]:
    """The standing of each job, without starting anything.

    Seconds are estimated from runs with the same backbone and batch size, of the same method if there are any, and
    include scoring if an earlier row was scored in the same way.
    """
    runs, listed = runs_by_fingerprint(root), []
    pace, scoring = _Pace(list(runs.values())), _scoring(root)
    for job in jobs:
        run, done = runs.get(job.fingerprint), finished(job, place, runs) is not None
        teaches = sum(job.id in other.after and other.fingerprint != job.fingerprint for other in jobs)
        seconds = 0.0 if done else _seconds(job, run, pace, scoring)
        listed.append(RowState(job, "finished" if done else _there(job, run), teaches, seconds))
    return listed


def results(spec: SweepSpec, jobs: Sequence[Job], place: SweepFolder, root: Path) -> list[dict[str, Any]]:
    """A record for each finished row and seed: run, fingerprint, step and scores."""
    runs, records = runs_by_fingerprint(root), {}
    for job in jobs:
        record = finished(job, place, runs)
        if record is None:
            continue
        for name in job.names:
            config = job.training.config
            records[name, job.training.seed] = {
                "row": name,
                "seed": job.training.seed,
                "run": runs[job.fingerprint].name,
                "fingerprint": job.fingerprint,
                "method": config.objective.name,
                "backbone": config.backbone.name,
                "step": config.training.steps,
                "scores": record.get("scores", {}),
            }
    return [records[key] for key in itertools.product([row.name for row in spec.rows], spec.seeds) if key in records]


def write_results(spec: SweepSpec, jobs: Sequence[Job], place: SweepFolder, root: Path) -> None:
    """Write `results` into ``results.json`` of the sweep, with the protocol of the scores."""
    how = {"name": spec.name, "seeds": list(spec.seeds), "evaluate": asdict(spec.evaluate)}
    write_json(place.results, {**how, "rows": results(spec, jobs, place, root)})


def _there(job: Job, run: Run | None) -> str:
    if run is None:
        return "to train"
    steps, status = job.training.config.training.steps, run.status
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
    return seen >= {plugins.short_name("detector", name) for name in job.evaluation.detector}


def _saved(run: Run | None) -> int:
    """The step from which a run would resume."""
    return max((each.step for each in run.checkpoints if each.resumable), default=0) if run else 0


def _seconds(job: Job, run: Run | None, pace: "_Pace", scoring: Mapping[tuple, float]) -> float | None:
    seconds, finished_run = 0.0, run if run is not None and run.status["state"] == "finished" else None
    if finished_run is None:
        step = pace.seconds_a_step(job)
        if step is None:
            return None
        seconds += step * (job.training.config.training.steps - _saved(run))
    if job.evaluation is None or (finished_run is not None and _is_scored(job, finished_run)):
        return seconds
    scored = scoring.get(_scoring_key(job.protocol, job.training.config.backbone.name))
    # If no scoring was timed, the estimate of a row that has yet to be trained is that of its training alone.
    return seconds + (scored or 0.0) if scored is not None or finished_run is None else None


class _Pace:
    """Seconds per step, from runs with the same backbone and batch size, of the same method if there are any."""

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
    """Median seconds of scoring by `_scoring_key`, from the records of all sweeps."""
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
