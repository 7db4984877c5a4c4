"""Tables that keep numbers as numbers: with how they were measured, so that what is not comparable is not compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text", "number", "paper", "ours", "interval", "difference", "count"]
UNSTATED = "unstated"
_SAMPLERS = ("ode", "sde", UNSTATED)


@dataclass(frozen=True)
class Protocol:
    """Of a score: of how many generated images it is, whether an ODE or an SDE drew them, and what it is a score of."""

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
    """A value of `digits` after the point, over how many seeds, with its interval and protocol, if it has them."""

    value: float
    digits: int = 2
    low: float | None = None
    high: float | None = None
    n: int | None = None
    protocol: Protocol | None = None
    signed: bool = False

    @property
    def text(self) -> str:
        """The value alone, with a real minus sign."""
        return _printed(self.value, self.digits, self.signed)

    @property
    def interval(self) -> str:
        """The interval alone, "" if there is none."""
        if self.low is None or self.high is None:
            return ""
        ends = (_printed(end, self.digits, self.signed) for end in (self.low, self.high))
        return "{} to {}".format(*ends)


@dataclass(frozen=True)
class Column:
    """A heading, its unit ("" for none) and what its cells are."""

    name: str
    kind: Kind = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Row:
    """Cells of a row; one that the paper only quotes from elsewhere is marked, and never compared."""

    cells: tuple[Any, ...]
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first `keys` columns name a row.

    ValueError for a row of another length, for a column that holds scores of different protocols (quoted rows, of which
    the protocol is not known, aside), and for a quoted row with a number of ours or a difference.
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
        for place, column in enumerate(self.columns):
            found = {row.cells[place].protocol for row in self.rows if not row.quoted and _scored(row.cells[place])}
            if len(found) > 1:
                raise ValueError(f"column {column.name!r} mixes {', and '.join(sorted(map(str, found)))}")
            compared = [row for row in self.rows if row.quoted and _given(row.cells[place])]
            if column.kind in ("ours", "interval", "difference") and compared:
                raise ValueError(f"{compared[0].cells[0]} is only quoted, so {column.name!r} of it cannot be given")

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.heading for column in self.columns)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The cells as a reader sees them; an absent one is a dash, a quoted row says so after its name."""
        return tuple(
            tuple(_text(cell) + (" (quoted)" if row.quoted and place == 0 else "")
                  for place, cell in enumerate(row.cells))
            for row in self.rows
        )  # fmt: skip


def difference(ours: Number, paper: Number) -> Number:
    """Ours less the paper's; ValueError unless both are the same score of as many images by one kind of sampler."""
    if ours.protocol is None or ours.protocol != paper.protocol or ours.protocol.sampler == UNSTATED:
        raise ValueError(f"cannot compare ours ({ours.protocol}) with the paper's ({paper.protocol})")
    shift = paper.value
    ends = (None if end is None else end - shift for end in (ours.low, ours.high))
    return Number(ours.value - shift, ours.digits, *ends, n=ours.n, protocol=ours.protocol, signed=True)


def difference_or_none(ours: Number | None, paper: Number | None) -> Number | None:
    """As `difference`; None where either is missing or they were not measured alike."""
    if ours is None or paper is None or ours.protocol != paper.protocol:
        return None
    return difference(ours, paper)


def share(number: Number, base: Number) -> float:
    """Relative change against a base measured alike, -0.5 for half as much; ValueError if it was not."""
    if number.protocol != base.protocol:
        raise ValueError(f"cannot relate {number.protocol} to {base.protocol}")
    return number.value / base.value - 1


def rows_of(cells: Iterable[Sequence[Any]]) -> tuple[Row, ...]:
    """Rows that nobody quotes."""
    return tuple(Row(tuple(row)) for row in cells)


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
