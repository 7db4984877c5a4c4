"""The palette of all figures and widgets: ten series with a colour, a marker and a dash each, and who has which.

The values are in `palette.json` beside this file, which the JavaScript of the widgets imports too. "light" is the
colour on a white page, "dark" the one on the widgets' dark ground; dashes and their gaps are in line widths. On its
ground each colour has a contrast of 3 : 1 or more, and any two stay apart for readers with protanopia, deuteranopia or
tritanopia (`tests/lab/test_palette.py` measures this). The first three on white are of Okabe and Ito (2008); the others
were searched for the largest distance in OKLab, and those that can be seen on a dark page too come first. Marker and
dash are a second cue, so that no difference is shown by colour alone.
"""

import json
from pathlib import Path
from typing import Any

_FOUND = json.loads(Path(__file__).with_name("palette.json").read_text(encoding="utf-8"))
# The names of markers as matplotlib has them.
_MARKER = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v"}
_MARKER |= {"plus": "P", "cross": "X", "star": "*", "left": "<", "right": ">"}

PALETTE: tuple[str, ...] = tuple(series["light"] for series in _FOUND["series"])
MARKERS = "".join(_MARKER[series["marker"]] for series in _FOUND["series"])
DIVERGING: tuple[str, ...] = tuple(_FOUND["diverging"])  # from below a centre to above it
UNMEASURED: str = _FOUND["unmeasured"]  # a cell without a value
CHOSEN: str = _FOUND["chosen"]  # the outline of the cell that the other views show
GREY = "#666666"  # what is no series: a floor, a zero, a key
MUTED = "#797979"  # 4.3 : 1 against white and against Jupyter's dark page


def look(place: int) -> dict[str, Any]:
    """Colour, marker and dash of the series at a place, as matplotlib's `plot` takes them; the palette repeats."""
    place %= len(PALETTE)
    dash = _FOUND["series"][place]["dash"]
    return {"color": PALETTE[place], "marker": MARKERS[place], "linestyle": (0, tuple(dash)) if dash else "-"}


def class_look(label: int) -> tuple[str, str]:
    """Colour and marker of a class in a scatter; both together repeat after a hundred classes."""
    shift = label // len(PALETTE)  # the second ten classes have other markers than the first
    return PALETTE[label % len(PALETTE)], MARKERS[(label + shift) % len(MARKERS)]


METHODS: dict[str, dict[str, Any]] = {
    name: look(place) for place, name in enumerate(("plain", "guided", "vae", "repa", "layersync", "dispersive", "sra"))
}
# Versions of a feature under the controls for leakage, as in `evaluation.leakage.VERSIONS`.
VERSIONS: dict[str, dict[str, Any]] = {
    "null": look(6),
    "true": look(0),
    "wrong_by_true": look(2),
    "wrong_by_given": look(1),
    "label_only": look(3),
}
