"""The palette: its contrast, distances between its colours for colour-blind readers too, and that there is no other."""

import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import CSS4_COLORS, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import workbench
from workbench import lab
from workbench.evaluation import leakage
from workbench.lab.palette import GREY, MARKERS, METHODS, PALETTE, VERSIONS, class_look, look
from workbench.reporting.figures import styles
from workbench.reporting.lines import Chart
from workbench.reporting.paper.style import NAMES

LAB = Path(lab.__file__).parent
DARK = tuple(series["dark"] for series in json.loads((LAB / "palette.json").read_text())["series"])
# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
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


def contrast(colour, ground="#ffffff"):
    """WCAG contrast of a colour against a ground."""
    low, high = sorted(linear(one) @ [0.2126, 0.7152, 0.0722] + 0.05 for one in (colour, ground))
    return high / low


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


@pytest.mark.parametrize("colour", [*PALETTE, GREY])
def test_each_colour_stands_out_on_white(colour):
    assert contrast(colour) >= 3


@pytest.mark.parametrize("colour", DARK)
def test_each_colour_of_the_dark_theme_stands_out_on_its_ground(colour):
    style = (LAB / "js" / "style.css").read_text()
    (ground,) = re.findall(r'data-theme="dark"\] {[^}]*--wb-bg: (#\w+)', style)
    assert contrast(ground) > 15 and contrast(colour, ground) >= 3


def test_charts_are_on_white_and_their_text_can_be_read():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label="a line")
    axis.set(xlabel="steps", ylabel="score", title="a title")
    axis.legend()
    shown = Image.open(io.BytesIO(Chart(figure)._repr_png_())).convert("RGBA")
    assert shown.getpixel((0, 0)) == (255, 255, 255, 255) and shown.getchannel("A").getextrema() == (255, 255)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 10 and min(contrast(text.get_color()) for text in texts) >= 4.5


@pytest.mark.parametrize("colours", [PALETTE, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("vision", "least"), [("normal", 0.13), ("protanopia", 0.1), ("deuteranopia", 0.1), ("tritanopia", 0.08)]
)
def test_any_two_colours_stay_apart(vision, least, colours):
    near = min(itertools.combinations(colours, 2), key=lambda pair: distance(*pair, vision))
    assert distance(*near, vision) >= least, near


def test_ten_colours_markers_and_dashes():
    assert len(set(PALETTE)) == len(set(DARK)) == len(set(MARKERS)) == 10
    assert look(0) == {"color": PALETTE[0], "marker": MARKERS[0], "linestyle": "-"}
    assert look(3)["color"] == PALETTE[3] and look(13) == look(3)
    assert len({str(look(place)["linestyle"]) for place in range(10)}) == 10


def test_a_hundred_classes_are_drawn_each_in_a_way_of_its_own():
    assert [class_look(label) for label in range(10)] == [*zip(PALETTE, MARKERS, strict=True)]
    assert len({class_look(label) for label in range(100)}) == 100


def colours_in(text):
    """Colours with a hue that a source names: #123abc, #abc, 0x123abc, "tab:blue", "C0", "crimson" in quotes.

    Three whole numbers are a colour if they are one of the palette's.
    """
    found = [f"#{digits}" for digits in re.findall(r"(?:#|\b0x)([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b", text)]
    names = re.findall(r"""["'](tab:\w+|C\d|[a-z]+)["']""", text)
    found += [name for name in names if name[:1] == "C" or name.startswith("tab:") or name in CSS4_COLORS]
    triples = {tuple(map(int, numbers)) for numbers in re.findall(r"\b(\d+), (\d+), (\d+)\b", text)}
    found += [one for one in (*PALETTE, *DARK) if tuple(bytes.fromhex(one[1:])) in triples]
    return {to_hex(one) for one in found if np.linalg.norm(oklab(one, "normal")[1:]) > 0.05}


def test_colours_are_found_in_a_source():
    assert colours_in("x = (0, 114, 178), (3, 64, 64)") == {"#0072b2"}
    assert colours_in("a = ['#E69F00', \"0x56B4E9\", 'C0', 'tab:red']; b = '#fff #1c1e21 #777'; 'orchid'") == {
        *("#e69f00", "#56b4e9", "#1f77b4", "#d62728", "#da70d6")
    }


def test_no_other_file_holds_a_palette():
    root = Path(workbench.__file__).parent
    kinds = (".py", ".js", ".css", ".j2", ".json", ".yaml", ".yml")
    files = [path for path in sorted(root.rglob("*.*")) if path.suffix in kinds and "static" not in path.parts]
    files += sorted((root.parent / "notebooks").rglob("*.ipynb"))
    assert len(files) > 200
    own = {*PALETTE, *DARK}
    for path in files:
        # A terminal has colours of its own, which are known by name.
        if (path.parent == LAB and path.stem == "palette") or path.is_relative_to(root / "cli"):
            continue
        found = colours_in(path.read_text(encoding="utf-8"))
        # A theme is an accent, which is the first series, and the colour of an error, on a light and on a dark ground.
        theme = path.name in ("style.css", "base.html.j2")
        assert len(found) <= (4 if theme else 1), (path, sorted(found))
        assert found & own == ({PALETTE[0], DARK[0]} if theme else set()), (path, sorted(found & own))


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
