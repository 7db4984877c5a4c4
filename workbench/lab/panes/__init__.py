"""Axes and panes of views.

Each kind of pane is a file of this folder; `docs/extending.md` shows how to write another.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from workbench.files import reason

AXES = ("source", "step", "t", "layer", "w", "image", "guidance")


@dataclass(frozen=True)
class Axis:
    """The axis of a slider.

    The `values` of a discrete axis are shown as `texts`, if there are any; those of a continuous one are (lowest,
    highest, step), and `stops` are the only values at which some pictures exist. `unit` follows each number. `about` is
    Markdown that a page says about the axis, and `hint` a short text that is shown when one points at its slider, both
    in place of those of the axis of this name.
    """

    label: str
    values: Sequence[float | int | str]
    continuous: bool = False
    stops: Sequence[float | int] = ()
    texts: Sequence[str] = ()
    unit: str = ""
    about: str = ""
    hint: str = ""

    def __post_init__(self):
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(
                f"axis {self.label!r} has the values {list(self.values)}; allowed are one or more, distinct"
            )
        if self.continuous and not self._is_range():
            raise ValueError(f"axis {self.label!r} is continuous and needs (lowest, highest, step), not {self.values}")
        if self.texts and len(self.texts) != len(self.values):
            raise ValueError(f"axis {self.label!r} has {len(self.texts)} texts for {len(self.values)} values")

    def _is_range(self) -> bool:
        """Whether the values are the lowest, the highest and a step, all finite."""
        numbers = [value for value in self.values if isinstance(value, int | float) and math.isfinite(value)]
        return len(numbers) == len(self.values) == 3 and numbers[0] < numbers[1] and numbers[2] > 0

    def text(self, value: Any) -> str:
        """The value as text with its unit, the same as in the browser."""
        if self.texts and not self.continuous:
            return self.texts[list(self.values).index(value)]
        return f"{_plain(value)}{self.unit}"

    @property
    def limits(self) -> tuple[float | int, float | int]:
        """Lowest and highest value of a continuous axis."""
        low, high, _ = (value for value in self.values if isinstance(value, int | float))
        return low, high

    def index(self, name: str, value: Any) -> int:
        """Index of `value` on a discrete axis; ValueError, listing the values, if it has none."""
        for index, known in enumerate(self.values):
            near = isinstance(value, int | float) and isinstance(known, int | float) and math.isclose(value, known)
            if value == known or near:
                return index
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, self.values))}")

    @property
    def meta(self) -> dict[str, Any]:
        """The axis as the browser needs it, ready for JSON."""
        return {
            "label": self.label,
            "values": list(self.values),
            "continuous": self.continuous,
            "stops": list(self.stops),
            "texts": [] if self.continuous else [self.text(value) for value in self.values],
            "format": "{}" + self.unit,
            "about": self.about,
        }


State: TypeAlias = Mapping[str, Any]  # by name: an index for each discrete axis, w itself, options, selection
Meta: TypeAlias = Mapping[str, Any]  # what `Pane.complete` returns
Arrays: TypeAlias = Mapping[str, np.ndarray]
AxesByName: TypeAlias = Mapping[str, Axis]


@dataclass(frozen=True, eq=False)
class Pane:
    """One picture of a view: its title, its arrays, and further data of this kind of picture (`meta`).

    Each kind of picture is a subclass, in a Python file with a JavaScript module of the same name. The subclass
    declares the arrays and draws them with matplotlib, the module draws them in the browser. In this package the module
    is ``lab/js/panes/NAME.js``, elsewhere it is beside the Python file. ``meta["options"]`` restricts the choices.
    """

    title: str
    arrays: Arrays
    meta: Mapping[str, Any] = field(default_factory=dict)

    # Arrays of this kind: type and dimensions. A name that ends in "?" is optional. A dimension with the name of an
    # axis has the axis's length; dimensions with equal names have equal lengths; a number is a length; "..." stands for
    # any dimensions.
    ARRAYS: ClassVar[Mapping[str, tuple[str, str]]] = {}
    SCRIPT: ClassVar[str] = ""  # file name of the JavaScript module, if it is not that of the Python file
    kind: ClassVar[str] = ""  # name of the module in the browser

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if not cls._is_ours():
            cls.kind = f"{cls.__module__}:{cls.__qualname__}"
        elif cls.__module__ != __name__:
            cls.kind = cls.__module__.rpartition(".")[2]

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        """Options of this kind of pane, each with its values, the default first."""
        return {}

    def inferred(self) -> dict[str, Any]:
        """Entries of `meta` that can be inferred from the arrays. ValueError for arrays that do not fit together."""
        return {}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        """The picture as a matplotlib Figure. The state has an index for each discrete axis, as in the browser."""
        raise ValueError(f"{self.title}: this kind of picture can only be drawn in the browser")

    @property
    def selects(self) -> bool:
        """Whether the picture depends on which images are selected."""
        return False

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Number of images and of tokens per image, if the picture shows what is like the `tokens` of the state."""
        return None

    def options(self, axes: AxesByName) -> dict[str, list[str]]:
        """Options that this pane adds to the state, each with its values, the default first."""
        restricted = {name: list(values) for name, values in self.meta.get("options", {}).items()}
        return {**self.choices(axes), **restricted}

    def complete(self, axes: AxesByName) -> dict[str, Any]:
        """`meta` with kind, title and inferred entries. ValueError if the arrays do not fit the axes."""
        self._check(axes)
        return {**self.inferred(), "kind": self.kind, "title": self.title, **self.meta}

    @classmethod
    def script(cls) -> str:
        """The JavaScript module of a kind from another package; "" for those of this package, which are bundled.

        ValueError if the module is missing.
        """
        if cls._is_ours():
            return ""
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file is None:
            raise ValueError(f"{cls.__qualname__} must be defined in a file, with its JavaScript module beside it")
        path = Path(file).with_name(cls.SCRIPT or f"{Path(file).stem}.js")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the JavaScript module of {cls.__module__}.{cls.__qualname__} cannot be read: {path} ({reason(error)})"
            ) from error

    @classmethod
    def _is_ours(cls) -> bool:
        return cls.__module__.startswith("workbench.lab.")

    def _check(self, axes: AxesByName) -> None:
        known = {name.rstrip("?"): (name, *what) for name, what in self.ARRAYS.items()}
        needed = {name for name, (written, *_) in known.items() if not written.endswith("?")}
        if not needed <= set(self.arrays) <= set(known):
            raise ValueError(
                f"{self.title}: arrays are {sorted(self.arrays)}; needed {sorted(needed)}, allowed {sorted(known)}"
            )
        sizes = {name: 1 if name not in axes else len(axes[name].values) for name in AXES if name != "w"}
        for name, array in self.arrays.items():
            _, dtype, dims = known[name]
            if array.dtype != np.dtype(dtype):
                raise ValueError(f"{self.title}: {name} is {array.dtype}; it must be {dtype}")
            _match(f"{self.title}: {name}", array.shape, dims.split(), sizes)


def text_of(name: str, state: State, axes: AxesByName) -> str:
    """The value of an axis in a state, as text."""
    axis = axes[name]
    return axis.text(state[name] if axis.continuous else axis.values[state[name]])


def image_axis(rows: Sequence[int], names: Sequence[str]) -> Axis:
    """The axis of images by row number, shown as "2 of 6: coat"."""
    return Axis("image", tuple(rows), texts=[f"{at} of {len(rows)}: {name}" for at, name in enumerate(names, 1)])


def image_name(names: Sequence[str], image: int, count: int) -> str:
    """An image of a view, such as "image 2 of 6: coat"."""
    return f"image {image + 1} of {count}{f': {names[image]}' if names else ''}"


def nearest_stop(stops: Sequence[float], w: float | None) -> int:
    """Index of the stop nearest to w, in a tie the first; 0 without w or stops."""
    return 0 if w is None or not stops else int(np.argmin(np.abs(np.asarray(stops, dtype=np.float64) - w)))


def fixed(value: float, digits: int) -> str:
    """The number with `digits` decimals, halves rounded away from zero as in browsers."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _match(what: str, shape: tuple[int, ...], dims: list[str], sizes: dict[str, int]) -> None:
    """Check a shape against names of dimensions, and add the sizes of new names to `sizes`."""
    plain = [dim for dim in dims if dim != "..."]
    if len(shape) < len(plain) or (len(shape) != len(plain) and "..." not in dims):
        raise ValueError(f"{what} has the shape {shape}; it must be {' '.join(dims)}")
    for dim, size in zip(plain, shape, strict=False):
        expected = int(dim) if dim.isdecimal() else sizes.setdefault(dim, size)
        if size != expected:
            raise ValueError(f"{what} has the shape {shape} ({' '.join(dims)}); {dim} must be {expected}")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\.?0+$", "", f"{value:.6f}")
