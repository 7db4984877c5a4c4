"""What is like a token: the numbers are those of torch, and the browser shows them, by pointer and by keyboard."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.lab.panes import Axis
from workbench.lab.panes.maps import MapsPane
from workbench.lab.sources import Source
from workbench.lab.unit_tokens import left_out, stored_similarity, stored_tokens, unit_tokens
from workbench.lab.view import View

PIXELS = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reader(d=24, n=4, m=9):
    """Features by (step, t, layer): of many directions, whose sizes fall."""
    sizes = torch.logspace(0, -1.5, d)

    def read(step, t, layer):
        f_u, f_c = (draw(n, m, d, seed=int(100 * t) + 7 * layer + which) * sizes + 0.2 for which in (0, 1))
        return f_u, f_u + 0.3 * f_c

    return read


@pytest.mark.parametrize("room", [1e9, 6000])
def test_what_is_left_out_is_told_at_any_w(room):
    read = reader()
    arrays = unit_tokens([Source("one", read)], 1, [0.2, 0.7], [1, 2], room)
    count = len(arrays["unit_u"])
    assert count == 24 if room == 1e9 else 8 <= count < 20
    for t, layer in np.ndindex(2, 2):
        f_u, f_c = (of.double().numpy() for of in read(0, (0.2, 0.7)[t], (1, 2)[layer]))
        for w in (0.0, 1.0, 30.0):
            f_g = f_u + w * (f_c - f_u)
            # In an orthonormal basis, what is stored and what is not have the products of the whole.
            stored = stored_tokens(arrays, (0, 0, t, layer), w) * np.linalg.norm(f_u, axis=-1, keepdims=True)
            share = left_out(arrays, (0, 0, t, layer), w)
            assert share == pytest.approx(1 - (stored**2).sum() / (f_g**2).sum(), abs=2e-3)
            exact = torch.from_numpy(f_g)
            cosines = torch.cosine_similarity(exact, exact[1, 2], dim=-1).numpy()
            found = stored_similarity(arrays, (0, 0, t, layer), w, [(1, 2)], "mean")
            assert np.abs(found - cosines).max() < (0.02 if room == 1e9 else 3 * share**0.5)
            assert share < 1e-3 if room == 1e9 else 1e-3 < share < 0.3


def test_too_little_room_is_none_and_says_so():
    assert unit_tokens([Source("one", reader())], 1, [0.2], [1], 700) == {}
    view = View("Maps", [MapsPane("Maps", plain_arrays())], {"layer": Axis("layer", (1,))})
    assert "tokens" not in view.code() and "several" not in view.options
    with pytest.raises(ValueError, match=r"tokens is \[\[0, 3\]\], but 'Maps' has no similarities .*page_mb"):
        view.figure(tokens=[[0, 3]])


def plain_arrays():
    u, one = np.ones((1, 1, 1, 1, 2, 4, 3), np.int16), np.ones((1, 1, 1, 1), np.float32)
    u[..., 0] += np.arange(4, dtype=np.int16)
    total = np.ones((1, 1, 1, 1, 3), np.float32)
    return {"images": np.zeros((2, 8, 8, 1), np.uint8), "u": u, "d": u, "u_scale": one, "d_scale": one, "total": total}


SIMILAR = {
    **{name: np.ones((3, 1, 1, 1, 1, 2, 4), np.int8) for name in ("unit_u", "unit_d")},
    "ratio": np.ones((1, 1, 1, 1, 2, 4), np.float32),
    "lengths": np.ones((1, 1, 1, 1, 6), np.float32),
}


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[6, 0]], r"tokens has \[6, 0\]; allowed are pairs of an image, 0, 1, 2, 3, 4, 5, and a token, 0 to 63"),
        ([[0, 64]], r"tokens has \[0, 64\]; allowed"),
        ([[0, -1]], r"tokens has \[0, -1\]; allowed"),
        ([[0, True]], r"tokens has \[0, True\]; allowed"),
        ([3], "tokens has 3; allowed"),
        ([[0, 1], (0, 1)], "allowed are distinct tokens"),
        ("01", "tokens is '01'; allowed is a list of pairs"),
    ],
)
def test_tokens_that_are_not_there_are_refused(maps_view, tokens, said):
    view = maps_view(similar=True)
    for action in (lambda: view.figure(tokens=tokens), lambda: view.check({"tokens": tokens})):
        with pytest.raises(ValueError, match=said):
            action()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner, max_size=2),
)


@pytest.mark.fuzz
@given(tokens=JSON | st.lists(st.lists(st.integers(-1, 70), min_size=1, max_size=3), max_size=3))
def test_a_state_from_a_page_has_tokens_that_are_there_or_is_refused(tokens):
    view = View("Maps", [MapsPane("Maps", {**plain_arrays(), **SIMILAR})], {"layer": Axis("layer", (1,))})
    try:
        view.check({"tokens": tokens})
    except ValueError as error:
        assert str(error).startswith("tokens ")
    else:
        assert isinstance(tokens, list) and all(image in (0, 1) and token in range(4) for image, token in tokens)


def test_the_code_of_a_view_has_its_tokens(maps_view):
    view = maps_view(similar=True)
    assert "tokens=[[3, 27]]" in view.code(tokens=[(3, 27)]) and "tokens=[]" in view.code()


def similar_to(view, state) -> np.ndarray:
    """The similarities of the maps of all images (rows), by column."""
    (pane,), state = view.panes, view.state(**state)
    layers = [state["layer"], *pane.complete(view.axes)["layers"]]
    cells, tokens = [(0, 0, state["t"], layer) for layer in layers], list(map(tuple, state["tokens"]))
    return np.stack([stored_similarity(pane.arrays, at, state["w"], tokens, state["several"]) for at in cells])


def painted(shown) -> np.ndarray:
    """The colours of the maps, columns x images x tokens x 3; every fifth picture is the image itself."""
    tiles = shown.page.locator(".wb-tile canvas").all()
    pixels = [np.array(tile.evaluate(PIXELS)) for number, tile in enumerate(tiles) if number % 5]
    return np.stack(pixels).reshape(-1, 4, 64, 4)[..., :3].swapaxes(0, 1)


def viridis(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return np.floor(255 * colormaps["viridis"](np.clip(values, 0, 1))[..., :3] + 0.5)


def test_a_click_shows_what_is_like_a_token(show, maps_view):
    view = maps_view(similar=True)
    shown = show(view, show="all images", t=0.3, layer=7, w=3.0)
    page = shown.page
    colours = painted(shown)
    tile = page.locator(".wb-tk-map").nth(5 * 2 + 2)  # image 2, first layer
    box = tile.bounding_box()
    at = {"x": box["width"] * 3.5 / 8, "y": box["height"] * 4.5 / 8}
    tile.click(position=at)
    shown.settled()
    wanted = {"t": 0.3, "layer": 7, "w": 3.0, "tokens": [(2, 35)]}
    assert np.abs(painted(shown) - viridis(similar_to(view, wanted))).max() <= 3  # one step of viridis
    assert page.locator(".wb-tk-read").inner_text() == "1.00: row 5, column 4 of image 3 of 6: coat, layer 1"
    assert page.locator(".wb-tk-tip").inner_text() == "1.00"
    captions = page.locator("figcaption").all_inner_texts()[-1].split("\n")
    assert re.fullmatch(r"0\.0\d % left out", captions[-1])
    # The number under the pointer, in another image and layer.
    other = page.locator(".wb-tk-map").nth(5 * 4 + 4)
    other.hover(position=at)
    value = similar_to(view, wanted)[3, 4, 35]
    number = f"{value:.2f}".replace("0.", ".")
    assert page.locator(".wb-tk-tip").inner_text() == number
    assert page.locator(".wb-tk-read").inner_text() == f"{number}: row 5, column 4 of image 5 of 6: sandal, layer 12"
    # A second one, by Shift; then the maximum, and another w.
    other.click(position=at, modifiers=["Shift"])
    page.get_by_role("radio", name="maximum").check(force=True)
    shown.slider("w").focus()
    page.keyboard.press("End")
    shown.settled()
    wanted |= {"tokens": [(2, 35), (4, 35)], "several": "maximum", "w": 6.0}
    assert np.abs(painted(shown) - viridis(similar_to(view, wanted))).max() <= 3
    framed = page.evaluate(
        "() => [...document.querySelectorAll('.wb-tk-map')].map((e) => "
        "e.querySelector('.wb-tk-frame').getAttribute('d') ?? '')"
    )
    assert [number // 5 for number, path in enumerate(framed) if path] == [2] * 5 + [4] * 5
    page.get_by_role("button", name="Clear tokens").click()
    shown.slider("w").fill("3")
    shown.settled()
    assert np.array_equal(painted(shown), colours)


def test_the_keyboard_moves_over_tokens_and_all_is_said(show, maps_view):
    shown = show(maps_view(similar=True), image=1, layer=7)
    page = shown.page
    cursor = page.locator(".wb-tk-cursor")
    assert page.get_by_role("group", name=re.compile("^Token maps. Arrows move")).count() == 1
    cursor.focus()
    for key in ("Home", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    said = page.locator(".wb-tk-spoken")
    assert said.inner_text() == "row 4, column 2 of image 2 of 6: bag, layer 7 (slider)"
    page.keyboard.press("Enter")
    shown.settled()
    assert said.inner_text() == "Cosine similarity to row 4, column 2 of image 2 of 6: bag."
    assert cursor.get_attribute("aria-pressed") == "true" and cursor.get_attribute("aria-label").startswith("1.00: row")
    labels = [each.get_attribute("aria-label") for each in page.locator(".wb-tile canvas").all()]
    similar = "Cosine similarity to row 4, column 2 of image 2 of 6: bag."
    assert labels[1] == f"image 2 of 6: bag, layer 7 (slider), t 0.5, w 1. {similar}"
    for key in ("End", "ArrowRight"):  # into the map beside it
        page.keyboard.press(key)
    assert re.fullmatch(r"-?\.\d\d: row 4, column 1 of image 2 of 6: bag, layer 1", said.inner_text())
    page.keyboard.press("Shift+Enter")
    shown.settled()
    assert said.inner_text() == "Cosine similarity to 2 tokens, mean."
    page.keyboard.press("Escape")
    shown.settled()
    assert said.inner_text() == "Colours again." and cursor.get_attribute("aria-pressed") == "false"
    assert page.evaluate("() => document.activeElement.className") == "wb-tk-cursor"


def test_taps_hold_several_tokens_while_the_button_is_pressed(show, maps_view):
    page = show(maps_view(similar=True), 390, image=1, layer=7).page
    box = page.locator(".wb-tk-map").nth(1).bounding_box()
    hold = page.get_by_role("button", name="Hold several")

    def tap(column: int) -> None:  # moves no pointer
        at = {"clientX": box["x"] + (column + 0.5) * box["width"] / 8, "clientY": box["y"] + 2}
        page.locator(".wb-tk-map").nth(1).dispatch_event("click", at)
        page.wait_for_function(
            "(at) => document.querySelector('.wb-tk-read').textContent.includes(at)", arg=f"column {column + 1} "
        )

    def says(text: str) -> None:  # a moment after a tap or a key
        page.wait_for_function("(text) => document.querySelector('.wb-tk-spoken').textContent === text", arg=text)

    for column in (1, 4):  # the second one takes the place of the first
        tap(column)
    says("Cosine similarity to row 1, column 5 of image 2 of 6: bag.")
    assert hold.get_attribute("aria-pressed") == "false"
    hold.click()
    assert hold.get_attribute("aria-pressed") == "true" and "a tap or Enter adds a token" in hold.get_attribute("title")
    for column in (2, 6, 4):  # the last one is let go
        tap(column)
    says("Cosine similarity to 2 tokens, mean.")
    page.keyboard.press("Enter")  # where it was tapped
    says("Cosine similarity to 3 tokens, mean.")
    hold.click()
    tap(0)
    says("Cosine similarity to row 1, column 1 of image 2 of 6: bag.")


def test_a_page_opens_and_saves_with_its_tokens(show, maps_view, tmp_path):
    shown = show(maps_view(similar=True), tokens=[(1, 9), (1, 10)], image=1, layer=5, colour="three")
    assert shown.page.locator(".wb-tk-read").inner_text() == "Cosine similarity to 2 tokens, mean."
    # Three components of colours, one map of similarities.
    assert shown.page.locator(".wb-tile canvas:not([hidden])").count() == 5
    with shown.page.expect_download() as saved:
        shown.page.get_by_role("button", name="Save SVG").click()
    drawn = saved.value.path().read_text()
    assert drawn.count("<image") == 5 and drawn.count("h1v1h-1z") == 2 * 2 * 5 and "to 2 tokens, mean" in drawn


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (900, "dark"), (390, "dark"), (280, "light")])
@pytest.mark.parametrize("basis", ["fixed", "refit"])
def test_nothing_moves_or_overflows(show, maps_view, width, scheme, basis):
    shown = show(maps_view(similar=True), width, scheme, image=1, basis=basis)
    page = shown.page
    fixed = ".wb-tile canvas, figcaption, .wb-bar, .wb-tk-bar > *, .wb-either, .wb-slider, .wb-button, .wb-foot"
    places = f"() => [...document.querySelectorAll('{fixed}')].map((e) => {{ const b = e.getBoundingClientRect();"
    places += " return [b.x, b.y, b.width, b.height]; })"
    before = page.evaluate(places)
    for number, modifiers in ((0, []), (1, ["Shift"])):
        tile = page.locator(".wb-tk-map").nth(number)
        size = tile.bounding_box()["width"]
        tile.click(position={"x": 0.3 * size, "y": (0.3 + 0.4 * number) * size}, modifiers=modifiers)
    shown.settled()
    assert page.locator(".wb-tk-read").inner_text().startswith(".")  # the mean of two
    moved = np.abs(np.subtract(before, page.evaluate(places))).max(axis=1)
    assert len(before) >= 25 and moved.max() < 0.5, [before[number] for number in np.flatnonzero(moved)]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_the_object_stays_outlined(show, maps_view):
    plain = maps_view(similar=True)
    objects = np.zeros((6, 16, 16), np.uint8)
    objects[:, 4:12, 4:8] = 1
    pane = MapsPane("Token maps", {**plain.panes[0].arrays, "objects": objects})
    view = View("Token maps", [pane], plain.axes)
    shown = show(view, tokens=[(0, 9)])
    path = "() => [...document.querySelectorAll('.wb-tk-over')].map((e) => e.querySelector('path').getAttribute('d'))"
    outlines = shown.page.evaluate(path)
    # A rectangle of 8 by 4 pixels has 24 edges; half a token is a pixel.
    assert len(outlines) == 5 and all(len(re.findall("[HV]", each)) == 24 for each in outlines)
    assert outlines[0].startswith("M2,2H2.5")
    assert len(view.figure(tokens=[(0, 9)]).axes[1].collections) == len(view.figure().axes[1].collections) == 2
