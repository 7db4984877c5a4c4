"""Section 4.5: training time by phase and in total, with and without the guiding model.

Steps per second with alignment and after it has stopped, and the total training time with and without the guiding
model. The paper gives the times of both models, but not their sum.

Each of our steps counts as the median of its phase, in the fastest seed. `tests/benchmarks/step.py` compares costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.costs import Timed, timed_runs
from workbench.reporting.paper.numbers import TimeRow, paper_numbers
from workbench.reporting.paper.runs import MAIN, FoundRuns, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of

_HOUR = 3600.0
# The method whose colour each phase has.
_PARTS = {"guiding model": "vae", "with alignment": "guided", "without alignment": "plain"}


@timed
def time(
    scale: str = "laptop", seeds: Sequence[int] = MAIN, root: Path | None = None, overrides: Sequence[str] = ()
) -> Artifact:
    """Section 4.5: steps per second of each phase and total time relative to plain training, the paper's and ours.

    Ours are medians over logged steps, in the fastest seed. `tests/benchmarks/step.py` compares the costs.
    """
    rows = paper_numbers().time
    found = runs_of(
        scale, {row.row: row.presets[scale] for row in rows if scale in row.presets}, seeds, root, overrides
    )
    ours = {row: timed_runs(list(by_seed.values())) for row, by_seed in found.runs.items()}
    seeds_of = {row: {s: timed_runs([run]) for s, run in by_seed.items()} for row, by_seed in found.runs.items()}
    paper = {row.row: _printed(row) for row in rows}
    stored = any(run.config.objective.options.get("stored") for run in found.runs.get("repa", {}).values())
    encoder = (
        " REPA's targets were stored beforehand here, so the cost of its encoder is not included." if stored else ""
    )
    return Artifact(
        name="time",
        title="Section 4.5: time of training",
        caption=(
            "Time relative to plain training: the paper's (SiT-B/2, batch 256, one million steps on eight A800) and "
            f"ours ({found.models}; each step counts as the median of its phase, in the fastest seed).{encoder}"
        ),
        figures={"total": _bars(paper, ours)},
        alts={"total": _alt(paper, ours)},
        tables={"phases": _phases(rows, ours, seeds_of, found), "total": _totals(rows, ours, seeds_of, found)},
        claims=tuple(_claims(seeds_of)),
        remarks=_remarks(rows, paper),
        runs=distinct(found.all),
        missing=found.missing,
    )


def _printed(row: TimeRow) -> Timed:
    return Timed(tuple(p.steps for p in row.phases), tuple(p.steps / p.rate for p in row.phases))


def _phases(
    rows: Sequence[TimeRow], ours: Mapping[str, Timed], seeds_of: Mapping[str, Mapping[int, Timed]], found: FoundRuns
) -> Table:
    columns = (
        Column("paper's row"),
        Column("ours"),
        Column("phase"),
        Column("paper", "paper", "steps/s"),
        Column("paper: time of a step against plain", "number", "%"),
        Column("ours", "number", "steps/s"),
        Column("ours: time of a step against plain", "number", "%"),
        Column("most disturbed seed", "number", "steps/s"),
        Column("seeds", "count"),
    )
    base = next(row for row in rows if row.row == "plain").phases[0].rate
    lines = []
    for row in rows:
        own = ours.get(row.row)
        for index, phase in enumerate(row.phases):
            rate = own.rates[index] if own and index < len(own.rates) else None
            against = 100 * (ours["plain"].rates[0] / rate - 1) if rate and "plain" in ours else None
            slowest = min(of.rates[index] for of in seeds_of[row.row].values()) if rate else None
            lines.append(
                (
                    row.label,
                    found.described(row.row),
                    _phase_name(row, index),
                    Number(phase.rate, 2),
                    Number(100 * (base / phase.rate - 1), 1, signed=True) if row.row != "plain" else None,
                    _number(rate, 2),
                    _number(against, 1, signed=True) if row.row != "plain" else None,
                    _number(slowest, 2),
                    len(seeds_of[row.row]) if rate else None,
                )
            )
    return Table("Steps per second of each phase.", columns, rows_of(lines), keys=3)


def _totals(
    rows: Sequence[TimeRow], ours: Mapping[str, Timed], seeds_of: Mapping[str, Mapping[int, Timed]], found: FoundRuns
) -> Table:
    columns = (
        Column("paper's row"),
        Column("ours"),
        Column("paper", "paper", "hours"),
        Column("paper, guiding model included", "number", "hours"),
        Column("ours", "number", "seconds"),
        Column("ours, guiding model included", "number", "seconds"),
        Column("most disturbed seed", "number", "seconds"),
        Column("seeds", "count"),
    )
    hours = next(row for row in rows if row.row == "teacher").hours
    lines = []
    for row in rows:
        own, teacher = ours.get(row.row), ours.get("teacher")
        guided = row.row == "guided"
        before = 0.0 if not guided else teacher.total if teacher else None
        whole = None if own is None or before is None else own.total + before
        slowest = max(of.total for of in seeds_of[row.row].values()) if own else None
        lines.append(
            (
                row.label,
                found.described(row.row),
                Number(row.hours, 2),
                Number(row.hours + (hours if guided else 0), 2),
                _number(own.total if own else None, 1),
                _number(whole, 1),
                _number(slowest, 1),
                len(seeds_of[row.row]) if own else None,
            )
        )
    return Table("Total training time.", columns, rows_of(lines), keys=2)


def _number(value: float | None, digits: int, signed: bool = False) -> Number | None:
    return None if value is None else Number(value, digits, signed=signed)


def _parts(row: str, timed_row: Timed, teacher: float) -> dict[str, float]:
    if row == "plain":
        return {"without alignment": timed_row.total}
    aligned = {"with alignment": timed_row.seconds[0], "without alignment": sum(timed_row.seconds[1:])}
    return {"guiding model": teacher, **aligned} if row == "guided" else aligned


def _relative(of: Mapping[str, Timed]) -> dict[str, dict[str, float]]:
    """Phases of each row, relative to the total of plain."""
    if "plain" not in of:
        return {}
    teacher = of["teacher"].total if "teacher" in of else 0.0
    whole = of["plain"].total
    rows = [row for row in ("plain", "repa", "guided") if row in of]
    return {row: {k: v / whole for k, v in _parts(row, of[row], teacher).items()} for row in rows}


def _bars(paper: Mapping[str, Timed], ours: Mapping[str, Timed]) -> Figure:
    sets = {"paper": _relative(paper), "ours": _relative(ours)}
    lines = [
        (f"{style.NAMES[row]}, {source}", by_row[row])
        for row in ("plain", "repa", "guided")
        for source, by_row in sets.items()
        if row in by_row
    ]
    with style.look():
        figure = Figure(figsize=(style.PAGE, 0.25 * len(lines) + 0.95), layout="constrained")
        axis = figure.subplots()
        for y, (_, parts) in enumerate(lines):
            start = 0.0
            for name, length in parts.items():
                axis.barh(y, length, left=start, height=0.7, **_look(name))
                start += length
            axis.text(start + 0.01, y, f"{start:.2f}", va="center", fontsize=7)
        axis.axvline(1, color=style.GREY, linewidth=1)
        axis.set_yticks(range(len(lines)), [name for name, _ in lines])
        axis.set(xlabel="total training time (plain = 1)", ylim=(len(lines) - 0.5, -0.5))
        axis.grid(axis="y", visible=False)
        patches = [Patch(**_look(name), label=name) for name in _PARTS]
        figure.legend(handles=patches, loc="outside upper center", ncols=3)
    return figure


def _look(part: str) -> dict[str, Any]:
    hatch = "////" if part == "guiding model" else None
    return {"facecolor": palette.METHODS[_PARTS[part]]["color"], "edgecolor": "white", "hatch": hatch}


def _claims(seeds_of: Mapping[str, Mapping[int, Timed]]) -> Iterator[Claim]:
    totals = {row: {seed: of.total for seed, of in by_seed.items()} for row, by_seed in seeds_of.items()}
    teacher = totals.get("teacher", {})
    whole = {seed: of + teacher[seed] for seed, of in totals.get("guided", {}).items() if seed in teacher}
    guided, repa = totals.get("guided", {}), totals.get("repa", {})
    for text, other, name in (
        ("Self-Transcendence trains faster than REPA", guided, "ours"),
        ("Self-Transcendence with its guiding model trains faster than REPA", whole, "ours with the guiding model"),
    ):
        yield claim(text, repa, other, lower=True, of="training seconds", names=("REPA", name))


def _remarks(rows: Sequence[TimeRow], paper: Mapping[str, Timed]) -> tuple[str, ...]:
    by_row = {row.row: row for row in rows}
    guided, teacher, repa, plain = (by_row[name].hours for name in ("guided", "teacher", "repa", "plain"))
    off = {row.label: paper[row.row].total / _HOUR - row.hours for row in rows}
    worst = max(off, key=lambda name: abs(off[name]))
    return (
        f"By the paper's numbers its guided run takes {guided:.2f} h, {guided - plain:+.2f} h against plain and "
        f"{guided - repa:+.2f} h against REPA; with its guiding model {guided + teacher:.2f} h, "
        f"{guided + teacher - repa:+.2f} h against REPA, whose encoder's training is not counted.",
        f"The paper's hours agree with its rates: the largest difference is {abs(off[worst]):.2f} h ({worst}).",
    )


def _phase_name(row: TimeRow, index: int) -> str:
    if len(row.phases) > 1:
        return "with alignment" if index == 0 else "after the stop"
    return "whole"


def _alt(paper: Mapping[str, Timed], ours: Mapping[str, Timed]) -> str:
    sets = {"the paper's": _relative(paper), "ours": _relative(ours)}
    totals = [
        f"{source} {style.NAMES[row]} {sum(parts.values()):.2f}"
        for source, by_row in sets.items()
        for row, parts in by_row.items()
    ]
    return f"Total training time relative to plain, guiding model included: {', '.join(totals)}."
