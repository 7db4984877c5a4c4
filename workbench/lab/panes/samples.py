"""Samples: one column per seed, so that all rows start from the same noise; rows are steps, or runs at one step."""

from typing import ClassVar

from matplotlib.figure import Figure

from workbench.lab.drawing import coloured, mosaic
from workbench.lab.panes import Arrays, AxesByName, Axis, Meta, Pane, State, text_of


class SamplesPane(Pane):
    """Samples. `meta` has the `names` and `seeds` of the columns."""

    ARRAYS: ClassVar = {"images": ("uint8", "source step guidance n h w c")}

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        several = [row for row, axis in (("sources", "source"), ("steps", "step")) if _is_several(axes.get(axis))]
        return {"rows": several or ["steps"]}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_samples(self.complete(axes), self.arrays, state, axes)


def draw_samples(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """Samples with one column per seed; rows are the steps of one source, or the sources at one step."""
    images, of = arrays["images"], "source" if state["rows"] == "sources" else "step"
    lanes = []
    for each in range(images.shape[0 if of == "source" else 1]):
        at = {"source": state.get("source", 0), "step": state.get("step", 0), of: each}
        name = ("step " if of == "step" else "") + text_of(of, at, axes) if of in axes else pane["title"]
        lanes.append((name, images[at["source"], at["step"], state.get("guidance", 0)]))
    rows = [list(coloured(shown)) for _, shown in lanes]
    return mosaic(rows, [name for name, _ in lanes], list(pane.get("names", [])), cell=0.7)


def _is_several(axis: Axis | None) -> bool:
    return axis is not None and len(axis.values) > 1
