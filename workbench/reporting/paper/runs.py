"""Find the runs of a row of the paper by preset and seed; missing ones come with the command that trains them."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from workbench.config import as_overrides, load_config, refuse_unknown
from workbench.reporting.paper.artifact import Missing, in_other_folder
from workbench.reporting.paper.ours import described
from workbench.reporting.sweep.specification import SweepSpec, Training, load_sweep, resolve
from workbench.runs.store import Run, find_runs, home
from workbench.shipped import shipped

# The preset of each method, and of the guiding model, at each scale.
PRESETS = {
    "demo": {"plain": "plain", "guided": "guided", "teacher": "teacher"},
    "laptop": {
        "plain": "sit-nano-2-plain",
        "vae": "sit-nano-2-vae",
        "guided": "sit-nano-2",
        "teacher": "sit-nano-2-teacher",
        "repa": "sit-nano-2-repa",
        "layersync": "sit-nano-2-layersync",
        "sra": "sit-nano-2-sra",
        "dispersive": "sit-nano-2-dispersive",
    },
    "scenes": {"plain": "plain", "guided": "guided", "teacher": "teacher", "repa": "repa"},
    "paper": {
        "plain": "sit-xl-2-256-plain",
        "vae": "sit-xl-2-256-vae",
        "guided": "sit-xl-2-256",
        "teacher": "sit-xl-2-256-teacher",
        "repa": "sit-xl-2-256-repa",
        "layersync": "sit-xl-2-256-layersync",
        "sra": "sit-xl-2-256-sra",
        "dispersive": "sit-xl-2-256-dispersive",
    },
}
SCALES = tuple(PRESETS)
MAIN, ABLATION = (0, 1, 2, 3, 4), (0, 1, 2)  # seeds of the main table and of ablations


@dataclass(frozen=True)
class Variant:
    """A preset without its scale, such as "sit-nano-2-plain", with overrides."""

    preset: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundRuns:
    """Finished runs by row and seed, and what is missing.

    `teacher_steps` has the training steps of each row's teacher; `without_weights` are rows whose weights were
    requested, but whose runs have only records.
    """

    runs: dict[str, dict[int, Run]]
    missing: tuple[Missing, ...]
    teacher_steps: dict[str, int] = field(default_factory=dict)
    without_weights: frozenset[str] = frozenset()

    def described(self, row: str, step: int | None = None) -> str | None:
        """Our run of a row in words, at `step` or at its last step; None if there is none."""
        run = next(iter(self.runs.get(row, {}).values()), None)
        return None if run is None else described(run, step, self.teacher_steps.get(row))

    @property
    def models(self) -> str:
        """Models, images and steps of all runs, without repeats and without teachers."""
        return "; ".join(dict.fromkeys(described(run) for run in self.all)) or "nothing yet"

    def why_missing(self, needed: str, rows: Collection[str], scale: str) -> str:
        """A sentence on why a figure that needs these rows, described by `needed`, cannot be shown."""
        if self.without_weights & set(rows):
            return (
                f"This needs the weights of {needed}: at {scale} scale only the records of finished runs are here, "
                "without weights."
            )
        return f"This needs {needed} at {scale} scale; not here yet."

    @property
    def all(self) -> tuple[Run, ...]:
        return tuple(run for by_seed in self.runs.values() for run in by_seed.values())

    def seed(self, rows: Sequence[str], seed: int | None = None) -> dict[str, Run]:
        """One run of each row that has this seed, by default the seed that most rows have."""
        counts = [s for row in rows for s in self.runs.get(row, {})]
        if not counts:
            return {}
        chosen = max(sorted(set(counts)), key=counts.count) if seed is None else seed
        return {row: self.runs[row][chosen] for row in rows if chosen in self.runs.get(row, {})}


def presets_of(scale: str, methods: Iterable[str]) -> dict[str, str]:
    """The presets of those methods that a scale has, in the order of `methods`. ValueError for an unknown scale."""
    refuse_unknown("scale", scale, SCALES)
    return {method: PRESETS[scale][method] for method in methods if method in PRESETS[scale]}


def runs_of(
    scale: str,
    rows: Mapping[str, str | Variant] | Sequence[str],
    seeds: Sequence[int],
    root: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    weights: bool = False,
) -> FoundRuns:
    """The finished run of each row and seed, found by its fingerprint, with the teacher of the same seed.

    `rows` are presets of the scale, or rows of its sweeps (`preset_of`), by name; `overrides` apply to all of them and
    to their teachers, as in a sweep. With `weights`, a run without weights counts as missing. ValueError for an
    unknown scale, preset or option.
    """
    refuse_unknown("scale", scale, SCALES)
    root, overrides = home() if root is None else Path(root), as_overrides(overrides)
    named = dict(rows) if isinstance(rows, Mapping) else {row: row for row in rows}
    known = {run.fingerprint: run for run in find_runs(root)} if root.is_dir() else {}
    found: dict[str, dict[int, Run]] = {}
    missing: list[Missing] = []
    without_weights: dict[str, tuple[Variant, dict[int, Training]]] = {}
    teacher_steps: dict[str, int] = {}
    for row, one in named.items():
        variant = preset_of(scale, one) if isinstance(one, str) else one
        source = f"{scale}/{variant.preset}"
        untrained: dict[int, Training] = {}
        records_only: dict[int, Training] = {}
        name = " ".join([source, *variant.overrides])
        for seed in seeds:
            try:
                training = resolve(source, variant.overrides, overrides, seed, root)
            except ValueError as error:
                load_config(source, (*overrides, *variant.overrides))  # raises for an unknown preset or option
                # Other errors concern one row, such as a teacher that is not trained long enough.
                command = sweep_command(scale, variant, overrides) or shlex.join(["workbench", "train", source])
                missing.append(Missing(f"runs of {name}, which cannot be trained like this: {error}", command))
                break
            if training.teacher is not None:
                step = training.config.objective.options.get("teacher_step")
                teacher_steps[row] = training.teacher.config.training.steps if step is None else step
            run = known.get(training.fingerprint)
            if run is None or not _finished(run):
                untrained[seed] = training
            elif weights and not run.checkpoints:
                records_only[seed] = training
            else:
                found.setdefault(row, {})[seed] = run
        if untrained:
            command = _command(scale, variant, overrides, untrained, known)
            missing.append(Missing(f"runs of {name}, {_listed(untrained)}", command))
        if records_only:
            without_weights[row] = (variant, records_only)
    missing += _without_weights(scale, overrides, without_weights)
    return FoundRuns(found, tuple(missing), teacher_steps, frozenset(without_weights))


def preset_of(scale: str, name: str) -> Variant:
    """The preset of a scale by name, or by "SWEEP/ROW" the preset and overrides of a row of a sweep.

    Sweeps are in ``reports/sweeps/SWEEP.yaml``. ValueError for a row that does not exist or is of another scale.
    """
    stem, _, row = name.partition("/")
    file = shipped("reports/sweeps") / f"{stem}.yaml"
    if not row or not file.is_file():
        return Variant(name)
    spec = _sweep(file, file.stat().st_mtime_ns) or load_sweep(file)
    rows = {one.name: one for one in spec.rows}
    refuse_unknown(f"row of {file.name}", row, rows)
    at, _, preset = rows[row].base.partition("/")
    if at != scale:
        raise ValueError(f"row {row} of {file.name} has the base {rows[row].base}, which is not of {scale} scale")
    return Variant(preset, rows[row].overrides)


def _without_weights(
    scale: str, shared: Sequence[str], rows: Mapping[str, tuple[Variant, Mapping[int, Training]]]
) -> list[Missing]:
    """Missing weights: one entry per sweep, and one for each row that is in no sweep.

    The commands train in another folder of runs, so that the records here are kept.
    """
    by_command: dict[str, tuple[list[str], list[str], set[int]]] = {}
    teachers = {one.teacher.fingerprint for _, by_seed in rows.values() for one in by_seed.values() if one.teacher}
    for variant, by_seed in rows.values():
        if all(one.fingerprint in teachers for one in by_seed.values()):
            continue  # trained with its students
        command, _, row = (sweep_command(scale, variant, shared) or "").partition(" --only ")
        command = command or " && ".join(dict.fromkeys(train_command(one, {}) for one in by_seed.values()))
        presets, names, seeds = by_command.setdefault(command, ([], [], set()))
        presets.append(" ".join([f"{scale}/{variant.preset}", *variant.overrides]))
        names += [row] if row and row not in names else []
        seeds.update(by_seed)
    return [
        Missing(
            f"weights of {', '.join(presets)}, {_listed(sorted(seeds))}: only records are here; the command trains "
            "them again, in another folder of runs",
            in_other_folder(" ".join([command, *_only(names)])),
        )
        for command, (presets, names, seeds) in by_command.items()
    ]


def _only(names: Sequence[str]) -> list[str]:
    return ["--only", *names] if names else []


def train_command(training: Training, known: Mapping[str, Run]) -> str:
    """Commands that train a run after its teachers.

    Teachers among the `known` runs, by fingerprint, are not trained again.
    """
    existing = {fingerprint for fingerprint, run in known.items() if _finished(run) and run.checkpoints}
    needed = [one for one in training.line if one is training or one.fingerprint not in existing]
    return " && ".join(_train(one, known) for one in needed)


def sweep_command(scale: str, variant: Variant, shared: Sequence[str] = ()) -> str | None:
    """Command of the row in ``reports/sweeps`` that trains a variant; None if there is none."""
    for file in sorted(shipped("reports/sweeps").glob("*.y*ml")):
        spec = _sweep(file, file.stat().st_mtime_ns)
        if spec is None or spec.overrides != tuple(shared):
            continue
        for row in spec.rows:
            if (row.base, row.overrides) == (f"{scale}/{variant.preset}", variant.overrides):
                return f"workbench sweep reports/sweeps/{file.name} --only {row.name}"
    return None


@lru_cache(maxsize=16)
def _sweep(file: Path, changed: int) -> SweepSpec | None:
    """The sweep in a file, cached by its modification time; None for a file with errors."""
    try:
        return load_sweep(file)
    except ValueError:
        return None


def _finished(run: Run) -> bool:
    return run.status["state"] == "finished"


def _listed(seeds: Collection[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _command(
    scale: str,
    variant: Variant,
    shared: Sequence[str],
    untrained: Mapping[int, Training],
    known: Mapping[str, Run],
) -> str:
    command = sweep_command(scale, variant, shared)
    return command or " && ".join(dict.fromkeys(train_command(one, known) for one in untrained.values()))


def _train(training: Training, known: Mapping[str, Run]) -> str:
    changes = [*training.shared, *training.overrides, f"training.seed={training.seed}"]
    if training.teacher is not None:
        changes.append(f"objective.teacher={_name(training.teacher, known)}")
    return shlex.join(["workbench", "train", training.source, *changes])


def _name(training: Training, known: Mapping[str, Run]) -> str:
    """Name of the run, which may not exist yet."""
    if training.fingerprint in known:
        return known[training.fingerprint].name
    return f"{training.config.name.replace('/', '-')}-{training.fingerprint[:8]}"
