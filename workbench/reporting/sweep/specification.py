"""What a sweep's YAML says: rows or a grid over presets, seeds, and how every run is scored."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from workbench.config import (
    SamplingConfig,
    TrainingConfig,
    as_overrides,
    coerce,
    read_yaml,
    record_options,
    refuse_unknown,
    written,
)
from workbench.config.ranges import shown
from workbench.evaluation.names import DETECTORS

_NAME = re.compile(r"\w[\w.+=,-]*")  # names of folders on every system
_UNFIT = re.compile(r"[^\w.+-]+")
_KEYS = ("name", "base", "overrides", "rows", "grid", "seeds", "evaluate")
_ROW_KEYS = ("name", "base", "overrides")
_MOST_ROWS = 10_000
_SAMPLING = ("count", "sampler", "steps", "guidance_scale")


@dataclass(frozen=True)
class RowSpec:
    """A row: a preset or configuration file, and overrides like "training.steps=500" that are its own."""

    name: str
    base: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """How every row is scored; what is None is as in the row's own ``sampling`` section."""

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
    """A sweep: every row with every seed. ``overrides`` are for all rows and their teachers."""

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
            twice = next((value for value in values if values.count(value) > 1), None)
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
    of the wrong kind. The options themselves are checked by ``rows.plan``.
    """
    file = Path(file)
    try:
        tree = read_yaml(file).value
    except FileNotFoundError as error:
        raise ValueError(f"there is no sweep file {file}") from error
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


def evaluation_of(tree: Mapping[str, Any]) -> Evaluation:
    """How to score, from the keys of ``evaluate``; ValueError for an unknown key or detector."""
    known = {field.name for field in fields(Evaluation)}
    hints, values = record_options(SamplingConfig), {}
    for key, value in _mapping("evaluate", tree).items():
        refuse_unknown("option of evaluate", key, sorted(known))
        if key == "detector":
            values[key] = tuple([value] if isinstance(value, str) else _list("evaluate.detector", value))
        elif value is not None:
            values[key] = coerce(f"evaluate.{key}", value, hints[key])
    for detector in values.get("detector", ()):
        refuse_unknown("evaluate.detector", detector, DETECTORS)
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
    """What a row is called after its preset or configuration file."""
    path = Path(source)
    return (path.with_suffix("") if path.suffix in (".yaml", ".yml") else path).as_posix().strip("./").replace("/", "-")


def _crossed(row: RowSpec, grid: Mapping[str, Any]) -> Iterable[RowSpec]:
    """The row at every point of the grid, named by the options' last words and their values."""
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
