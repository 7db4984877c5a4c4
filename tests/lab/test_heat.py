"""The heat maps: the browser's numbers and colours are Python's, every cell can be reached, read and chosen."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib import colormaps

from workbench.lab.panes import Axis
from workbench.lab.panes.heat import HeatPane, draw_heat, heat_limits, heat_number
from workbench.lab.view import View

SCALES = (0.0, 1.0, 2.5, 4.0)
META = {
    "measures": ["knn", "silhouette", "lds"],
    "versions": ["null", "true"],
    "scales": SCALES,
    "labels": {"knn": "kNN", "null": "null label", "true": "true label"},
    "chance": {"knn": 0.1},
    "centre": {"silhouette": 0.0},
    "options": {"version": ["true", "null"]},
}


def heat_view() -> View:
    """kNN .2 to .9, a silhouette of both signs, LDS up to 12; 5 layers, 3 times. The null label has one scale."""
    layer, t, w = np.meshgrid(np.arange(5) / 4, np.arange(3) / 2, np.arange(4) / 3, indexing="ij")
    knn = 0.25 + 0.4 * np.sin(np.pi * (0.2 + 0.6 * layer)) * (1 - 0.5 * t) + 0.2 * w
    values = np.stack([np.stack([0.8 * one, one]) for one in (knn, knn - 0.6, 12 * knn)]).astype(np.float32)
    values[:, 0, :, :, 1:] = np.nan
    values[0, 1, 2, 0, 3] = np.nan
    half = np.array([0.031, 0.02, 0.5], dtype=np.float32)[:, None, None, None, None]
    axes = {
        "t": Axis("t", (0.1, 0.3, 0.7)),
        "layer": Axis("layer", (2, 4, 6, 8, 10)),
        "w": Axis("w", (0.0, 4.0, 0.1), continuous=True, stops=SCALES),
    }
    arrays = {"values": values, "low": values - half, "high": values + half}
    return View("Separability", [HeatPane("Separability", arrays, META)], axes)


def cells(shown, grid: int, what: str) -> np.ndarray:
    """Of every cell of a map, first layer first: its text, the fill of its rectangle, or its name."""
    read = {"text": "c.querySelector('text').textContent", "fill": "c.querySelector('rect').getAttribute('fill')"}
    read |= {"name": "c.getAttribute('aria-label')", "selected": "c.getAttribute('aria-selected')"}
    script = f"(rows) => rows.map((row) => [...row.querySelectorAll('[role=gridcell]')].map((c) => {read[what]}))"
    return np.array(shown.page.locator(f".wb-ht-map >> nth={grid}").locator("[role=row]").evaluate_all(script))[::-1]


def rgb(fills: np.ndarray) -> np.ndarray:
    return np.array([[[int(part) for part in re.findall(r"\d+", fill)] for fill in row] for row in fills]) / 255


def texts(values: np.ndarray, limits: tuple[float, float]) -> list[list[str]]:
    return [[heat_number(float(value), limits) if np.isfinite(value) else "" for value in row] for row in values]


def value_of(shown, name: str) -> str:
    return shown.slider(name).get_attribute("aria-valuetext")


def test_limits_are_of_all_versions_hold_chance_and_are_symmetric_about_a_centre():
    view = heat_view()
    arrays = view.panes[0].arrays
    low, high = heat_limits(META, arrays, "knn")
    assert low == 0.1 and high == pytest.approx(np.nanmax(arrays["values"][0]))
    low, high = heat_limits(META, arrays, "silhouette")
    assert -low == high == pytest.approx(np.nanmax(np.abs(arrays["values"][1])))
    assert heat_limits(META, arrays, "lds") == pytest.approx(
        (np.nanmin(arrays["values"][2]), np.nanmax(arrays["values"][2]))
    )
    empty = {"values": np.full_like(arrays["values"], np.nan)}
    assert heat_limits(META, empty, "knn") == (0.0, 1.0)


@pytest.mark.parametrize("measure", META["measures"])
def test_the_browser_shows_the_numbers_and_colours_of_python(show, measure):
    view = heat_view()
    shown = show(view, measure=measure, version="true", w=2.3, t=0.3, layer=4)
    values = view.panes[0].arrays["values"][META["measures"].index(measure), 1]
    limits = heat_limits(META, view.panes[0].arrays, measure)
    for grid, wanted in enumerate((values[:, :, 2], values[:, 1])):
        assert cells(shown, grid, "text").tolist() == texts(wanted, limits)
        colours = rgb(cells(shown, grid, "fill"))
        if measure == "silhouette":
            # Blue below the centre, brown above it: the more red than blue, the larger.
            assert ((colours[..., 0] > colours[..., 2]) == (wanted > 0)).all()
        else:
            exact = colormaps["viridis"]((wanted.astype(np.float64) - limits[0]) / (limits[1] - limits[0]))[..., :3]
            assert np.abs(colours - exact).max() <= 1 / 255
    assert shown.page.locator(".wb-ht-map").nth(0).locator("text").first.text_content() == "at w = 2.5 (nearest to 2.3)"


def test_what_was_not_measured_is_said(show):
    view = heat_view()
    shown = show(view, version="true", w=4.0, t=0.1, layer=6)
    assert cells(shown, 0, "text")[2].tolist() == [
        "",
        *texts(view.panes[0].arrays["values"][0, 1, 2:3, 1:, 3], (0, 1))[0],
    ]
    assert cells(shown, 0, "name")[2, 0] == "layer 6, t = 0.1, w = 4: kNN not measured"
    shown.page.get_by_role("combobox", name="label", exact=True).select_option(label="null label")
    assert shown.page.locator(".wb-ht-map").nth(1).locator("text").first.text_content() == "at t = 0.1 (w = 0 only)"
    assert (cells(shown, 1, "text")[:, 1:] == "").all() and (cells(shown, 1, "text")[:, 0] != "").all()


def test_a_cell_is_read_with_its_interval_and_the_chance(show):
    view = heat_view()
    shown = show(view, version="true", w=1.0, t=0.3, layer=6)
    read = shown.page.locator(".wb-ht-read")
    value = float(view.panes[0].arrays["values"][0, 1, 2, 1, 1])
    number = [heat_number(value + shift, (0, 1), digits=3) for shift in (0, -0.031, 0.031)]
    here = f"layer 6, t = 0.3, w = 1: kNN {number[0]} (95 % interval {number[1]} to {number[2]}), chance .10"
    assert read.inner_text() == here
    shown.page.locator(".wb-ht-map").nth(0).locator(
        "[role=gridcell]"
    ).first.hover()  # the deepest layer, the first time
    assert read.inner_text().startswith("layer 10, t = 0.1, w = 1: kNN ")
    shown.page.mouse.move(1, 1)
    assert read.inner_text() == here
    shown.slider("w").focus()
    shown.page.keyboard.press("End")
    shown.settled()
    assert read.inner_text().startswith("layer 6, t = 0.3, w = 4: kNN ")


def test_cells_by_keyboard(show):
    view = heat_view()
    shown = show(view, version="true", w=1.0, t=0.3, layer=6)
    for grid, label in ((0, "kNN, layer by t, at w = 1."), (1, "kNN, layer by w, at t = 0.3.")):
        element = shown.page.get_by_role("grid").nth(grid)
        assert element.get_attribute("aria-label").startswith(label)
        assert element.locator("[tabindex='0']").count() == 1
    first = shown.page.get_by_role("grid").nth(0)
    assert first.get_by_role("row").count() == 5 and first.get_by_role("gridcell").count() == 15
    first.locator("[tabindex='0']").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight"):  # up is deeper; there is nothing right of the last time
        shown.page.keyboard.press(key)
    focused = shown.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert (
        focused.startswith("layer 8, t = 0.7, w = 1: kNN ")
        and shown.page.locator(".wb-ht-read").inner_text() == focused
    )
    shown.page.keyboard.press("Enter")
    shown.settled()
    assert [value_of(shown, name) for name in ("layer", "t", "w")] == ["8", "0.7", "1"]
    chosen = cells(shown, 0, "selected") == "true"
    assert chosen.sum() == 1 and chosen[3, 2]
    assert shown.page.evaluate("document.activeElement.getAttribute('aria-label')") == focused
    shown.page.keyboard.press("Tab")
    shown.page.keyboard.press("End")
    shown.page.keyboard.press("PageDown")
    shown.page.keyboard.press(" ")
    shown.settled()
    assert [value_of(shown, name) for name in ("layer", "t", "w")] == ["2", "0.7", "4"]


def test_a_click_chooses_layer_time_and_scale(show):
    shown = show(heat_view(), version="true", w=1.3, t=0.3, layer=6)
    shown.page.locator(".wb-ht-map").nth(0).locator("[role=gridcell]").first.click()
    shown.settled()
    assert [value_of(shown, name) for name in ("layer", "t", "w")] == ["10", "0.1", "1"]
    shown.page.locator(".wb-ht-map").nth(1).locator("[role=row]").nth(4).locator("[role=gridcell]").nth(2).click()
    shown.settled()
    assert [value_of(shown, name) for name in ("layer", "t", "w")] == ["2", "0.1", "2.5"]


def test_the_colour_bar_has_its_numbers_and_the_chance(show):
    view = heat_view()
    shown = show(view, version="true")
    bar, (low, high) = shown.page.locator(".wb-ht-scale"), heat_limits(META, view.panes[0].arrays, "knn")
    ticks = [heat_number(value, (low, high)) for value in (low, (low + high) / 2, high)]
    assert bar.locator("text").all_text_contents() == [*ticks, "chance .10"]
    shown.page.get_by_role("combobox", name="measure", exact=True).select_option(label="silhouette")
    assert bar.locator("text").nth(1).text_content() == ".00" and bar.locator("text").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_saved_picture_is_on_white_and_whole(show, tmp_path, scheme):
    shown = show(heat_view(), scheme=scheme, version="true")
    with shown.page.expect_download() as waiting:
        shown.page.get_by_role("button", name="Save SVG").click()
    waiting.value.save_as(tmp_path / "heat.svg")
    root = ElementTree.parse(tmp_path / "heat.svg").getroot()
    inks = {text.get("fill") for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert inks <= {"#1c1e21", "#111", "#fff"}
    found = [text for text in root.itertext() if text.strip()]
    assert found[0] == "kNN · true label"
    for grid in (0, 1):
        assert set(cells(shown, grid, "text").ravel()) <= {"", *found}


def test_the_figure_has_the_same_numbers():
    view = heat_view()
    state = view.state(version="true", w=2.3, t=0.3, layer=4)
    pane = view.panes[0]
    figure = draw_heat(pane.complete(view.axes), pane.arrays, state, view.axes)
    limits = heat_limits(META, pane.arrays, "knn")
    for axis, wanted in zip(
        figure.axes, (pane.arrays["values"][0, 1, :, :, 2], pane.arrays["values"][0, 1, :, 1]), strict=False
    ):
        np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), wanted)
        assert axis.images[0].get_clim() == limits
        assert [text.get_text() for text in axis.texts] == [
            text for row in texts(wanted, limits) for text in row if text
        ]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["2", "4", "6", "8", "10"]
    assert [axis.patches[0].get_xy() for axis in figure.axes[:2]] == [(0.5, 0.5), (1.5, 0.5)]
    assert figure.axes[0].get_title(loc="left") == "at w = 2.5 (nearest to 2.3)"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_figure_is_saved(tmp_path, ending):
    path = heat_view().save(tmp_path / f"heat.{ending}", measure="silhouette", version="null")
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


@pytest.mark.parametrize("width", [390, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(show, width, scheme):
    page = show(heat_view(), width=width, scheme=scheme, version="true").page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    first, second = (page.locator(".wb-ht-map").nth(grid).bounding_box() for grid in (0, 1))
    assert second["x"] >= first["x"] + first["width"] or second["y"] >= first["y"] + first["height"]
    assert second["x"] + second["width"] <= width
