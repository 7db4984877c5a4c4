"""The palette of all figures and widgets: ten series, each with a colour, a marker and a dash pattern.

The values are in `palette.json` beside this file, which the JavaScript of the widgets imports too. "light" is the
colour on a white background, "dark" the one on the dark background of the widgets; dashes and gaps are in line widths.
Each colour has a contrast of at least 3 : 1 to its background, and any two can be distinguished by readers with
protanopia, deuteranopia or tritanopia (`tests/lab/test_palette.py` measures this). The first three on white are from
Okabe and Ito (2008); the others maximise the distance in OKLab, and those that are visible on a dark background too
come first. Marker and dash are a second cue, so that no difference is shown by colour alone.
"""

import json
from pathlib import Path
from typing import Any

_PALETTE = json.loads(Path(__file__).with_name("palette.json").read_text(encoding="utf-8"))
# Markers by name, as matplotlib calls them.
_MARKER_CODES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v"}
_MARKER_CODES |= {"plus": "P", "cross": "X", "star": "*", "left": "<", "right": ">"}

PALETTE: tuple[str, ...] = tuple(series["light"] for series in _PALETTE["series"])
MARKERS = "".join(_MARKER_CODES[series["marker"]] for series in _PALETTE["series"])
DIVERGING: tuple[str, ...] = tuple(_PALETTE["diverging"])  # from below the centre to above it
UNMEASURED: str = _PALETTE["unmeasured"]  # a cell without a value
GREY = "#666666"  # text of charts, and lines that are not a series: a floor, a zero, a legend


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dash of a series by index, as arguments of matplotlib's `plot`; the palette repeats."""
    index %= len(PALETTE)
    dash = _PALETTE["series"][index]["dash"]
    return {"color": PALETTE[index], "marker": MARKERS[index], "linestyle": (0, tuple(dash)) if dash else "-"}


def class_look(label: int) -> tuple[str, str]:
    """Colour and marker of a class in a scatter plot; the pair repeats after a hundred classes."""
    shift = label // len(PALETTE)  # so that the second ten classes have other markers than the first
    return PALETTE[label % len(PALETTE)], MARKERS[(label + shift) % len(MARKERS)]


METHODS: dict[str, dict[str, Any]] = {
    name: look(index) for index, name in enumerate(("plain", "guided", "vae", "repa", "layersync", "dispersive", "sra"))
}
# Versions of a feature under the controls for leakage, as in `evaluation.leakage.VERSIONS`.
VERSIONS: dict[str, dict[str, Any]] = {
    "null": look(6),
    "true": look(0),
    "wrong_by_true": look(2),
    "wrong_by_given": look(1),
    "label_only": look(3),
}
