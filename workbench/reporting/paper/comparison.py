"""A table of the paper beside ours: the runs of its rows, their scores, and both as a table, a chart and claims."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from workbench.evaluation.metrics import get_metric
from workbench.evaluation.statistics import t_interval
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Claim, Missing
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.numbers import PaperNumbers, PaperRow, PaperTable, paper_numbers
from workbench.reporting.paper.ours import corrections, described
from workbench.reporting.paper.runs import Found, runs_of
from workbench.reporting.paper.scores import DETECTORS, Asked, Scores, common_steps, condensed, scores_of
from workbench.reporting.paper.table import Column, Number, Protocol, Row, Table, difference_or_none, share


@dataclass(frozen=True)
class Compared:
    """Rows of one table that one table may hold, and what of them was trained and scored at a scale.

    `bases` says of each row which row it is held against.
    """

    numbers: PaperNumbers
    paper: PaperTable
    rows: tuple[PaperRow, ...]
    scale: str
    found: Found
    steps: Mapping[str, int]
    scores: Mapping[str, Scores]
    bases: Mapping[str, str]

    def ours(self, row: str) -> str | None:
        """What ours is in a row, if it was scored: model, images, steps and its teacher's steps."""
        return self.found.described(row, self.steps[row]) if row in self.scored else None

    @property
    def scored(self) -> set[str]:
        """Rows with a score of ours."""
        return {row for scores in self.scores.values() for row in scores.values}

    @property
    def models(self) -> str:
        """What ours are, each once, teachers aside."""
        runs = {row: next(iter(by_seed.values())) for row, by_seed in self.found.runs.items() if row in self.scored}
        return "; ".join(dict.fromkeys(described(run, self.steps[row]) for row, run in runs.items())) or "nothing yet"

    @property
    def corrections(self) -> tuple[str, ...]:
        """Sentences on what is known to be wrong with ours."""
        return corrections(self.found.all)

    @property
    def missing(self) -> tuple[Missing, ...]:
        return condensed([*self.found.missing, *(one for scores in self.scores.values() for one in scores.missing)])

    @cached_property
    def how(self) -> str:
        """How ours were measured, or that nothing was."""
        return next((scores.how for scores in self.scores.values() if scores.how), "nothing was scored")

    def printed(self, row: PaperRow, metric: str) -> Number | None:
        """What the paper prints."""
        if metric not in row.values:
            return None
        digits = max(_places(one.values[metric]) for one in self.paper.rows if metric in one.values)
        name = self.numbers.metrics[metric].name
        return Number(row.values[metric], digits, protocol=Protocol(self.paper.samples, row.sampler, name))

    def change(self, row: PaperRow, metric: str) -> tuple[Number | None, Number | None]:
        """Percent against the base, of the paper and of ours, the latter by seed with its interval."""
        base = self.bases.get(row.row)
        if base is None or base == row.row:
            return None, None
        own, other = self.printed(row, metric), self.printed(self.paper.row(base), metric)
        paper = None if own is None or other is None else Number(100 * share(own, other), 1, signed=True)
        shares = self.shares(row.row, metric)
        if not shares:
            return paper, None
        mean = sum(shares) / len(shares)
        if len(shares) == 1:
            return paper, Number(mean, 1, n=1, signed=True)
        interval = t_interval(shares)
        return paper, Number(mean, 1, interval.low, interval.high, len(shares), signed=True)

    def shares(self, row: str, metric: str) -> list[float]:
        """Percent against the base of each seed that both have."""
        values, base = self.scores[metric].values, self.bases.get(row)
        first, second = {} if base is None else values.get(base, {}), values.get(row, {})
        return [100 * (second[seed] / first[seed] - 1) for seed in sorted(first.keys() & second.keys())]

    def table(self, metric: str, caption: str, against: str) -> Table:
        """Paper, ours with interval, difference where both were measured alike, and change against the base."""
        scores, of = self.scores[metric], self.numbers.metrics[metric]
        thousand = f"{self.paper.samples // 1000}K images"
        columns = (
            Column("paper's row"),
            Column("ours"),
            Column("paper: epochs", "count"),
            Column(f"paper: {of.name}", "paper", thousand),
            Column(f"paper: against {against}", "number", "%"),
            Column(f"ours: {scores.name}", "ours", "mean"),
            Column("95 % interval", "interval", "over seeds"),
            Column("ours less paper", "difference"),
            Column(f"ours: against {against}", "number", "%"),
            Column("its 95 % interval", "interval"),
            Column("seeds", "count"),
        )
        rows = tuple(self._line(row, metric) for row in self.rows)
        return Table(caption, columns, rows, keys=2, notes=(_NAMES, _NOTE, *self.corrections))

    def _line(self, row: PaperRow, metric: str) -> Row:
        paper, ours = self.printed(row, metric), self.scores[metric].number(row.row)
        changes = self.change(row, metric)
        cells = (
            label(row, self.rows),
            self.ours(row.row) if ours else None,
            _epochs(row),
            paper,
            changes[0],
            ours,
            ours.interval if ours else None,
            difference_or_none(ours, paper),
            changes[1],
            changes[1].interval if changes[1] else None,
            ours.n if ours else None,
        )
        return Row(cells, row.quoted)

    def wide_table(self, metrics: Sequence[str], caption: str) -> Table:
        """Paper and ours of several metrics beside each other."""
        columns = [Column("paper's row"), Column("ours"), Column("paper: epochs", "count")]
        for metric in metrics:
            columns += [
                Column(f"paper: {self.numbers.metrics[metric].name}", "paper"),
                Column(f"ours: {self.scores[metric].name}", "ours"),
            ]
        rows = []
        for row in self.rows:
            cells: list = [label(row, self.rows), self.ours(row.row), _epochs(row)]
            for metric in metrics:
                cells += [self.printed(row, metric), self.scores[metric].number(row.row)]
            counts = [cell.n for cell in cells if isinstance(cell, Number) and cell.n]
            rows.append(Row((*cells, max(counts, default=None)), row.quoted))
        how = f"Paper: {self.paper.samples:,} images. Ours: {self.how}; means over seeds."
        columns.append(Column("seeds", "count"))
        return Table(caption, tuple(columns), tuple(rows), keys=2, notes=(_NAMES, how, *self.corrections))

    def chart(self, metric: str, against: str, rows: Sequence[PaperRow] | None = None) -> Figure:
        """Change against the base of paper and ours, a line a row."""
        shown = []
        for row in rows or self.rows:
            paper, ours = self.change(row, metric)
            if paper is None and ours is None:
                continue
            values = {} if ours is None else {"mean": ours.value, "low": ours.low, "high": ours.high}
            shown.append(
                style.Mark(
                    self._named(row, label(row, self.rows), " (ours: {})"),
                    palette.METHODS.get(row.method, {}),
                    self.shares(row.row, metric),
                    paper=None if paper is None else paper.value,
                    **values,
                )
            )
        names = f"{self.numbers.metrics[metric].name} (paper) and {self.scores[metric].name} (ours)"
        count = max((len(mark.values) for mark in shown), default=0)
        told = f"change of {names} against {against}, % ({get_metric(metric).direction})"
        below = f"ours: {self.models}\npaper: the model that the row names, on ImageNet"
        return style.marks(shown, told, zero=against, seeds=f"one of {count} seeds", below=below)

    def claim(self, text: str, base: str, other: str, metric: str = "fid") -> Claim:
        """Whether `other` is better than `base` here."""
        scores = self.scores[metric]
        first_name, second_name = (self._named(row, _short(row), "{}") for row in map(self.paper.row, (base, other)))
        first, second = (scores.values.get(row, {}) for row in (base, other))
        names = first_name, second_name
        found = claim(text, first, second, lower=get_metric(metric).better == "lower", of=scores.name, names=names)
        wrong = corrections(run for row in (base, other) for run in self.found.runs.get(row, {}).values())
        return replace(found, confidence=" ".join([found.confidence, *wrong]))

    def _named(self, row: PaperRow, name: str, form: str) -> str:
        """`name` with our teacher's steps where it has the paper's, such as 200K: in its place, or after it."""
        steps, told = self.found.teacher_steps.get(row.row), _THOUSANDS.search(name)
        if steps is None or told is None or row.row not in self.scored or self.scale == "paper":
            return name
        own = f"{steps:,} steps"
        return _THOUSANDS.sub(own, name) if form == "{}" else name + form.format(own)


_THOUSANDS = re.compile(r"\b\d+K\b")
_NAMES = "A row has the name that the paper gives it; what ours is stands beside it."
_NOTE = (
    "The difference to the paper is given only where both are the same score of as many images by the same kind of "
    "sampler; the changes can be set beside each other, as directions."
)


def compared(
    table: str,
    scale: str,
    seeds: Sequence[int],
    root: Path | None,
    overrides: Sequence[str],
    *,
    rows: Sequence[PaperRow] | None = None,
    metrics: Sequence[str] = ("fid",),
    guidance_scale: float | None = 1.0,
    evaluate: bool = False,
    bases: Mapping[str, str] | None = None,
) -> Compared:
    """The runs and scores of rows of a table at a scale. At paper scale the step is the paper's, else the last one."""
    numbers = paper_numbers()
    paper = numbers.tables[table]
    chosen = tuple(paper.rows if rows is None else rows)
    wanted = {row.row: row.presets[scale] for row in chosen if scale in row.presets}
    found = runs_of(scale, wanted, seeds, root, overrides)
    steps = common_steps(found.runs, {row.row: "all" for row in chosen})
    if scale == "paper":
        steps |= {row.row: row.steps for row in chosen if row.row in found.runs and row.steps is not None}
    asked = Asked(guidance_scale, paper.samples if scale == "paper" else None, evaluate)
    scores = {
        metric: scores_of(found.runs, metric, detector=DETECTORS[scale], steps=steps, asked=asked) for metric in metrics
    }
    return Compared(numbers, paper, chosen, scale, found, steps, scores, bases_of(chosen) if bases is None else bases)


def bases_of(rows: Sequence[PaperRow]) -> dict[str, str]:
    """The plain row of the same group and epochs, for each row that has one."""
    found = {}
    for row in rows:
        plain = [one for one in rows if (one.group, one.method, one.epochs) == (row.group, "plain", row.epochs)]
        if plain and not row.quoted:
            found[row.row] = plain[0].row
    return found


def label(row: PaperRow, rows: Sequence[PaperRow]) -> str:
    """The row's label, with its backbone where several have one, and its epochs where nothing else tells two apart."""
    named = f"{row.group.split(' ')[0]} {row.label}" if row.label.startswith("+") and _several(rows) else row.label
    alike = [one for one in rows if (one.group, one.label) == (row.group, row.label)]
    return f"{named}, {row.epochs} epochs" if len(alike) > 1 else named


def _several(rows: Sequence[PaperRow]) -> bool:
    return len({row.group for row in rows if row.label.startswith("+")}) > 1


def _epochs(row: PaperRow) -> str | int | None:
    return f"≥{row.epochs:,}" if row.at_least else row.epochs


def _short(row: PaperRow) -> str:
    """The row without its backbone, which at another scale is another one."""
    return "the plain model" if row.method == "plain" else row.label.removeprefix("+ ")


def _places(value: float) -> int:
    return len(repr(float(value)).partition(".")[2])
