"""A page without a kernel: complete, quiet, operated by keyboard, true to screen readers, quick."""

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from PIL import Image

from workbench.lab.packing import unpack
from workbench.lab.page import page
from workbench.lab.panes import Axis
from workbench.lab.panes.maps import MapsPane
from workbench.lab.panes.samples import SamplesPane
from workbench.lab.view import View

# From a key to the last pixels put on a canvas: the delay of whoever presses the key is not in it.
PROBE = """() => {
  window.taken = [];
  let start = null;
  let end = null;
  const put = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (...given) {
    put.apply(this, given);
    end = performance.now();
  };
  addEventListener("keydown", () => { start = performance.now(); end = null; }, true);
  window.finished = () => { if (end !== null) taken.push(end - start); };
}"""


def samples_view() -> View:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 3, 2, 4, 8, 8, 1), dtype=np.uint8)
    axes = {
        "source": Axis("method", ("plain", "guided")),
        "step": Axis("training step", (1000, 5000, 20_000)),
        "guidance": Axis("guidance", (1.0, 1.5)),
    }
    return View("Samples", [SamplesPane("Samples", {"images": images}, {"names": list("abcd")})], axes)


def test_the_page_holds_everything_and_asks_for_nothing(maps_view):
    view = maps_view()
    text = page(view.meta, view.data, view.state())
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]+"', text.split("<script")[0])
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src" in text
    assert not re.search(r"""import\(["'`]""", text)  # of modules, only the text of panes of other packages
    meta = json.loads(re.search(r'id="workbench-view-meta">(.*?)</script>', text)[1])
    packed = base64.b64decode(re.search(r'id="workbench-view-data">(.*?)</script>', text)[1])
    arrays = unpack(meta["arrays"], zlib.decompress(packed), 0)
    assert all(np.array_equal(arrays[name], array) for name, array in view.panes[0].arrays.items())
    assert meta["offline"] is True


def test_titles_cannot_end_the_script(show, maps_view):
    (pane,) = maps_view().panes
    title = "</script><b>bold</b> & 'more'"
    shown = show(View(title, [pane], maps_view().axes))
    assert shown.page.locator(".wb h2").inner_text() == title and shown.page.title() == title


def test_a_demo_view_is_smaller_than_three_megabytes(features):
    arrays = {"images": np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)}
    axes = {
        "t": Axis("t", tuple(range(9))),
        "layer": Axis("layer", tuple(range(13))),
        "image": Axis("image", tuple(range(6))),
    }
    pane = MapsPane("Token maps", {**arrays, **features(layers=13, times=9)})
    view = View("Token maps", [pane], {**axes, "w": Axis("w", (0.0, 6.0, 0.1), continuous=True)})
    assert len(page(view.meta, view.data, view.state())) < 3_000_000


def test_sliders_have_names_and_true_values(show, maps_view):
    shown = show(maps_view(), t=0.3, layer=6, w=2.5)
    texts = {name: shown.slider(name).get_attribute("aria-valuetext") for name in ("t", "layer", "w", "image")}
    assert texts == {"t": "0.3", "layer": "6", "w": "2.5", "image": "0"}
    assert shown.page.get_by_role("slider").count() == 4  # one training step needs no slider
    shown.slider("layer").focus()
    for key, text in (("ArrowRight", "7"), ("End", "12"), ("Home", "1"), ("ArrowLeft", "1")):
        shown.page.keyboard.press(key)
        shown.settled()
        assert shown.slider("layer").get_attribute("aria-valuetext") == text
    shown.slider("w").focus()
    shown.page.keyboard.press("ArrowRight")
    shown.settled()
    assert shown.slider("w").get_attribute("aria-valuetext") == "2.6"


def test_every_control_is_reached_by_tab_and_has_a_name(show, maps_view):
    shown = show(maps_view())
    reached = []
    for _ in range(10):
        shown.page.keyboard.press("Tab")
        reached.append(
            shown.page.evaluate("""() => {
              const at = document.activeElement;
              return at.ariaLabel ?? at.closest("[role=radiogroup]")?.ariaLabel ?? at.innerText;
            }""")
        )
    wanted = ["t", "layer", "w", "image", "basis", "colours", "show", "Copy code", "Save PNG", "Save SVG"]
    assert reached == wanted
    canvases = shown.page.locator("canvas").all()
    assert canvases and all(c.get_attribute("role") == "img" and c.get_attribute("aria-label") for c in canvases)


@pytest.mark.parametrize("width", [1400, 390])
def test_the_sliders_stay_in_sight(show, maps_view, width):
    (pane,), axes = maps_view(noise=True).panes, maps_view().axes
    shown = show(View("Two", [pane, pane], axes), width, show="all images")
    bar, foot = shown.page.locator(".wb-axes"), shown.page.locator(".wb-foot")
    before = bar.bounding_box()["y"]
    foot.scroll_into_view_if_needed()
    box = bar.bounding_box()
    assert before > box["y"] == 0 and box["height"] < 100 and foot.bounding_box()["y"] > box["height"]
    shown.slider("w").focus()
    shown.page.keyboard.press("End")
    assert bar.bounding_box() == box and shown.slider("w").get_attribute("aria-valuetext") == "6"
    assert shown.slider("w").get_attribute("title").endswith("Eq. 3")  # read by screen readers too
    heads = shown.page.locator(".wb-pane").last.locator(".wb-tile-head").all_inner_texts()
    assert [text.split("\n")[0] for text in heads if text][-3:] == ["layer 1", "layer 7", "layer 12"]


def test_choices_move_with_arrow_keys(show, maps_view):
    shown = show(maps_view())
    shown.page.get_by_role("radio", name="fixed").focus()
    shown.page.keyboard.press("ArrowRight")
    assert shown.page.get_by_role("radio", name="refit").is_checked()
    assert "fitted again" in shown.page.locator(".wb-note").inner_text()


@pytest.mark.parametrize("width", [390, 900, 1400])
@pytest.mark.parametrize("values", [{}, {"show": "all images", "basis": "refit", "colour": "three"}])
def test_nothing_overlaps_or_runs_over(show, maps_view, width, values):
    shown = show(maps_view(), width, **values)
    boxes = shown.page.evaluate("""() => [...document.querySelectorAll(
      ".wb-slider > *, .wb-choice, .wb-tile canvas, figcaption, .wb-note, .wb-button")].map((e) => {
        const { left, top, right, bottom } = e.getBoundingClientRect();
        return [left, top, right, bottom];
      }).filter(([left, top, right, bottom]) => right > left && bottom > top)""")
    assert len(boxes) > 10 and all(left >= 0 and right <= width for left, _, right, _ in boxes)
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert (
                right <= other[0] + 0.6 or other[2] <= left + 0.6 or bottom <= other[1] + 0.6 or other[3] <= top + 0.6
            )
    assert shown.page.evaluate("document.documentElement.scrollWidth") == width


def test_dark_and_light_follow_the_reader(show, maps_view):
    shown = show(maps_view(), scheme="dark")
    colour = "getComputedStyle(document.querySelector('.wb')).backgroundColor"
    dark = shown.page.evaluate(colour)
    shown.page.emulate_media(color_scheme="light")
    shown.settled()
    light = shown.page.evaluate(colour)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))
    shown.page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    shown.settled()
    assert shown.page.evaluate(colour) == dark


def test_copied_code_is_that_of_python(show, maps_view):
    view = maps_view()
    values = {"t": 0.3, "layer": 6, "w": 2.5, "image": 2, "basis": "per map"}
    shown = show(view, **values)
    shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.page.get_by_role("button", name="Copy code").click()
    shown.page.get_by_text("Copied the code").wait_for()
    copied = shown.page.evaluate("navigator.clipboard.readText()")
    assert copied == view.code(**values)
    assert "layer=6" in copied and "t=0.3" in copied and 'basis="per map"' in copied


@pytest.mark.parametrize("values", [{"layer": 5}, {"show": "all images", "colour": "single", "layer": 7}])
def test_png_and_svg_are_saved(show, maps_view, tmp_path, values):
    shown = show(maps_view(), **values)
    files = {}
    for ending in ("PNG", "SVG"):
        with shown.page.expect_download() as waiting:
            shown.page.get_by_role("button", name=f"Save {ending}").click()
        assert waiting.value.suggested_filename == f"token-maps.{ending.lower()}"
        files[ending] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[ending])
    svg = ElementTree.fromstring(files["SVG"].read_text())
    images = svg.findall(".//{http://www.w3.org/2000/svg}image")
    assert len(images) == (6 * 4 if "show" in values else 5)  # layer 7 is one of those shown
    png = np.array(Image.open(files["PNG"]).convert("RGB")).astype(int)
    assert png.shape[1] == 3 * float(svg.get("width")) and (png[0, 0] == 255).all()
    # The top left token of the first layer: the picture has the colours of the page.
    token = shown.page.locator(".wb-tile canvas").nth(2)  # layer 1, after that of the slider
    colour = token.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)")
    top, left = (int(images[1].get(name)) for name in ("y", "x"))
    assert np.abs(png[3 * (top + 8), 3 * (left + 6)] - colour).max() <= 2


def test_a_pdf_needs_a_kernel(show, maps_view, tmp_path):
    view = maps_view()
    assert show(view).page.get_by_role("button", name="Save PDF").count() == 0
    text = page(view.meta, view.data, view.state()).replace('"offline": true', '"offline": false')
    file = tmp_path / "kernel.html"
    file.write_text(text)
    other = show(view).page
    other.goto(file.as_uri())
    assert other.get_by_role("button", name="Save PDF").count() == 1


def test_what_goes_wrong_is_said(show, maps_view):
    (pane,) = maps_view().panes
    broken = View("Broken", [pane], maps_view().axes)
    broken._described[0]["kind"] = "nothing"
    shown = show(broken)
    said = 'Token maps: pane "nothing" cannot be drawn: Module not found in bundle: ./panes/nothing.js'
    assert shown.page.get_by_role("alert").inner_text() == said
    assert any("nothing" in said for said in shown.wrong)
    shown.wrong.clear()


def test_an_error_that_passes_is_taken_back(show, maps_view):
    shown = show(maps_view())
    shown.page.evaluate(
        "() => { window.own = ImageData; window.ImageData = class { constructor() { throw new Error('no'); } }; }"
    )
    shown.slider("w").focus()
    shown.page.keyboard.press("ArrowRight")
    shown.settled()
    assert shown.page.get_by_role("alert").inner_text() == "Token maps: no"
    shown.page.evaluate("() => { window.ImageData = window.own; }")
    shown.page.keyboard.press("ArrowRight")
    shown.settled()
    assert shown.status() == ""
    shown.wrong.clear()


@pytest.mark.parametrize("basis", ["fixed", "refit"])
def test_a_slider_is_quick(show, maps_view, basis):
    shown = show(maps_view(), basis=basis)
    shown.page.evaluate(PROBE)
    shown.slider("w").focus()
    for _ in range(30):
        shown.page.keyboard.press("ArrowRight")
        shown.settled()
        shown.page.evaluate("finished()")
    taken = np.array(shown.page.evaluate("taken"))
    assert len(taken) == 30
    print(f"{basis}: p50 {np.percentile(taken, 50):.1f} ms, p95 {np.percentile(taken, 95):.1f} ms")
    assert np.percentile(taken, 95) < 50


def test_moves_leave_nothing_behind(show, maps_view):
    shown = show(maps_view())
    session = shown.page.context.new_cdp_session(shown.page)
    shown.slider("w").focus()

    def heap() -> float:
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"]

    def move(times: int) -> None:
        shown.page.evaluate(
            """async (times) => {
          const input = document.querySelector("[data-axis=w]");
          for (let i = 0; i < times; i += 1) {
            input.value = (i % 60) / 10;
            input.dispatchEvent(new Event("input"));
            await new Promise(requestAnimationFrame);
          }
        }""",
            times,
        )

    move(20)
    before = heap()
    move(300)
    assert heap() - before < 10e6


def test_samples_stand_by_step_or_by_source(show):
    view = samples_view()
    shown = show(view, rows="steps", source="guided", guidance=1.5)
    images = view.panes[0].arrays["images"]
    names = shown.page.locator(".wb-lane-name").all_inner_texts()
    assert [name for name in names if name] == ["step 1,000", "step 5,000", "step 20,000"]
    read = "(c) => [...c.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 === 0)"
    canvas = shown.page.locator(".wb-lane canvas")
    assert canvas.nth(4 + 2).evaluate(read) == images[1, 1, 1, 2].ravel().tolist()
    shown.page.get_by_role("radio", name="runs").check(force=True)
    shown.slider("training step").focus()
    shown.page.keyboard.press("Home")
    shown.settled()
    assert canvas.count() == 8
    assert canvas.nth(3).evaluate(read) == images[0, 0, 1, 3].ravel().tolist()
    assert canvas.nth(3).get_attribute("aria-label") == "sample of plain, seed 3, d, guidance 1.5"


@pytest.mark.parametrize("width", [900, 1400])
def test_of_three_panes_the_second_stands_beside_the_others_where_there_is_room(show, width):
    view = samples_view()
    three = View("Three", [SamplesPane(name, view.panes[0].arrays) for name in "abc"], view.axes)
    first, second, third = (pane.bounding_box() for pane in show(three, width).page.locator(".wb-pane").all())
    if width == 900:
        assert first["x"] == second["x"] == third["x"]
        assert first["y"] + first["height"] < second["y"] < second["y"] + second["height"] < third["y"]
    else:
        assert second["x"] > first["x"] + first["width"] and second["y"] == first["y"]
        assert third["x"] == first["x"] and third["y"] > first["y"] + first["height"]
        assert third["width"] == first["width"] > 700 > second["width"] > 450  # a scatter of 700 has its table beside
