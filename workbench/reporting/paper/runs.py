"""Which runs a row of the paper is made of: found by preset and seed, or missing, with the command that trains them."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from workbench.config import as_overrides, load_config, refuse_unknown
from workbench.reporting.paper.artifact import Missing, beside
from workbench.reporting.paper.ours import described
from workbench.reporting.sweep.specification import SweepSpec, Training, load_sweep, resolve
from workbench.runs.store import Run, find_runs, home
from workbench.shipped import shipped

SCALES = ("demo", "laptop", "paper")
MAIN, ABLATION = (0, 1, 2, 3, 4), (0, 1, 2)  # seeds of the main table and of ablations


@dataclass(frozen=True)
class Wanted:
    """A preset without its scale ("sit-nano-2-plain"), and what is changed in it."""

    preset: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """Finished runs by row and seed, and what is missing of them.

    `teacher_steps` says of each row how many steps the model that teaches it was trained, `bare` rows have runs of
    which only records are here, without the weights that were asked for.
    """

    runs: dict[str, dict[int, Run]]
    missing: tuple[Missing, ...]
    teacher_steps: dict[str, int] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()

    def described(self, row: str, step: int | None = None) -> str | None:
        """What ours is in a row, at `step` or at its end; None if it has no runs."""
        run = next(iter(self.runs.get(row, {}).values()), None)
        return None if run is None else described(run, step, self.teacher_steps.get(row))

    @property
    def models(self) -> str:
        """Models, images and steps of all runs, each once, teachers aside."""
        return "; ".join(dict.fromkeys(described(run) for run in self.all)) or "nothing yet"

    def lack(self, needed: str, rows: Collection[str], scale: str) -> str:
        """A sentence on why `needed`, which is made of these rows, cannot be shown."""
        if self.bare & set(rows):
            return (
                f"This takes the weights of {needed}: of {scale} scale only the records of finished runs are here, "
                "without weights."
            )
        return f"This takes {needed} at {scale} scale, and there is none here yet."

    @property
    def all(self) -> tuple[Run, ...]:
        return tuple(run for by_seed in self.runs.values() for run in by_seed.values())

    def seed(self, rows: Sequence[str], seed: int | None = None) -> dict[str, Run]:
        """One run of each of the rows that have any: of that seed, else of the first that most of them share."""
        counts = [s for row in rows for s in self.runs.get(row, {})]
        if not counts:
            return {}
        chosen = max(sorted(set(counts)), key=counts.count) if seed is None else seed
        return {row: self.runs[row][chosen] for row in rows if chosen in self.runs.get(row, {})}


def runs_of(
    scale: str,
    rows: Mapping[str, str | Wanted] | Sequence[str],
    seeds: Sequence[int],
    root: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    weights: bool = False,
) -> Found:
    """The finished run of each row and seed by its fingerprint, the teacher being that of the same seed.

    `rows` are presets of the scale or rows of its sweeps (`preset_of`) by the name of the row; `overrides` are changes
    to all of them and their teachers, as a sweep has them. With `weights` a run of which only the records are here is
    missing. ValueError for an unknown scale, preset or option.
    """
    refuse_unknown("scale", scale, SCALES)
    root, overrides = home() if root is None else Path(root), as_overrides(overrides)
    named = dict(rows) if isinstance(rows, Mapping) else {row: row for row in rows}
    known = {run.fingerprint: run for run in find_runs(root)} if root.is_dir() else {}
    found: dict[str, dict[int, Run]] = {}
    missing: list[Missing] = []
    without_weights: dict[str, tuple[Wanted, dict[int, Training]]] = {}
    teacher_steps: dict[str, int] = {}
    for row, one in named.items():
        wanted = preset_of(scale, one) if isinstance(one, str) else one
        source, lacking, bare = f"{scale}/{wanted.preset}", {}, {}
        told = " ".join([source, *wanted.overrides])
        for seed in seeds:
            try:
                training = resolve(source, wanted.overrides, overrides, seed, root)
            except ValueError as error:
                load_config(source, (*overrides, *wanted.overrides))  # what does not exist is refused
                # The rest is one row's trouble, such as a teacher that is not trained long enough.
                command = sweep_command(scale, wanted, overrides) or shlex.join(["workbench", "train", source])
                missing.append(Missing(f"runs of {told}, which cannot be trained so: {error}", command))
                break
            if training.teacher is not None:
                step = training.config.objective.options.get("teacher_step")
                teacher_steps[row] = training.teacher.config.training.steps if step is None else step
            run = known.get(training.fingerprint)
            if run is None or not _finished(run):
                lacking[seed] = training
            elif weights and _bare(run):
                bare[seed] = training
            else:
                found.setdefault(row, {})[seed] = run
        if lacking:
            command = _command(scale, wanted, overrides, lacking, known)
            missing.append(Missing(f"runs of {told}, {_listed(lacking)}", command))
        if bare:
            without_weights[row] = (wanted, bare)
    missing += _without_weights(scale, overrides, without_weights)
    return Found(found, tuple(missing), teacher_steps, frozenset(without_weights))


def preset_of(scale: str, name: str) -> Wanted:
    """The preset of a scale by its name, or what "SWEEP/ROW" changes in one: a row of ``reports/sweeps/SWEEP.yaml``.

    ValueError for a row that the sweep does not have, or that trains at another scale.
    """
    stem, _, row = name.partition("/")
    file = shipped("reports/sweeps") / f"{stem}.yaml"
    if not row or not file.is_file():
        return Wanted(name)
    spec = _sweep(file, file.stat().st_mtime_ns) or load_sweep(file)
    rows = {one.name: one for one in spec.rows}
    refuse_unknown(f"row of {file.name}", row, rows)
    at, _, preset = rows[row].base.partition("/")
    if at != scale:
        raise ValueError(f"row {row} of {file.name} is of {rows[row].base}, which is not of {scale} scale")
    return Wanted(preset, rows[row].overrides)


def _without_weights(
    scale: str, shared: Sequence[str], rows: Mapping[str, tuple[Wanted, Mapping[int, Training]]]
) -> list[Missing]:
    """One entry for the rows of each sweep, and one for each row of none.

    Runs of which only records are here stay: weights are trained in another folder of runs, beside the records.
    """
    found: dict[str, tuple[list[str], list[str], set[int]]] = {}
    taught = {one.teacher.fingerprint for _, bare in rows.values() for one in bare.values() if one.teacher}
    for wanted, bare in rows.values():
        told = " ".join([f"{scale}/{wanted.preset}", *wanted.overrides])
        if all(one.fingerprint in taught for one in bare.values()):
            continue  # trained with its students
        whole, _, row = (sweep_command(scale, wanted, shared) or "").partition(" --only ")
        whole = whole or " && ".join(dict.fromkeys(train_command(one, {}) for one in bare.values()))
        presets, names, seeds = found.setdefault(whole, ([], [], set()))
        presets.append(told)
        names += [row] if row and row not in names else []
        seeds.update(bare)
    return [
        Missing(
            f"weights of {', '.join(presets)}, {_listed(sorted(seeds))}: only records are here; the command trains "
            "them again, in another folder of runs",
            beside(" ".join([whole, *_only(names)])),
        )
        for whole, (presets, names, seeds) in found.items()
    ]


def _only(names: Sequence[str]) -> list[str]:
    return ["--only", *names] if names else []


def train_command(training: Training, known: Mapping[str, Run]) -> str:
    """`workbench train` of a run after that of its teachers, which are named as they are or will be.

    Teachers among the `known` runs, by fingerprint, are not trained again.
    """
    there = {mark for mark, run in known.items() if _finished(run) and run.checkpoints}
    line = [one for one in training.line if one is training or one.fingerprint not in there]
    return " && ".join(_trained(one, known) for one in line)


def sweep_command(scale: str, wanted: Wanted, shared: Sequence[str] = ()) -> str | None:
    """The row of a sweep among ``reports/sweeps`` that trains it; None if there is none."""
    for file in sorted(shipped("reports/sweeps").glob("*.y*ml")):
        spec = _sweep(file, file.stat().st_mtime_ns)
        if spec is None or spec.overrides != tuple(shared):
            continue
        for row in spec.rows:
            if (row.base, row.overrides) == (f"{scale}/{wanted.preset}", wanted.overrides):
                return f"workbench sweep reports/sweeps/{file.name} --only {row.name}"
    return None


@lru_cache(maxsize=16)
def _sweep(file: Path, changed: int) -> SweepSpec | None:
    """The sweep of a file as of its last change; None if it cannot be read, which is said where it is executed."""
    try:
        return load_sweep(file)
    except ValueError:
        return None


def _finished(run: Run | None) -> bool:
    return run is not None and run.status["state"] == "finished"


def _bare(run: Run) -> bool:
    """Whether a run has finished and only its records are here, not its weights."""
    return _finished(run) and not run.checkpoints


def _listed(seeds: Collection[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _command(
    scale: str,
    wanted: Wanted,
    shared: Sequence[str],
    lacking: Mapping[int, Training],
    known: Mapping[str, Run],
) -> str:
    swept = sweep_command(scale, wanted, shared)
    return swept or " && ".join(dict.fromkeys(train_command(one, known) for one in lacking.values()))


def _trained(training: Training, known: Mapping[str, Run]) -> str:
    changes = [*training.shared, *training.overrides, f"training.seed={training.seed}"]
    if training.teacher is not None:
        changes.append(f"objective.teacher={_name(training.teacher, known)}")
    return shlex.join(["workbench", "train", training.source, *changes])


def _name(training: Training, known: Mapping[str, Run]) -> str:
    """The name that the run has, or will have."""
    if training.fingerprint in known:
        return known[training.fingerprint].name
    return f"{training.config.name.replace('/', '-')}-{training.fingerprint[:8]}"
