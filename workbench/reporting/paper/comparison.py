"""A table of the paper beside ours: runs and scores of its rows, as a table, a dot plot and claims."""

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
from workbench.reporting.paper.runs import FoundRuns, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery, Scores, common_steps, scores_of, unique
from workbench.reporting.paper.table import Column, Number, Protocol, Row, Table, difference_or_none, share


@dataclass(frozen=True)
class Compared:
    """Rows of one table of the paper, and their runs and scores at a scale.

    `bases` has the row that each row is compared with.
    """

    numbers: PaperNumbers
    paper: PaperTable
    rows: tuple[PaperRow, ...]
    scale: str
    found: FoundRuns
    steps: Mapping[str, int]
    scores: Mapping[str, Scores]
    bases: Mapping[str, str]

    def ours(self, row: str) -> str | None:
        """Our run of a row in words, if it was scored: model, images, steps and its teacher's steps."""
        return self.found.described(row, self.steps[row]) if row in self.scored else None

    @property
    def scored(self) -> set[str]:
        """Rows of which we have a score."""
        return {row for scores in self.scores.values() for row in scores.values}

    @property
    def models(self) -> str:
        """Our models in words, without repeats and without teachers."""
        runs = {row: next(iter(by_seed.values())) for row, by_seed in self.found.runs.items() if row in self.scored}
        return "; ".join(dict.fromkeys(described(run, self.steps[row]) for row, run in runs.items())) or "nothing yet"

    @property
    def corrections(self) -> tuple[str, ...]:
        """Sentences on known errors of our runs."""
        return corrections(self.found.all)

    @property
    def missing(self) -> tuple[Missing, ...]:
        return unique([*self.found.missing, *(one for scores in self.scores.values() for one in scores.missing)])

    @cached_property
    def how(self) -> str:
        """The protocol of our scores in words, or "nothing was scored"."""
        return next((scores.how for scores in self.scores.values() if scores.how), "nothing was scored")

    def printed(self, row: PaperRow, metric: str) -> Number | None:
        """The paper's number, if it prints one."""
        if metric not in row.values:
            return None
        digits = max(_decimals(one.values[metric]) for one in self.paper.rows if metric in one.values)
        name = self.numbers.metrics[metric].name
        return Number(row.values[metric], digits, protocol=Protocol(self.paper.samples, row.sampler, name))

    def change(self, row: PaperRow, metric: str) -> tuple[Number | None, Number | None]:
        """Change against the base in percent, of the paper and of ours; ours with an interval over seeds."""
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
        """Change against the base in percent, for each seed that both have."""
        values, base = self.scores[metric].values, self.bases.get(row)
        first, second = {} if base is None else values.get(base, {}), values.get(row, {})
        return [100 * (second[seed] / first[seed] - 1) for seed in sorted(first.keys() & second.keys())]

    def table(self, metric: str, caption: str, against: str) -> Table:
        """The paper's and our scores, their difference if the protocols agree, and changes against the base."""
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
        """The paper's and our scores for several metrics side by side."""
        columns = [Column("paper's row"), Column("ours"), Column("paper: epochs", "count")]
        for metric in metrics:
            columns += [
                Column(f"paper: {self.numbers.metrics[metric].name}", "paper"),
                Column(f"ours: {self.scores[metric].name}", "ours"),
            ]
        rows = []
        for row in self.rows:
            cells: list[str | int | Number | None] = [label(row, self.rows), self.ours(row.row), _epochs(row)]
            for metric in metrics:
                cells += [self.printed(row, metric), self.scores[metric].number(row.row)]
            counts = [cell.n for cell in cells if isinstance(cell, Number) and cell.n]
            rows.append(Row((*cells, max(counts, default=None)), row.quoted))
        how = f"Paper: {self.paper.samples:,} images. Ours: {self.how}; means over seeds."
        columns.append(Column("seeds", "count"))
        return Table(caption, tuple(columns), tuple(rows), keys=2, notes=(_NAMES, how, *self.corrections))

    def chart(self, metric: str, against: str, rows: Sequence[PaperRow] | None = None) -> Figure:
        """Dot plot of changes against the base, the paper's and ours."""
        shown = []
        for row in rows or self.rows:
            paper, ours = self.change(row, metric)
            if paper is None and ours is None:
                continue
            shown.append(
                style.Dots(
                    self._named(row, label(row, self.rows), " (ours: {})"),
                    palette.METHODS.get(row.method, {}),
                    self.shares(row.row, metric),
                    mean=None if ours is None else ours.value,
                    low=None if ours is None else ours.low,
                    high=None if ours is None else ours.high,
                    paper=None if paper is None else paper.value,
                )
            )
        names = f"{self.numbers.metrics[metric].name} (paper) and {self.scores[metric].name} (ours)"
        count = max((len(dots.values) for dots in shown), default=0)
        title = f"change of {names} against {against}, % ({get_metric(metric).direction})"
        below = f"ours: {self.models}\npaper: the model named by the row, on ImageNet"
        return style.dot_plot(shown, title, zero=against, seeds=f"one of {count} seeds", below=below)

    def claim(self, text: str, base: str, other: str, metric: str = "fid") -> Claim:
        """Verdict on whether `other` is better than `base`, from our runs."""
        scores = self.scores[metric]
        first_name, second_name = (self._named(row, _short(row), "{}") for row in map(self.paper.row, (base, other)))
        first, second = (scores.values.get(row, {}) for row in (base, other))
        names = first_name, second_name
        result = claim(text, first, second, lower=get_metric(metric).better == "lower", of=scores.name, names=names)
        errors = corrections(run for row in (base, other) for run in self.found.runs.get(row, {}).values())
        return replace(result, confidence=" ".join([result.confidence, *errors]))

    def _named(self, row: PaperRow, name: str, form: str) -> str:
        """`name` with our teacher's steps instead of the paper's, such as 200K, or after the name by `form`."""
        steps = self.found.teacher_steps.get(row.row)
        if steps is None or not _THOUSANDS.search(name) or row.row not in self.scored or self.scale == "paper":
            return name
        own = f"{steps:,} steps"
        return _THOUSANDS.sub(own, name) if form == "{}" else name + form.format(own)


_THOUSANDS = re.compile(r"\b\d+K\b")
_NAMES = "Rows have the paper's names; our models are described beside them."
_NOTE = (
    "The difference to the paper is given only if both are the same score of equally many images by the same kind of "
    "sampler; of the changes, the directions can be compared."
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
    """Runs and scores of rows of a table: at paper scale at the paper's step, at other scales at the last one."""
    numbers = paper_numbers()
    paper = numbers.tables[table]
    chosen = tuple(paper.rows if rows is None else rows)
    presets = {row.row: row.presets[scale] for row in chosen if scale in row.presets}
    found = runs_of(scale, presets, seeds, root, overrides)
    steps = common_steps(found.runs, {row.row: "all" for row in chosen})
    if scale == "paper":
        steps |= {row.row: row.steps for row in chosen if row.row in found.runs and row.steps is not None}
    query = ScoreQuery(guidance_scale, paper.samples if scale == "paper" else None, evaluate)
    scores = {
        metric: scores_of(found.runs, metric, detector=DETECTORS[scale], steps=steps, query=query) for metric in metrics
    }
    return Compared(numbers, paper, chosen, scale, found, steps, scores, bases_of(chosen) if bases is None else bases)


def bases_of(rows: Sequence[PaperRow]) -> dict[str, str]:
    """The plain row of the same group and epochs, for each row that has one."""
    bases = {}
    for row in rows:
        plain = [one for one in rows if (one.group, one.method, one.epochs) == (row.group, "plain", row.epochs)]
        if plain and not row.quoted:
            bases[row.row] = plain[0].row
    return bases


def label(row: PaperRow, rows: Sequence[PaperRow]) -> str:
    """The row's label, with its backbone if there are several, and its epochs if labels repeat."""
    named = f"{row.group.split(' ')[0]} {row.label}" if row.label.startswith("+") and _several(rows) else row.label
    alike = [one for one in rows if (one.group, one.label) == (row.group, row.label)]
    return f"{named}, {row.epochs} epochs" if len(alike) > 1 else named


def _several(rows: Sequence[PaperRow]) -> bool:
    return len({row.group for row in rows if row.label.startswith("+")}) > 1


def _epochs(row: PaperRow) -> str | int | None:
    return f"≥{row.epochs:,}" if row.at_least else row.epochs


def _short(row: PaperRow) -> str:
    """The row's label without its backbone, which differs between scales."""
    return "the plain model" if row.method == "plain" else row.label.removeprefix("+ ")


def _decimals(value: float) -> int:
    return len(repr(float(value)).partition(".")[2])
