"""How far a sweep is, told from the folders of its runs: what is done, what is at work, how long it will take."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.reporting.sweep.records import Place, read_job
from workbench.reporting.sweep.rows import Job
from workbench.runs.store import Run, find_runs

_SCORING = 0.2  # of a row's training, as a first guess of what scoring and showing take beside it
_TELLING = 0.02  # share of the work after which the time left is worth saying


@dataclass(frozen=True)
class Active:
    """A row at work: "starts", "trains", "scores" and the like, "" between two of them, and the step of its run."""

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
    """How a row ended: "finished", "failed", "stopped", or "left out" because one that it needs did not finish.

    ``before`` says that an earlier sweep finished it, ``cell`` and ``reason`` where and why it failed, ``notebook``
    where its record is.
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
    """Where a sweep is. ``done`` counts parts of rows too, ``ended`` holds every row that ended, in that order."""

    done: float
    total: int
    seconds_left: float | None
    active: tuple[Active, ...]
    ended: tuple[Outcome, ...]
    stopping: bool = False

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What failed, and what was left out because of that."""
        return tuple(outcome for outcome in self.ended if outcome.state in ("failed", "left out"))


def finished(job: Job, place: Place, runs: Mapping[str, Run]) -> dict[str, Any] | None:
    """The record of a job that is finished: its notebook, its run and its scores are there; else None."""
    from workbench.runs.models import stale_positions  # with PyTorch, before which a sweep is checked

    folder = place.job(job.id)
    record = read_job(folder)
    run = runs.get(job.fingerprint)
    same = record.get("fingerprint") == job.fingerprint and record.get("protocol") == job.protocol
    whole = same and record.get("state") == "finished" and (folder / "row.ipynb").is_file()
    finished = run is not None and run.status["state"] == "finished" and stale_positions(run) is None
    return record if whole and finished else None


def runs_by_fingerprint(root: Path) -> dict[str, Run]:
    """The runs under ``root``, of two with one fingerprint the older."""
    return {run.fingerprint: run for run in reversed(find_runs(root))}


class Meter:
    """Measures the jobs of a sweep by their training steps, from where they stood when it began."""

    def __init__(self, jobs: Sequence[Job], place: Place, root: Path):
        self._place, self._root, self._began = place, root, time.monotonic()
        self._folders: dict[str, Path] = {}
        self._start = {job.id: self._step(job) for job in jobs}
        self._weights = {job.id: max(self._weight(job), 1.0) for job in jobs}

    def active(self, job: Job) -> Active | None:
        """What a job does now; None while no worker has taken it."""
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
        """Jobs that are done, with parts, and the seconds that the rest will take, None while that cannot be told."""
        parts = {each.id: each for each in active}
        over = {id for id, outcome in ended.items() if outcome.state != "stopped"}
        shares = {job.id: 1.0 if job.id in over else self._share(job, parts.get(job.id)) for job in jobs}
        now = [id for id in shares if not (id in ended and (ended[id].before or ended[id].state != "finished"))]
        total = sum(self._weights[id] for id in now)
        done = sum(self._weights[id] * shares[id] for id in now)
        share = done / total if total else 1.0
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 - share) / share if share > _TELLING else None
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
