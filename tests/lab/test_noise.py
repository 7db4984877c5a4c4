"""What a model was given and what it predicts, beside the images: in the browser and in figures."""

import re

import numpy as np
import pytest

from workbench.lab.panes.maps import MapsPane

PIXELS = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def pictures(shown, columns: slice, wide: int) -> np.ndarray:
    """Pixels of the pictures in some columns of `wide`: rows x columns x y x x x 3."""
    tiles = shown.page.locator(".wb-tile canvas").all()
    rows = [tiles[start : start + wide][columns] for start in range(0, len(tiles), wide)]
    pixels = np.array([[tile.evaluate(PIXELS) for tile in row] for row in rows])
    side = int((pixels.shape[2] // 4) ** 0.5)
    return pixels.reshape(*pixels.shape[:2], side, side, 4)[..., :3]


def captions(shown) -> list[list[str]]:
    texts = [each.inner_text().split("\n") for each in shown.page.locator(".wb-tile-head").all()]
    return [text for text in texts if text != [""]]


def test_the_noise_follows_t_and_the_prediction_the_nearest_w(show, maps_view):
    view = maps_view(noise=True, similar=True)
    arrays = view.panes[0].arrays
    shown = show(view, show="all images", t=0.3, w=1.0)
    found = pictures(shown, slice(1, 3), 7)
    assert np.array_equal(found[:, 0], arrays["noisy"][0, 1]) and np.array_equal(
        found[:, 1], arrays["predicted"][0, 0, 1, 1]
    )
    assert captions(shown)[:3] == [
        ["images"],
        ["what the model was given", "t 0.3"],
        ["what it predicts", "t 0.3, w 1"],
    ]
    shown.slider("t").focus()
    shown.page.keyboard.press("ArrowRight")
    shown.slider("w").fill("3.4")
    shown.settled()
    found = pictures(shown, slice(1, 3), 7)
    assert np.array_equal(found[:, 0], arrays["noisy"][0, 2]) and np.array_equal(
        found[:, 1], arrays["predicted"][0, 0, 2, 2]
    )
    assert captions(shown)[2] == ["what it predicts", "t 0.5, w 5"]
    assert shown.page.locator("figcaption").all_inner_texts()[-5] == "the nearest that is stored"
    labels = [each.get_attribute("aria-label") for each in shown.page.locator(".wb-tile canvas").all()[7:10]]
    assert labels == [
        "image 2 of 6: bag",
        "image 2 of 6: bag; what the model was given, t 0.5",
        "image 2 of 6: bag; what it predicts, t 0.5, w 5, the nearest that is stored",
    ]
    assert shown.page.locator(".wb-note").first.inner_text().endswith("Predictions are stored at w = 0, 1 and 5.")


def test_the_pictures_can_be_put_away_by_the_keyboard(show, maps_view):
    shown = show(maps_view(noise=True, similar=True), image=2, layer=7)
    page = shown.page
    cursor = page.locator(".wb-tk-cursor")
    assert cursor.get_attribute("aria-label").endswith(
        "image 3 of 6: coat, layer 7 (slider)"
    )  # the first map, not a picture
    assert page.locator(".wb-tile").count() == 7
    page.get_by_role("radio", name="image, noise, prediction").focus()
    page.keyboard.press("ArrowRight")
    shown.settled()
    assert page.locator(".wb-tile").count() == 5 and len(captions(shown)) == 5
    assert "Predictions" not in page.locator(".wb-note").first.inner_text()


def test_a_token_is_clicked_on_a_picture_too(show, maps_view):
    shown = show(maps_view(noise=True, similar=True), image=2, layer=7)
    tile = shown.page.locator(".wb-tk-map").nth(2)  # what it predicts
    box = tile.bounding_box()
    tile.click(position={"x": box["width"] * 3.5 / 8, "y": box["height"] * 4.5 / 8})
    shown.settled()
    said = shown.page.locator(".wb-tk-spoken").inner_text()
    assert said == "Cosine similarity to row 5, column 4 of image 3 of 6: coat."
    assert shown.page.locator(".wb-tk-read").inner_text() == "row 5, column 4 of image 3 of 6: coat, what it predicts"
    shown.page.locator(".wb-tk-map").nth(3).hover(position={"x": box["width"] * 3.5 / 8, "y": box["height"] * 4.5 / 8})
    assert (
        shown.page.locator(".wb-tk-read").inner_text()
        == "1.00: row 5, column 4 of image 3 of 6: coat, layer 7 (slider)"
    )
    with shown.page.expect_download() as saved:
        shown.page.get_by_role("button", name="Save SVG").click()
    drawn = saved.value.path().read_text()
    assert drawn.count("<image") == 6 and ">what the model was</text>" in drawn  # layer 7 only once


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (900, "dark"), (390, "dark"), (280, "light")])
@pytest.mark.parametrize("which", ["one image", "all images"])
def test_nothing_overflows_or_moves(show, maps_view, width, scheme, which):
    shown = show(maps_view(noise=True, similar=True), width, scheme, show=which)
    places = """() => [...document.querySelectorAll('.wb-tile canvas, .wb-foot')].map((e) => {
      const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })"""
    before = shown.page.evaluate(places)
    for t, w in (("0", "0"), ("3", "1.1")):
        shown.slider("t").fill(t)
        shown.slider("w").fill(w)
        shown.settled()
    after = shown.page.evaluate(places)
    assert np.abs(np.subtract(before, after)).max() < 0.5
    assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert min(place[2] for place in before[:-1]) >= (70 if which == "one image" else 55 if width >= 390 else 40)


@pytest.mark.parametrize("given", [1, 2])
def test_each_run_has_its_prediction(show, maps_view, given):
    view = maps_view(sources=2, columns="sources", noise=True, given=given)
    arrays = view.panes[0].arrays
    shown = show(view, t=0.9, w=0.2, image=4)
    titles = [caption[0] for caption in captions(shown)]
    of = ["what the model was given"] if given == 1 else ["what plain was given", "what guided was given"]
    assert titles == ["image 5 of 6: sandal", *of, "what plain predicts", "what guided predicts", "plain", "guided"]
    found = pictures(shown, slice(1 + given, 3 + given), len(titles))[0]
    assert np.array_equal(found, arrays["predicted"][:, 0, 4, 0, 4])
    figure = view.figure(t=0.9, w=0.2, image=4)
    drawn = [axis.get_title(loc="left").replace("\n", " ") for axis in figure.axes]
    assert all(text.startswith(title) for text, title in zip(drawn, titles, strict=True))


@pytest.mark.parametrize("tokens", [[], [(4, 9)]])
def test_a_figure_has_the_pictures_of_the_page(maps_view, tokens):
    view = maps_view(noise=True, similar=True)
    arrays = view.panes[0].arrays
    figure = view.figure(t=0.7, w=2.0, image=4, tokens=tokens)
    for axis, wanted in zip(
        figure.axes[1:3], (arrays["noisy"][0, 3, 4], arrays["predicted"][0, 0, 3, 1, 4]), strict=True
    ):
        assert np.array_equal(axis.images[0].get_array(), wanted)
    title = figure.axes[2].get_title(loc="left").replace("\n", " ")
    assert title == "what it predicts t 0.7, w 1 the nearest that is stored"
    plain = view.figure(t=0.7, w=2.0, image=4, tokens=tokens, pictures="image")
    assert len(plain.axes) == len(figure.axes) - 2
    assert re.search(r'pictures="image"', view.code(pictures="image"))


def test_pictures_that_do_not_fit_together_are_refused(maps_view):
    view = maps_view(noise=True)
    arrays = dict(view.panes[0].arrays)
    with pytest.raises(ValueError, match=r"stops are \[1.0\]; predicted has pictures at 3 values of w"):
        MapsPane("Maps", arrays, {"stops": [1.0]}).complete(view.axes)
    del arrays["predicted"]
    with pytest.raises(ValueError, match="noisy and predicted come together"):
        MapsPane("Maps", arrays, {"stops": [1.0]}).complete(view.axes)
    with pytest.raises(ValueError, match="pictures is 'noise'; allowed are 'image, noise, prediction', 'image'"):
        view.figure(pictures="noise")
