"""Tables whose numbers carry the protocol they were measured by, so that only comparable scores are compared.

They are written as CSV, Markdown and LaTeX (booktabs).
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text", "number", "paper", "ours", "interval", "difference", "count"]
UNSTATED = "unstated"
_SAMPLERS = ("ode", "sde", UNSTATED)
_QUOTED = "quoted"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "–": "--",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "\u202f": r"\,",
    "’": "'",
}


@dataclass(frozen=True)
class Protocol:
    """Protocol of a score: number of generated images, kind of sampler (ODE or SDE) and metric."""

    samples: int
    sampler: str
    metric: str = "FID"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.sampler not in _SAMPLERS:
            raise ValueError(f"got {self.samples} images by {self.sampler!r}; allowed are {', '.join(_SAMPLERS)}")

    def __str__(self) -> str:
        return f"{self.metric}, {self.samples:,} images, {self.sampler.upper()}"


@dataclass(frozen=True)
class Number:
    """A value printed with `digits` decimals; its interval, number of seeds `n` and protocol, if it has them."""

    value: float
    digits: int = 2
    low: float | None = None
    high: float | None = None
    n: int | None = None
    protocol: Protocol | None = None
    signed: bool = False

    @property
    def text(self) -> str:
        """The value without its interval, with a typographic minus sign."""
        return _printed(self.value, self.digits, self.signed)

    @property
    def interval(self) -> str:
        """The interval, or "" if there is none."""
        if self.low is None or self.high is None:
            return ""
        ends = (_printed(end, self.digits, self.signed) for end in (self.low, self.high))
        return "{} to {}".format(*ends)


@dataclass(frozen=True)
class Column:
    """Name of a column, its unit ("" for none) and the kind of its cells."""

    name: str
    kind: Kind = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Row:
    """Cells of a row; a `quoted` row, which the paper took from elsewhere, is marked and never compared."""

    cells: tuple[Any, ...]
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first `keys` columns name a row.

    ValueError for a row of another length, for a column with scores of different protocols (except in quoted rows,
    whose protocol is unknown), and for a quoted row with a number of ours or a difference.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    keys: int = 1
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"a row has {len(row.cells)} cells for {len(self.columns)} columns: {row.cells}")
        for index, column in enumerate(self.columns):
            scores = [row.cells[index] for row in self.rows if not row.quoted and _scored(row.cells[index])]
            protocols = {score.protocol for score in scores}
            if len(protocols) > 1:
                raise ValueError(f"column {column.name!r} mixes {', and '.join(sorted(map(str, protocols)))}")
            compared = [row for row in self.rows if row.quoted and _given(row.cells[index])]
            if column.kind in ("ours", "interval", "difference") and compared:
                raise ValueError(f"{compared[0].cells[0]} is only quoted, so it cannot have {column.name!r}")

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.heading for column in self.columns)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The cells as text; an empty one is a dash, and the name of a quoted row ends with "(quoted)"."""
        return tuple(
            tuple(_text(cell) + (" (quoted)" if row.quoted and index == 0 else "")
                  for index, cell in enumerate(row.cells))
            for row in self.rows
        )  # fmt: skip


def difference(ours: Number, paper: Number) -> Number:
    """Ours minus the paper's; ValueError unless both have the same protocol."""
    if ours.protocol is None or ours.protocol != paper.protocol or ours.protocol.sampler == UNSTATED:
        raise ValueError(f"cannot compare ours ({ours.protocol}) with the paper's ({paper.protocol})")
    low, high = (None if end is None else end - paper.value for end in (ours.low, ours.high))
    return Number(ours.value - paper.value, ours.digits, low, high, ours.n, ours.protocol, signed=True)


def difference_or_none(ours: Number | None, paper: Number | None) -> Number | None:
    """As `difference`; None if either is missing or their protocols differ."""
    if ours is None or paper is None or ours.protocol != paper.protocol:
        return None
    return difference(ours, paper)


def share(number: Number, base: Number) -> float:
    """Relative change against a base, -0.5 for half as much; ValueError if their protocols differ."""
    if number.protocol != base.protocol:
        raise ValueError(f"cannot relate {number.protocol} to {base.protocol}")
    return number.value / base.value - 1


def rows_of(cells: Iterable[Sequence[Any]]) -> tuple[Row, ...]:
    """Rows of these cells, not quoted."""
    return tuple(Row(tuple(row)) for row in cells)


def to_csv(table: Table) -> str:
    """As CSV: full precision, empty cells where there is no value, columns for intervals and for "quoted"."""
    wide = [any(_ranged(row.cells[index]) for row in table.rows) for index in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [
        name
        for heading, ranged in zip(table.headings, wide, strict=True)
        for name in ([heading, f"{heading} low", f"{heading} high"] if ranged else [heading])
    ]
    writer.writerow([*names, _QUOTED])
    for row in table.rows:
        cells = [one for cell, ranged in zip(row.cells, wide, strict=True) for one in _plain(cell, ranged)]
        writer.writerow([*cells, "yes" if row.quoted else "no"])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """As a Markdown table under its caption, with the notes below."""
    keys, others = table.keys, len(table.columns) - table.keys
    lines = [f"**{table.caption}**", "", _piped(table.headings)]
    lines.append("|" + "---|" * keys + "---:|" * others)
    lines += [_piped(row) for row in table.texts]
    if table.notes:
        lines += ["", *(f"{note}  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table, label: str) -> str:
    """As a LaTeX table for ``\\usepackage{booktabs}``, names aligned left and numbers right."""
    aligned = "l" * table.keys + "r" * (len(table.columns) - table.keys)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(' '.join([table.caption, *table.notes]))}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        " & ".join(map(escaped, table.headings)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escaped, row)) + r" \\" for row in table.texts),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Escape text for LaTeX; characters that its fonts lack are replaced by commands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _scored(cell: Any) -> bool:
    return isinstance(cell, Number) and cell.protocol is not None


def _given(cell: Any) -> bool:
    return cell not in (None, "")


def _text(cell: Any) -> str:
    if cell is None or cell == "":
        return "–"
    if isinstance(cell, Number):
        return cell.text
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _printed(value: float, digits: int, signed: bool) -> str:
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\u2212")


def _piped(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ranged(cell: Any) -> bool:
    return isinstance(cell, Number) and cell.low is not None


def _plain(cell: Any, ranged: bool) -> list[Any]:
    if isinstance(cell, Number):
        known = [cell.value, cell.low, cell.high] if ranged else [cell.value]
        return ["" if value is None else repr(float(value)) for value in known]
    text = "" if cell is None else cell
    return [text, "", ""] if ranged else [text]
