"""Compare scores of runs: measured in the same way, paired by training seed, with tests and a verdict in words.

Only reads run folders; nothing is trained or generated.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.config import fingerprint, presets, refuse_unknown, to_dict
from workbench.evaluation.metrics import find_metric
from workbench.evaluation.statistics import PROTOCOL, Paired, holm, measured_alike, paired, protocol
from workbench.runs.store import Run, find_teacher, open_run

LEVEL = 0.05  # a difference is supported if its Holm-adjusted p is at most this
_LAYER = " of layer "  # between a metric and its layer in a column name
# Options that are never part of a group's label.
_UNNAMED = ("seed", "teacher", "log_every", "checkpoint_every", "keep", "milestone_every", "sharding")

Records = dict[tuple[str, int, str, int], list[dict[str, Any]]]  # by group, seed, column and step, as appended


@dataclass(frozen=True)
class Group:
    """Runs of one configuration by training seed."""

    label: str
    runs: dict[int, Run]


@dataclass(frozen=True)
class Row:
    """A score of a group and of the baseline at the same step, by training seed.

    ``first`` are the baseline's values, ``second`` the group's; ``unequal`` lists those measured differently.
    ``adjusted`` is Holm's p over the ``family`` rows that can be tested (two or more pairs, measured in the same way),
    else None.
    """

    metric: str
    step: int
    baseline: str
    other: str
    first: dict[int, float]
    second: dict[int, float]
    paired: Paired
    unequal: tuple[str, ...] = ()
    adjusted: float | None = None
    family: int = 0

    @property
    def agreeing(self) -> int:
        """Number of seeds whose difference has the sign of the mean."""
        return sum(d * self.paired.mean > 0 for d in self.paired.differences.values())

    @property
    def verdict(self) -> str:
        """Verdict: "unequal", "one seed", "equal", "supported", "consistent" (all seeds agree) or "open"."""
        if self.unequal:
            return "unequal"
        if self.adjusted is None:
            return "one seed"
        if not any(self.paired.differences.values()):
            return "equal"
        if self.adjusted <= LEVEL:
            return "supported"
        return "consistent" if self.agreeing == len(self.first) else "open"

    @property
    def sentence(self) -> str:
        """The row as text: difference, test and verdict."""
        return f"{self.measured} {self.conclusion}"

    @property
    def measured(self) -> str:
        """The difference and its test, in a sentence or two."""
        return " ".join([_difference(self), *([] if self.adjusted is None else [_test(self)])])

    @property
    def conclusion(self) -> str:
        """What the difference supports, in a sentence that many rows may share."""
        return _VERDICTS[self.verdict](self)


@dataclass(frozen=True)
class Comparison:
    """Rows against the first group, how each metric was measured, and notes on omissions and limitations."""

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    how: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def compare(
    runs: Sequence[Run], *, metrics: Sequence[str] = (), step: int | None = None, force: bool = False
) -> Comparison:
    """Compare scores of runs by configuration, paired by training seed, against the configuration of the first run.

    Runs that only differ in ``training.seed``, name, and their teacher's seed and location form one group. For each
    metric the most common protocol is used; of two records with the same protocol, the later one counts.

    Args:
        runs: Runs of two or more configurations.
        metrics: Names of metrics, such as "fd-clf64"; by default all that do not belong to a layer. Layer metrics have
            one row for each layer and time.
        step: Training step; by default, for each row, the last step at which the most seeds can be paired.
        force: Allow, and mark, numbers that were measured differently.

    Returns:
        A ``Comparison`` with ``groups`` (label and runs by seed), ``rows`` (one for each metric and group, with values
        by seed, paired difference, interval and p), ``how`` each metric was measured, and ``notes`` on what was left
        out.

    Raises:
        ValueError: For fewer than two groups, a duplicate seed, an unknown metric, no pairs and, unless `force`,
            numbers of one metric that were measured differently.

    Examples:
        >>> compared = wb.compare([wb.zoo("plain"), wb.zoo("guided")], metrics=["fd-clf64"])
        >>> [row.metric for row in compared.rows]
        ['fd-clf64']
    """
    groups = group(runs)
    if len(groups) < 2:
        several = f", of which the {len(runs)} runs are seeds; add runs of another" if len(runs) > 1 else ""
        labels = _listed(group.label for group in groups)
        raise ValueError(f"a comparison needs two configurations or more; got {labels}{several}")
    records, notes = _records(groups)
    rows: list[Row] = []
    how: dict[str, dict[str, Any]] = {}
    alone: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for column in _columns(records, metrics):
        steps = {other.label: _step(records, column, groups[0], other, step) for other in groups[1:]}
        found, measured = _rows(records, column, groups, steps, force)
        rows, how = [*rows, *found], {**how, column: measured} if found else how
        for other in groups[1:]:
            pairs = _seeds(records, column, groups[0], other, steps[other.label])
            if missing := {*groups[0].runs, *other.runs} - {*pairs}:
                alone.setdefault((other.label, tuple(sorted(missing))), []).append(column)
    notes += [
        f"{label} and {groups[0].label} have no pair of seed {_listed(seeds)} in {_listed(columns)}"
        for (label, seeds), columns in alone.items()
    ]
    if not rows:
        raise ValueError("; ".join(notes) or "the runs hold no scores: run `workbench evaluate` on each")
    return Comparison(tuple(groups), tuple(_adjusted(rows)), how, (*teacher_notes(groups), *notes))


def group(runs: Sequence[Run]) -> list[Group]:
    """Group runs by configuration, in the order given, and within a group by training seed.

    Raises ValueError for two runs with the same configuration and seed.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_seed, seed = found.setdefault(_configuration(run), {}), run.config.training.seed
        if seed in by_seed:
            raise ValueError(
                f"{by_seed[seed].name} and {run.name} have the same configuration and seed {seed}; give one"
            )
        by_seed[seed] = run
    labels = _labels([next(iter(by_seed.values())) for by_seed in found.values()])
    return [Group(label, dict(sorted(found[key].items()))) for label, key in zip(labels, found, strict=True)]


def teacher_notes(groups: Sequence[Group]) -> list[str]:
    """Notes on teachers that are not found, and on groups whose seeds all share one teacher."""
    notes = []
    for one in groups:
        teachers = {run.name: _teacher(run) for run in one.runs.values() if run.config.objective.options.get("teacher")}
        missing = [name for name, teacher in teachers.items() if teacher is None]
        notes += [f"the teacher of {name} was not found, so teachers were not compared" for name in missing]
        fingerprints = {teacher.fingerprint for teacher in teachers.values() if teacher is not None}
        if len(teachers) > 1 and not missing and len(fingerprints) == 1:
            notes.append(f"all seeds of {one.label} share one teacher, so the spread excludes the teacher's seed")
    return notes


def _configuration(run: Run) -> str:
    """A fingerprint that ignores training seed, name, and the teacher's seed and location."""
    config, teacher = run.config, _teacher(run)
    of_teacher = None
    if teacher is not None:
        step = config.objective.options.get("teacher_step")
        of_teacher = f"{_configuration(teacher)}@{teacher.config.training.steps if step is None else step}"
    # Published weights with the same architecture differ by their source file.
    origin = run.provenance.get("origin", {}).get("sha256", "")
    return fingerprint(replace(config, training=replace(config.training, seed=0)), of_teacher) + origin


def _teacher(run: Run) -> Run | None:
    """The teacher of ``run``, also if both were moved together; None if it has none or it is not found."""
    reference, root = run.config.objective.options.get("teacher"), run.folder.parent
    if reference is None:
        return None
    try:
        return find_teacher(run.config, root)
    except ValueError:
        beside = root / Path(reference).name
        known = reference not in presets() and (beside / "provenance.json").is_file()
        return open_run(beside, root) if known else None


def _labels(firsts: Sequence[Run]) -> list[str]:
    """A label for each group; groups with the same name also show the options that differ, or their fingerprint."""
    options = [(run.config.name, dict(_options(run))) for run in firsts]
    labels = []
    for name, own in options:
        rivals = [other for other_name, other in options if other_name == name]
        unlike = [f"{key}={value}" for key, value in own.items() if any(r.get(key) != value for r in rivals)]
        labels.append(f"{name} ({_listed(unlike)})" if unlike else name)
    pairs = zip(labels, firsts, strict=True)
    return [label if labels.count(label) == 1 else f"{label} {run.fingerprint[:8]}" for label, run in pairs]


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    for section, values in to_dict(run.config).items():
        if section not in ("name", "recipe", "sampling"):
            yield from ((f"{section}.{key}", value) for key, value in values.items() if key not in _UNNAMED)


def _column(record: Mapping[str, Any]) -> str:
    return record["metric"] + (f"{_LAYER}{record['layer']} at t = {record['t']:g}" if "layer" in record else "")


def _records(groups: Sequence[Group]) -> tuple[Records, list[str]]:
    """All finite scores, and notes on non-finite ones, which are left out."""
    records: Records = {}
    left_out: list[str] = []
    for one in groups:
        for seed, run in one.runs.items():
            for number, record in enumerate(run.results, start=1):
                if "step" not in record:
                    raise ValueError(f"{run.folder / 'results.jsonl'}: record {number} lacks step")
                value = record["value"]
                if math.isfinite(value):
                    records.setdefault((one.label, seed, _column(record), record["step"]), []).append(record)
                else:
                    left_out.append(f"{_column(record)} of {run.name} at step {record['step']} is {value}, left out")
    return records, left_out


def _columns(records: Records, metrics: Sequence[str]) -> list[str]:
    known = {column: found[0] for (_, _, column, _), found in records.items()}
    for metric in metrics:
        refuse_unknown("metric", metric, dict.fromkeys(record["metric"] for record in known.values()))
    return [c for c, record in known.items() if (record["metric"] in metrics if metrics else "layer" not in record)]


def _seeds(records: Records, column: str, first: Group, second: Group, step: int | None) -> list[int]:
    both = first.runs.keys() & second.runs.keys()
    return sorted(s for s in both if all((one.label, s, column, step) in records for one in (first, second)))


def _step(records: Records, column: str, first: Group, second: Group, step: int | None) -> int | None:
    steps = {key[3] for key in records if key[2] == column} if step is None else {step}
    counts = {s: len(_seeds(records, column, first, second, s)) for s in steps}
    return max((s for s in counts if counts[s]), key=lambda s: (counts[s], s), default=None)


def _rows(
    records: Records, column: str, groups: Sequence[Group], steps: Mapping[str, int | None], force: bool
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one column, all with its most common protocol, and that protocol."""
    baseline = groups[0]
    pairs = [(other, at) for other in groups[1:] if (at := steps[other.label]) is not None]
    entries = {
        (one.label, seed, step): one.runs[seed]
        for other, step in pairs
        for seed in _seeds(records, column, baseline, other, step)
        for one in (baseline, other)
    }
    if not entries:
        return [], {}
    found = {(label, seed, step): records[label, seed, column, step] for label, seed, step in entries}
    by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (label, seed, _), ways in found.items():
        by_run.setdefault((label, seed), []).extend(ways)
    alike = measured_alike(by_run)
    chosen = alike.protocol
    assert chosen is not None  # as there are records
    taken = {e: ([r for r in ways if protocol(r) == chosen] or ways)[-1] for e, ways in found.items()}
    unequal = {e: f"{entries[e].name}: {_unlike(r, chosen)}" for e, r in taken.items() if protocol(r) != chosen}
    if unequal and not force:
        raise ValueError(f"{column} was measured in different ways; {'; '.join(unequal.values())}")
    rows = []
    for other, step in pairs:
        seeds = _seeds(records, column, baseline, other, step)
        first, second = ({s: taken[g.label, s, step]["value"] for s in seeds} for g in (baseline, other))
        marks = tuple(unequal[e] for g in (baseline, other) for s in seeds if (e := (g.label, s, step)) in unequal)
        rows.append(Row(column, step, baseline.label, other.label, first, second, paired(first, second), unequal=marks))
    return rows, alike.how


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _unlike(record: Mapping[str, Any], chosen: tuple[Any, ...]) -> str:
    pairs = zip(PROTOCOL, protocol(record), chosen, strict=True)
    return ", ".join(f"{key} is {own}, not {usual}" for key, own, usual in pairs if own != usual)


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    tested = [index for index, row in enumerate(rows) if len(row.first) > 1 and not row.unequal]
    adjusted = dict(zip(tested, holm([rows[i].paired.test.p for i in tested]), strict=True))
    return [replace(row, adjusted=adjusted.get(i), family=len(tested)) for i, row in enumerate(rows)]


def _difference(row: Row) -> str:
    mean, interval, count = row.paired.mean, row.paired.interval, len(row.first)
    lead = f"{row.metric} at step {row.step:,}: {row.other}"
    if not mean:
        return f"{lead} and {row.baseline} have equal means."
    word = "lower" if mean < 0 else "higher"
    metric = find_metric(row.metric.partition(_LAYER)[0])
    if metric is None:
        word += " (better or worse is unknown: name its module with --plugin)"
    elif metric.better:
        word += f" ({'better' if word == metric.better else 'worse'})"
    else:
        word += f" ({metric.ideal})"
    lead = f"{lead} is {word} than {row.baseline} by {abs(mean):.3g}"
    if interval is None:
        return f"{lead} with seed {next(iter(row.first))}."
    share = f"all {count}" if row.agreeing == count else f"{row.agreeing} of {count}"
    zero = "includes" if interval.low <= 0 <= interval.high else "excludes"
    spread = f"95 % t interval {interval.low:.3g} to {interval.high:.3g}, which {zero} 0"
    return f"{lead} on average, in {share} seeds ({spread})."


def _test(row: Row) -> str:
    test, count = row.paired.test, len(row.first)
    holms = f", Holm-adjusted over {row.family} rows {row.adjusted:.2g}" if row.family > 1 else ""
    return f"Sign-flip p = {test.p:.2g}{holms}; with {count} seeds the smallest possible p is {test.least:.2g}."


_VERDICTS = {
    "unequal": lambda row: f"Measured in different ways ({'; '.join(row.unequal)}), so it supports no conclusion.",
    "one seed": lambda row: "One pair allows no interval and no test, so it supports no conclusion about other seeds.",
    "equal": lambda row: "No seed differs.",
    "supported": lambda row: "The data support this difference.",
    "consistent": lambda row: "All seeds agree, but there are too few of them for a significant test.",
    "open": lambda row: "The data do not support a difference.",
}
