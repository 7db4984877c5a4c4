"""Read the YAML file of a sweep and plan its jobs.

A sweep has rows or a grid over presets, seeds, and how runs are scored (`load_sweep`). `plan` resolves every row to a
run and orders the jobs: teachers first, each run once.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from workbench import plugins
from workbench.config import (
    Config,
    SamplingConfig,
    TrainingConfig,
    as_overrides,
    check_plugin,
    coerce,
    fingerprint,
    is_of_a_run,
    load_config,
    presets,
    read_yaml,
    record_options,
    refuse_unknown,
    teacher_overrides,
    written,
)
from workbench.config.ranges import shown
from workbench.runs.store import run_fingerprint

_NAME = re.compile(r"\w[\w.+=,-]*")  # names of folders on every system
_UNFIT = re.compile(r"[^\w.+-]+")
_KEYS = ("name", "base", "overrides", "rows", "grid", "seeds", "evaluate")
_ROW_KEYS = ("name", "base", "overrides")
_MOST_ROWS = 10_000
_SAMPLING = ("count", "sampler", "steps", "guidance_scale")


@dataclass(frozen=True)
class RowSpec:
    """A row: a preset or configuration file, and its overrides, such as "training.steps=500"."""

    name: str
    base: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """How rows are scored; None is as in the ``sampling`` section of the row's configuration."""

    count: int | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    detector: tuple[str, ...] = ("clf64",)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The same as overrides of a configuration."""
        given = {key: getattr(self, key) for key in _SAMPLING}
        return overrides_of({f"sampling.{key}": value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: every row with every seed. ``overrides`` apply to all rows and their teachers."""

    name: str
    rows: tuple[RowSpec, ...]
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    evaluate: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        if not self.rows or not self.seeds:
            raise ValueError(f"sweep {self.name} needs at least one row and one seed")
        for name in (self.name, *(row.name for row in self.rows)):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a name: allowed are letters, digits and _ . + = , -")
        for what, values in (("row", [row.name for row in self.rows]), ("seed", self.seeds)):
            twice = next((value for value, count in Counter(values).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"sweep {self.name} has {what} {twice} twice")
        seeded = next((row.name for row in self.rows if _sets(row.overrides, "training.seed")), None)
        if seeded or _sets(self.overrides, "training.seed"):
            raise ValueError(
                f"{seeded or 'overrides'}: training.seed is set by seeds; remove it from overrides or grid"
            )


def load_sweep(file: str | Path) -> SweepSpec:
    """The sweep that a YAML file describes.

    ``name`` (the file's by default), ``rows`` (a preset, or ``name``, ``base`` and ``overrides``) or ``base`` alone,
    ``grid`` (lists of values by dotted option, crossed with each other and with the rows), ``overrides`` for all,
    ``seeds``, ``evaluate``. ValueError, naming the file, for unknown keys, with the nearest right one, and for values
    of the wrong kind. The options themselves are checked by ``plan``.
    """
    file = Path(file)
    try:
        tree = read_yaml(file).value
    except FileNotFoundError as error:
        raise ValueError(f"there is no sweep file {file}") from error
    if not is_of_a_run(str(file)):  # a file in a run folder may come from someone else
        plugins.allow(*_module_paths(tree))
    try:
        return sweep_of(_mapping("a sweep", tree), file.stem)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def sweep_of(tree: Mapping[str, Any], name: str = "sweep") -> SweepSpec:
    """A sweep from nested dictionaries, as `load_sweep` reads them."""
    for key in tree:
        refuse_unknown("key", key, _KEYS)
    rows = [_row(row, tree.get("base")) for row in _list("rows", tree.get("rows", []))]
    if not rows:
        if "base" not in tree:
            raise ValueError("a sweep needs rows, or a base for its grid")
        rows = [_row({}, tree["base"])]
    grid = _mapping("grid", tree.get("grid", {}))
    count = math.prod([len(rows), *(len(_list(f"grid {key}", values)) for key, values in grid.items())])
    if count > _MOST_ROWS:
        raise ValueError(f"rows and grid come to {count:,} rows; a sweep has {_MOST_ROWS:,} at most")
    return SweepSpec(
        name=coerce("name", tree.get("name", name), str),
        rows=tuple(crossed for row in rows for crossed in _crossed(row, grid)),
        seeds=tuple(
            coerce("seeds", seed, record_options(TrainingConfig)["seed"])
            for seed in _list("seeds", tree.get("seeds", [0]))
        ),
        overrides=_overrides("overrides", tree.get("overrides", {})),
        evaluate=evaluation_of(tree.get("evaluate", {})),
    )


def _module_paths(tree: Any) -> list[str]:
    """The detectors that a sweep names by module path."""
    evaluate = tree.get("evaluate") if isinstance(tree, Mapping) else None
    named = evaluate.get("detector") if isinstance(evaluate, Mapping) else None
    listed = named if isinstance(named, list) else [named]
    return [name for name in listed if isinstance(name, str) and plugins.is_path(name)]


def evaluation_of(tree: Mapping[str, Any]) -> Evaluation:
    """How to score, from the mapping ``evaluate``; ValueError for an unknown key or detector."""
    known = {field.name for field in fields(Evaluation)}
    hints = record_options(SamplingConfig)
    values: dict[str, Any] = {}
    for key, value in _mapping("evaluate", tree).items():
        refuse_unknown("option of evaluate", key, sorted(known))
        if key == "detector":
            values[key] = tuple([value] if isinstance(value, str) else _list("evaluate.detector", value))
        elif value is not None:
            values[key] = coerce(f"evaluate.{key}", value, hints[key])
    for detector in values.get("detector", ()):
        check_plugin("detector", coerce("evaluate.detector", detector, str), option="evaluate.detector")
    return Evaluation(**values)


def overrides_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides like "training.steps=500" from values by dotted option."""
    return tuple(f"{key}={written(value)}" for key, value in values.items())


def _row(tree: Any, base: str | None) -> RowSpec:
    tree = {"base": tree} if isinstance(tree, str) else _mapping("a row", tree)
    for key in tree:
        refuse_unknown("key of a row", key, _ROW_KEYS)
    preset = tree.get("base", base)
    if not isinstance(preset, str):
        raise ValueError(f"row {tree.get('name', '')!r} needs base: a preset or a configuration file; got {preset!r}")
    name = coerce("the name of a row", tree.get("name", name_of(preset)), str)
    return RowSpec(name, preset, _overrides(f"overrides of row {name}", tree.get("overrides", {})))


def name_of(source: str) -> str:
    """Name of a row after its preset or configuration file."""
    path = Path(source)
    return (path.with_suffix("") if path.suffix in (".yaml", ".yml") else path).as_posix().strip("./").replace("/", "-")


def _crossed(row: RowSpec, grid: Mapping[str, Any]) -> Iterable[RowSpec]:
    """The row at every point of the grid, named after the last parts of the options and their values."""
    axes = [[(str(key), value) for value in _list(f"grid {key}", values)] for key, values in grid.items()]
    for point in itertools.product(*axes):
        parts = [f"{key.rpartition('.')[2]}={_UNFIT.sub('-', _plain(value))}" for key, value in point]
        yield RowSpec(",".join([row.name, *parts]), row.base, (*row.overrides, *overrides_of(dict(point))))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else written(value)


def _overrides(what: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        return overrides_of({str(key): one for key, one in value.items()})
    return as_overrides(value if isinstance(value, str) else _list(what, value))


def _sets(overrides: Iterable[str], option: str) -> bool:
    return any(text.removeprefix("--").partition("=")[0] == option for text in overrides)


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be keys with values; got {shown(value)}")
    return value


def _list(what: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list; got {shown(value)}")
    return value


@dataclass(frozen=True)
class Training:
    """A run to train, which may exist already, and its teacher if that is given by a preset."""

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
        """Its teachers, in order of training, and itself."""
        return (*(self.teacher.line if self.teacher else ()), self)


@dataclass(frozen=True)
class Job:
    """One notebook to execute: a run, and its scores if ``evaluation`` is not None.

    ``names`` are its rows (none for a run that is only a teacher), ``after`` the jobs that have to finish first.
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
        """How the run is scored; jobs with the same protocol and fingerprint are one."""
        if self.evaluation is None:
            return None
        return {**self.sampling.described(), "detector": list(self.evaluation.detector)}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the row's notebook."""
        training, evaluate = self.training, None
        if self.evaluation is not None:
            given = {key: value for key, value in asdict(self.evaluation).items() if value is not None}
            evaluate = {**given, "detector": list(self.evaluation.detector)}
        return {
            "config": training.source,
            "overrides": list(training.overrides),
            "shared": list(training.shared),
            "seed": training.seed,
            "evaluate": evaluate,
        }


def resolve(
    source: str,
    overrides: str | Iterable[str] = (),
    shared: str | Iterable[str] = (),
    seed: int = 0,
    root: Path = Path("runs"),
) -> Training:
    """The run of a preset or file with ``overrides`` and a seed; a teacher given by preset has the same seed.

    ``shared`` overrides apply to the teacher too, except those of the objective, as do those in `teacher_overrides`.
    ValueError for an unknown option, for a teacher that is neither a preset nor a run under ``root``, and for a teacher
    whose step will not be kept.
    """
    overrides, shared = as_overrides(overrides), as_overrides(shared)
    config = load_config(source, (*shared, *overrides, f"training.seed={seed}"))
    options = config.objective.options
    reference = options.get("teacher")
    if reference not in presets():
        return Training(source, overrides, shared, config, run_fingerprint(config, root), None)
    inherited = tuple(text for text in shared if not text.removeprefix("--").startswith("objective."))
    teacher = resolve(reference, teacher_overrides(config, inherited), inherited, seed, root)
    step = options.get("teacher_step")
    _check_step(step, teacher)
    step = teacher.config.training.steps if step is None else step
    own = fingerprint(config, f"{teacher.fingerprint}@{step}")
    return Training(source, overrides, shared, config, own, teacher)


def plan(spec: SweepSpec, root: Path, only: Sequence[str] = ()) -> tuple[Job, ...]:
    """All jobs of the sweep, ordered by seed, teachers before their students, each run and protocol once.

    ``only`` selects rows, with their teachers. Nothing is trained or written. ValueError, naming the row, as `resolve`.
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
    trainers: dict[str, Job] = {}  # the job that trains each run; other jobs only score it or learn from it
    for job in jobs:
        trainers.setdefault(job.fingerprint, job)
    teachers = {training.fingerprint: training for job in jobs for training in job.training.line[:-1]}
    for run, training in teachers.items():
        trainers.setdefault(run, Job(_teacher_id(training), (), training, training.config.sampling, None, ()))
    rest = [job for job in jobs if job.fingerprint not in teachers or job is not trainers[job.fingerprint]]
    for job in (*(trainers[run] for run in teachers), *rest):
        teacher, trainer = job.training.teacher, trainers[job.fingerprint]
        needed = [trainers[teacher.fingerprint].id] if teacher else []
        yield replace(job, after=(*needed, *([trainer.id] if trainer is not job else [])))


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
