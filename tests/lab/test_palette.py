"""The palette: contrast on white, and distance between colours for normal and for colour-blind readers."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from workbench.evaluation import leakage
from workbench.lab.palette import GREY, MARKERS, METHODS, MUTED, PALETTE, VERSIONS, look
from workbench.reporting.figures import styles
from workbench.reporting.paper.style import NAMES

# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
# Ottosson 2020.
TO_CONES = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.6299787]]
)
TO_LAB = np.array(
    [[0.21045426, 0.7936178, -0.00407205], [1.9779985, -2.428592, 0.4505937], [0.02590404, 0.7827718, -0.8086758]]
)


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(colour):
    """WCAG contrast against white."""
    return 1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05)


def oklab(colour, vision):
    seen = np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)
    return TO_LAB @ np.cbrt(TO_CONES @ seen)


def distance(first, second, vision):
    return float(np.linalg.norm(oklab(first, vision) - oklab(second, vision)))


def test_the_measure_itself():
    assert contrast("white") == pytest.approx(1) and contrast("black") == pytest.approx(21)
    assert oklab("white", "normal") == pytest.approx([1, 0, 0], abs=1e-4)
    # Red and green of one lightness, apart for most readers, meet for those who lack a cone.
    assert distance("#c00000", "#5a6a00", "normal") > 3 * distance("#c00000", "#5a6a00", "deuteranopia")


@pytest.mark.parametrize("colour", [*PALETTE, GREY, MUTED])
def test_each_colour_stands_out_on_white(colour):
    assert contrast(colour) >= 3


@pytest.mark.parametrize(("vision", "least"), [("normal", 0.13), ("protanopia", 0.1), ("deuteranopia", 0.1)])
def test_any_two_colours_stay_apart(vision, least):
    near = min(itertools.combinations(PALETTE, 2), key=lambda pair: distance(*pair, vision))
    assert distance(*near, vision) >= least, near


def test_ten_colours_and_ten_markers():
    assert len(set(PALETTE)) == len(set(MARKERS)) == 10
    assert look(3) == {"color": PALETTE[3], "marker": MARKERS[3], "linestyle": "-"} and look(13) == look(3)


def test_methods_and_versions_are_told_apart_by_each_cue():
    for looks in (METHODS, VERSIONS):
        for cue in ("color", "marker"):
            assert len({one[cue] for one in looks.values()}) == len(looks)
    assert METHODS.keys() == NAMES.keys() and VERSIONS.keys() == leakage.VERSIONS.keys()
    assert len({str(one["linestyle"]) for one in METHODS.values()}) == len(METHODS)


def test_runs_of_other_names_have_colours_that_no_method_of_theirs_has():
    found = styles(["mine", "plain", "yours", "guided"])
    assert found["plain"] == METHODS["plain"] and found["guided"] == METHODS["guided"]
    assert len({one["color"] for one in found.values()}) == 4
