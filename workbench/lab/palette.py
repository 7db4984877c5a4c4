"""The palette of all figures: ten colours with a marker each, and which of them stands for a method or a control.

On white each colour has a contrast of 3 : 1 or more, and any two stay apart for readers with protanopia or deuteranopia
(`tests/lab/test_palette.py` measures both). The first three are of Okabe and Ito (2008); the others were searched for
the largest distance in OKLab. Marker and line style are a second cue, so that nothing is told by colour alone.
"""

from typing import Any

PALETTE = (
    "#0072b2",  # blue
    "#d55e00",  # vermilion
    "#009e73",  # green
    "#a92e6c",  # berry
    "#8c7eff",  # lavender
    "#503807",  # brown
    "#629ac0",  # sky
    "#720569",  # purple
    "#934b0c",  # rust
    "#0e3ca5",  # navy
)
MARKERS = "os^DvPX*<>"
GREY = "#666666"  # what is no series: a floor, a zero, a key
MUTED = "#797979"  # 4.3 : 1 against white and against Jupyter's dark page


def look(place: int, linestyle: Any = "-") -> dict[str, Any]:
    """Colour, marker and line of the series at a place, as matplotlib's `plot` takes them; the palette repeats."""
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "linestyle": linestyle}


METHODS: dict[str, dict[str, Any]] = {
    "plain": look(0),
    "guided": look(1, "--"),
    "vae": look(2, ":"),
    "repa": look(3, "-."),
    "layersync": look(4, (0, (1, 1))),
    "dispersive": look(5, (0, (5, 1))),
    "sra": look(6, (0, (3, 1, 1, 1))),
}
# Versions of a feature under the controls for leakage, as in `evaluation.leakage.VERSIONS`.
VERSIONS: dict[str, dict[str, Any]] = {
    "null": look(6, ":"),
    "true": look(0),
    "wrong_by_true": look(2, "--"),
    "wrong_by_given": look(1, "--"),
    "label_only": look(3, "-."),
}
