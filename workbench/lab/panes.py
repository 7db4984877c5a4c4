"""What a view is made of: axes that all its panes share, and panes, each of a kind with its arrays."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AXES = ("source", "step", "t", "layer", "w", "image", "guidance")

# Arrays of each kind: type and dimensions. "?" may be missing; a dimension named as an axis has the axis's length, one
# of the same name within a pane the same length, a number is a length, and "..." is any.
ARRAYS: dict[str, dict[str, tuple[str, str]]] = {
    "maps": {
        "images": ("uint8", "n h w c"),
        "u": ("int16", "source step t layer n m k"),
        "d": ("int16", "source step t layer n m k"),
        "u_scale": ("float32", "source step t layer"),
        "d_scale": ("float32", "source step t layer"),
        "total": ("float32", "source step t layer 3"),
    },
    "scatter": {
        "u": ("int16", "source step t layer n 2"),
        "d": ("int16", "source step t layer n 2"),
        "u_scale": ("float32", "source step t layer"),
        "d_scale": ("float32", "source step t layer"),
        "tsne?": ("int16", "source step t layer stops n 2"),
        "tsne_scale?": ("float32", "source step t layer ..."),
        "umap?": ("int16", "source step t layer stops n 2"),
        "umap_scale?": ("float32", "source step t layer ..."),
        "labels": ("uint16", "n"),
        "given?": ("uint16", "n"),
        "sprite": ("uint8", "n h w c"),
        "correct": ("uint8", "source step t layer stops n"),
        "correct_given?": ("uint8", "source step t layer stops n"),
    },
    "heat": {name: ("float32", "measures versions layers times scales") for name in ("values", "low", "high")},
    "samples": {"images": ("uint8", "source step guidance n h w c")},
}


@dataclass(frozen=True)
class Axis:
    """What one slider moves along.

    A discrete axis has `values`, and `texts` say them to a reader. A continuous one has (lowest, highest, step) and,
    where pictures exist only at some values, these as `stops`. `unit` follows each number.
    """

    label: str
    values: Sequence[float | int | str]
    continuous: bool = False
    stops: Sequence[float | int] = ()
    texts: Sequence[str] = ()
    unit: str = ""

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
        """The value as a reader sees it, as the browser writes it too."""
        if self.texts and not self.continuous:
            return self.texts[list(self.values).index(value)]
        return f"{_plain(value)}{self.unit}"

    def index(self, name: str, value: Any) -> int:
        """Where a discrete axis has `value`; ValueError, listing what there is, if nowhere."""
        for index, known in enumerate(self.values):
            near = isinstance(value, int | float) and isinstance(known, int | float) and math.isclose(value, known)
            if value == known or near:
                return index
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, self.values))}")

    @property
    def meta(self) -> dict[str, Any]:
        """What the browser needs of it."""
        return {
            "label": self.label,
            "values": list(self.values),
            "continuous": self.continuous,
            "stops": list(self.stops),
            "texts": [] if self.continuous else [self.text(value) for value in self.values],
            "format": "{}" + self.unit,
        }


@dataclass(frozen=True, eq=False)
class Pane:
    """One picture of a view: its kind, its arrays and what else that kind of picture needs (`meta`).

    "maps": `columns` "layers" (default) or "sources"; `layers` the indices shown beside that of the slider; `names`
    of the images; `rows`, the number of each image in a scatter; `joint`, whether sources share a basis (default: each
    has its own); `still`, the sources, by number, that do not change with "t" and with "w" (default: found in the
    arrays). "samples": `names` and `seeds` of the columns. "heat": `measures`, `versions`, `scales`. "scatter": `names`
    of the classes; `given` labels come with the neighbours by them. `options` narrows the choices.
    """

    kind: str
    title: str
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def options(self, axes: Mapping[str, Axis]) -> dict[str, list[str]]:
        """The choices this pane adds to the state, each with its default first."""
        several = {name for name, axis in axes.items() if len(axis.values) > 1}
        found: dict[str, list[str]] = {}
        if self.kind == "maps":
            found = {
                "basis": ["fixed", "refit", "per map", "foreground"],
                "colour": ["rgb", "single", "three"],
                "show": ["one image", "all images"] if len(self.arrays["images"]) > 1 else ["one image"],
            }
        elif self.kind == "scatter":
            found = {"method": ["pca", *(name for name in ("tsne", "umap") if name in self.arrays)]}
            if "given" in self.arrays:
                found["labels"] = ["true", "given"]
        elif self.kind == "heat":
            found = {"measure": list(self.meta["measures"]), "version": list(self.meta["versions"])}
        elif self.kind == "samples":
            rows = [row for row, axis in (("sources", "source"), ("steps", "step")) if axis in several]
            found = {"rows": rows or ["steps"]}
        return {**found, **{name: list(values) for name, values in self.meta.get("options", {}).items()}}

    def complete(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        """`meta` with kind, title and what was left to be found. ValueError if arrays or axes do not fit."""
        self._check(axes)
        found: dict[str, Any] = {"kind": self.kind, "title": self.title, **self.meta}
        if self.kind == "maps":
            tokens, layers = self.arrays["u"].shape[5], self.arrays["u"].shape[3]
            side = math.isqrt(tokens)
            if side * side != tokens or self.arrays["u"].shape[6] < 3:
                raise ValueError(
                    f"{self.title}: {tokens} tokens of {self.arrays['u'].shape[6]} directions; maps need a square and 3"
                )
            usual = {"side": side, "columns": "layers", "layers": sorted({0, layers // 2, layers - 1}), "joint": False}
            found = {**usual, "still": _still(self.arrays), **found}
        return found

    def _check(self, axes: Mapping[str, Axis]) -> None:
        if self.kind not in ARRAYS:
            raise ValueError(f"pane kind is {self.kind!r}; allowed are {', '.join(ARRAYS)}")
        known = {name.rstrip("?"): (name, *what) for name, what in ARRAYS[self.kind].items()}
        needed = {name for name, (written, *_) in known.items() if not written.endswith("?")}
        if not needed <= set(self.arrays) <= set(known):
            raise ValueError(
                f"{self.title}: arrays are {sorted(self.arrays)}; needed {sorted(needed)}, allowed {sorted(known)}"
            )
        if ("given" in self.arrays) != ("correct_given" in self.arrays):
            raise ValueError(f"{self.title}: given and correct_given come together; arrays are {sorted(self.arrays)}")
        sizes = {name: 1 if name not in axes else len(axes[name].values) for name in AXES if name != "w"}
        for name, array in self.arrays.items():
            _, dtype, dims = known[name]
            if array.dtype != np.dtype(dtype):
                raise ValueError(f"{self.title}: {name} is {array.dtype}; it must be {dtype}")
            _match(f"{self.title}: {name}", array.shape, dims.split(), sizes)


def _still(arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Sources of a maps pane, by number, that are the same at every w, and of these those the same at every t.

    Of one time nothing is known, so there no source is said to be the same.
    """
    sources, _, times = arrays["u"].shape[:3]
    w = [source for source in range(sources) if not arrays["d"][source].any()]

    def constant(values: np.ndarray) -> bool:
        return times > 1 and bool((values == values[:, :1]).all())

    return {"t": [of for of in w if constant(arrays["u"][of]) and constant(arrays["u_scale"][of])], "w": w}


def _match(what: str, shape: tuple[int, ...], dims: list[str], sizes: dict[str, int]) -> None:
    """Hold a shape against names of dimensions, learning the sizes of new names."""
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
