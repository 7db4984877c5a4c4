"""From a sweep's specification to what has to be executed: every row resolved, teachers shared, in order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.config import (
    Config,
    SamplingConfig,
    as_overrides,
    fingerprint,
    load_config,
    presets,
    refuse_unknown,
    teacher_overrides,
)
from workbench.reporting.sweep.specification import Evaluation, RowSpec, SweepSpec, name_of
from workbench.runs.store import run_fingerprint


@dataclass(frozen=True)
class Training:
    """A run that is wanted, whether it exists or not, and the run that has to teach it, if that comes of a preset."""

    source: str
    overrides: tuple[str, ...]
    shared: tuple[str, ...]
    config: Config
    fingerprint: str
    teacher: "Training | None"

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def line(self) -> tuple["Training", ...]:
        """Its teachers, the first to be trained first, and itself."""
        return (*(self.teacher.line if self.teacher else ()), self)


@dataclass(frozen=True)
class Job:
    """One notebook to execute: a run, and its scores if ``evaluation`` is not None.

    ``names`` are the rows that it stands for (none for a run that only teaches), ``after`` the jobs that have to be
    finished before.
    """

    id: str
    names: tuple[str, ...]
    training: Training
    sampling: SamplingConfig
    evaluation: Evaluation | None
    after: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return self.training.fingerprint

    @property
    def protocol(self) -> dict[str, Any] | None:
        """What decides the scores beside the run; two jobs are one if this and the fingerprint are the same."""
        if self.evaluation is None:
            return None
        return {**asdict(self.sampling), "detector": list(self.evaluation.detector)}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the row's notebook."""
        training, scored = self.training, self.evaluation
        given = None if scored is None else {k: v for k, v in asdict(scored).items() if v is not None}
        return {
            "config": training.source,
            "overrides": list(training.overrides),
            "shared": list(training.shared),
            "seed": training.seed,
            "evaluate": None if given is None else {**given, "detector": list(scored.detector)},
        }


def resolve(
    source: str,
    overrides: str | Iterable[str] = (),
    shared: str | Iterable[str] = (),
    seed: int = 0,
    root: Path = Path("runs"),
) -> Training:
    """The run of a preset or file with ``overrides`` and a seed; a teacher named by preset has the same seed.

    ``shared`` overrides hold for the teacher too, but for those of the objective, and what `teacher_overrides` hands
    on. ValueError for an unknown option, for a teacher that is
    neither a preset nor a run under ``root``, and for one whose step will not be kept.
    """
    overrides, shared = as_overrides(overrides), as_overrides(shared)
    config = load_config(source, (*shared, *overrides, f"training.seed={seed}"))
    options = config.objective.options
    reference = options.get("teacher")
    if reference not in presets():
        return Training(source, overrides, shared, config, run_fingerprint(config, root), None)
    handed = tuple(text for text in shared if not text.removeprefix("--").startswith("objective."))
    teacher = resolve(reference, teacher_overrides(config, handed), handed, seed, root)
    step = options.get("teacher_step")
    _check_step(step, teacher)
    step = teacher.config.training.steps if step is None else step
    mark = fingerprint(config, f"{teacher.fingerprint}@{step}")
    return Training(source, overrides, shared, config, mark, teacher)


def plan(spec: SweepSpec, root: Path, only: Sequence[str] = ()) -> tuple[Job, ...]:
    """Every job of the sweep, teachers before their students and seeds before rows, each run and protocol once.

    ``only`` these rows, and their teachers. Nothing is trained or written. ValueError, naming the row, as `resolve`.
    """
    names = [row.name for row in spec.rows]
    for name in only:
        refuse_unknown("row", name, names)
    chosen = [row for row in spec.rows if not only or row.name in only]
    return tuple(job for seed in spec.seeds for job in _of_seed(spec, chosen, seed, root))


def _of_seed(spec: SweepSpec, rows: Sequence[RowSpec], seed: int, root: Path) -> Iterator[Job]:
    merged: dict[tuple, Job] = {}
    for row in rows:
        job = _job(spec, row, seed, root)
        key = (job.fingerprint, repr(job.protocol))
        merged[key] = replace(merged[key], names=(*merged[key].names, row.name)) if key in merged else job
    jobs = list(merged.values())
    makers: dict[str, Job] = {}  # of each run the job that trains it: others only score it, or learn from it
    for job in jobs:
        makers.setdefault(job.fingerprint, job)
    teachers = {training.fingerprint: training for job in jobs for training in job.training.line[:-1]}
    for mark, training in teachers.items():
        makers.setdefault(mark, Job(_teacher_id(training), (), training, training.config.sampling, None, ()))
    rest = [job for job in jobs if job.fingerprint not in teachers or job is not makers[job.fingerprint]]
    for job in (*(makers[mark] for mark in teachers), *rest):
        teacher, maker = job.training.teacher, makers[job.fingerprint]
        needed = [makers[teacher.fingerprint].id] if teacher else []
        yield replace(job, after=(*needed, *([maker.id] if maker is not job else [])))


def _job(spec: SweepSpec, row: RowSpec, seed: int, root: Path) -> Job:
    try:
        training = resolve(row.base, row.overrides, spec.overrides, seed, root)
        options = (*spec.overrides, *row.overrides, *spec.evaluate.overrides)
        sampling = load_config(row.base, options).sampling
    except ValueError as error:
        raise ValueError(f"row {row.name}: {error}") from error
    return Job(f"{row.name}-{seed}", (row.name,), training, sampling, spec.evaluate, ())


def _teacher_id(training: Training) -> str:
    return f"{name_of(training.source)}-{training.seed}-{training.fingerprint[:8]}"


def _check_step(step: int | None, teacher: Training) -> None:
    training = teacher.config.training
    kept = step in (None, training.steps) or (
        step < training.steps and training.milestone_every is not None and step % training.milestone_every == 0
    )
    if not kept:
        every = f"every {training.milestone_every}" if training.milestone_every else "no others"
        raise ValueError(
            f"objective.teacher_step is {step}, but the teacher {teacher.source} keeps the weights of its last step, "
            f"{training.steps}, and of {every}"
        )
