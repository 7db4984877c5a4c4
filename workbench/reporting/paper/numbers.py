"""The published numbers, read from ``reports/paper.yml`` and validated."""

import math
import reprlib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.config import coerce, read_yaml, refuse_unknown
from workbench.reporting.paper.table import UNSTATED
from workbench.shipped import shipped

METHODS = ("plain", "vae", "guided", "repa", "dispersive", "sra", "layersync", "other")
_SAMPLERS = ("ode", "sde", UNSTATED)
_PLAIN = (str, int, float, bool, int | None)
_KEYS = ("title", "source", "metrics", "tables", "time", "stated")


@dataclass(frozen=True)
class Metric:
    """Name of a metric, its better direction and the number of decimals printed."""

    name: str
    better: str
    digits: int


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: values by metric, how it was trained and sampled, and its preset at each scale.

    A `quoted` row was taken from another paper and is never trained here; a row without values is only ours.
    """

    row: str
    group: str
    label: str
    method: str
    epochs: int | None
    steps: int | None
    sampler: str
    values: Mapping[str, float]
    presets: Mapping[str, str] = field(default_factory=dict)
    params: str = ""
    at_least: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table: its rows, the number of generated images behind each score, and whether they were guided."""

    title: str
    samples: int
    guided: bool
    rows: tuple[PaperRow, ...]

    def row(self, name: str) -> PaperRow:
        """The row of that name; ValueError that lists the names."""
        refuse_unknown("row", name, [row.row for row in self.rows])
        return next(row for row in self.rows if row.row == name)


@dataclass(frozen=True)
class Phase:
    """A phase of training: number of steps, and rate in steps per second."""

    steps: int
    rate: float


@dataclass(frozen=True)
class TimeRow:
    """A row of section 4.5: hours as printed, and the phases of the training."""

    row: str
    label: str
    method: str
    hours: float
    phases: tuple[Phase, ...]
    presets: Mapping[str, str]


@dataclass(frozen=True)
class Stated:
    """A number in a figure, a caption or the running text."""

    where: str
    what: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class PaperNumbers:
    """All published numbers."""

    title: str
    source: str
    metrics: Mapping[str, Metric]
    tables: Mapping[str, PaperTable]
    time: tuple[TimeRow, ...]
    time_steps: int
    stated: tuple[Stated, ...]

    def stated_value(self, where: str, what: str) -> float:
        """A number that the paper states outside its tables; ValueError if it does not."""
        values = [one.value for one in self.stated if (one.where, one.what) == (where, what)]
        if not values:
            raise ValueError(f"the paper states no {what!r} in {where}")
        return values[0]


def paper_numbers(file: Path | None = None) -> PaperNumbers:
    """All published numbers; ValueError naming the file and the entry that does not fit the schema."""
    return _read(shipped("reports/paper.yml") if file is None else Path(file))


@lru_cache(maxsize=4)
def _read(file: Path) -> PaperNumbers:
    try:
        return _numbers(_mapping("the file", read_yaml(file).value, _KEYS, _KEYS))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {' '.join(str(error).split())}") from error


def _numbers(tree: Mapping[str, Any]) -> PaperNumbers:
    named = _mapping("metrics", tree["metrics"]).items()
    metrics = {name: _record(f"metric {name}", Metric, one) for name, one in named}
    time = _mapping("time", tree["time"], ("steps", "rows"), ("steps", "rows"))
    return PaperNumbers(
        title=coerce("title", tree["title"], str),
        source=coerce("source", tree["source"], str),
        metrics=metrics,
        tables={name: _table(name, one, metrics) for name, one in _mapping("tables", tree["tables"]).items()},
        time=tuple(_time(one) for one in _list("time: rows", time["rows"])),
        time_steps=coerce("time: steps", time["steps"], int),
        stated=tuple(_record("stated", Stated, one) for one in _list("stated", tree["stated"])),
    )


def _table(name: str, tree: Any, metrics: Mapping[str, Metric]) -> PaperTable:
    keys = ("title", "samples", "guided", "rows")
    tree = _mapping(name, tree, keys, keys)
    listed = _list(f"{name}: rows", tree["rows"])
    rows = tuple(_row(f"{name}, row {number}", one, metrics) for number, one in enumerate(listed, start=1))
    names = [row.row for row in rows]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice:
        raise ValueError(f"{name} has the row {twice} twice")
    samples = tree["samples"]
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"{name}: samples is {samples!r}; allowed are whole numbers above 0")
    title, guided = (coerce(f"{name}: {key}", tree[key], kind) for key, kind in (("title", str), ("guided", bool)))
    return PaperTable(title, samples, guided, rows)


def _row(where: str, tree: Any, metrics: Mapping[str, Metric]) -> PaperRow:
    known = dict(_mapping(where, tree, [one.name for one in fields(PaperRow)], ("row", "values")))
    values = _mapping(f"{where}: values", known["values"], metrics, ())
    for metric, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{where}: {metric} is {value!r}; allowed are numbers above 0")
    known["presets"] = _presets(where, known.get("presets", {}))
    row = _record(where, PaperRow, {**known, "values": {metric: float(value) for metric, value in values.items()}})
    refuse_unknown(f"{where}: method", row.method, METHODS)
    refuse_unknown(f"{where}: sampler", row.sampler, _SAMPLERS)
    if row.quoted == bool(row.presets) or row.quoted != (row.sampler == UNSTATED) or row.quoted and not row.values:
        raise ValueError(
            f"{where}: {row.row} is either quoted, with values, no preset and the sampler unstated, or not"
        )
    return row


def _time(tree: Any) -> TimeRow:
    row = dict(_mapping("time", tree, [one.name for one in fields(TimeRow)], ("row", "phases")))
    row["phases"] = tuple(_record(f"time of {row['row']}", Phase, phase) for phase in _list("phases", row["phases"]))
    row["presets"] = _presets("time", row.get("presets", {}))
    if not row["phases"] or any(phase.steps < 1 or not 0 < phase.rate < math.inf for phase in row["phases"]):
        raise ValueError(f"time of {row['row']} needs phases, each with steps and a rate above 0")
    return _record("time", TimeRow, row)


def _presets(where: str, tree: Any) -> dict[str, str]:
    presets = _mapping(f"{where}: presets", tree)
    return {scale: coerce(f"{where}: presets.{scale}", preset, str) for scale, preset in presets.items()}


def _record(where: str, kind: type, tree: Any) -> Any:
    """A record from a mapping; plain values are checked against the types of the fields."""
    names = [one.name for one in fields(kind)]
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    values, hints = _mapping(where, tree, names, needed), typing.get_type_hints(kind)
    return kind(**{k: coerce(f"{where}: {k}", v, hints[k]) if hints[k] in _PLAIN else v for k, v in values.items()})


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list; got {reprlib.repr(value)}")
    return value


def _mapping(where: str, tree: Any, allowed: Any = None, needed: Any = ()) -> Mapping[str, Any]:
    """`tree`, checked to be a mapping with string keys that has all `needed` keys and only `allowed` ones."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} must be keys with values; got {reprlib.repr(tree)}")
    for key in tree:
        if not isinstance(key, str):
            raise ValueError(f"{where}: the key {key!r} is not text")
        if allowed is not None:
            refuse_unknown(f"{where}: key", key, allowed)
    missing = [key for key in needed if key not in tree]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return tree
