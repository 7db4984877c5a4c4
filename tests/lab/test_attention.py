"""Attention of a token: the browser, the figure and the stored weights say the same."""

import re

import numpy as np
import pytest

from workbench.lab.attended import attention_at, falls_on
from workbench.lab.panes import Axis
from workbench.lab.panes.attention import AttentionPane
from workbench.lab.view import View


def weights(times=2, layers=2, heads=3, images=2, m=16) -> np.ndarray:
    """Attention "label t layer head n m m" whose rows add up to 1; with the label it differs a little."""
    random = np.random.default_rng(5)
    logits = random.normal(size=(1, times, layers, heads, images, m, m)) * 1.5
    logits = np.concatenate([logits, logits + 0.3 * random.normal(size=logits.shape)])
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def stored(exact: np.ndarray) -> np.ndarray:
    steps = np.rint(np.sqrt(exact) * 255).astype(np.uint8)
    steps[1] -= steps[0]
    return steps


def view_of(exact: np.ndarray, masked: bool = True) -> View:
    random = np.random.default_rng(0)
    arrays = {"images": random.integers(0, 255, (2, 8, 8, 1), dtype=np.uint8), "weights": stored(exact)}
    if masked:
        arrays["part"] = np.tile(np.repeat(np.uint8([255, 0]), 8), (2, 1))  # the upper half
        arrays["objects"] = np.repeat(np.repeat(np.uint8([[[1], [0]]]), 4, axis=1), 8, axis=2).repeat(2, axis=0)
    axes = {
        "t": Axis("t", (0.1, 0.5, 0.9)),
        "layer": Axis("layer", (0, 4, 8)),
        "image": Axis("image", (7, 40)),
    }
    meta = {"names": ["boot", "bag"], "layers": [4, 8], "times": [0.1, 0.9]}
    return View("Attention", [AttentionPane("Attention", arrays, meta)], axes)


@pytest.mark.parametrize("head", [None, 0, 2])
@pytest.mark.parametrize("label", [0, 1])
def test_the_stored_weights_are_near(head, label):
    exact = weights()
    for direction in ("from", "to"):
        found = attention_at(stored(exact), (1, 0), label, head, 1, 5, direction)
        by_head = exact[label, 1, 0, :, 1, 5] if direction == "from" else exact[label, 1, 0, :, 1, :, 5]
        wanted = by_head.mean(axis=0) if head is None else by_head[head]
        # A root is rounded to 1/510, which moves the weight by at most 2 root / 510.
        assert np.abs(found - wanted).max() <= np.sqrt(by_head.max()) / 255 + 1e-5


def test_parts_by_hand():
    given = np.array([0.1, 0.2, 0.3, 0.2])
    assert falls_on(given, 2, np.array([1.0, 0.5, 0.0, 0.0])) == pytest.approx((0.375, 0.25))
    assert falls_on(np.zeros(2), 0, None) == (0.0, None)


def test_the_pane_follows_token_head_layer_and_t(show):
    exact = weights()
    view = view_of(exact)
    shown = show(view, t=0.5, layer=0, image=40)
    page = shown.page
    captions = [each.inner_text().split("\n") for each in page.locator("figcaption").all()]
    assert captions[0] == ["image 2 of 2: bag", "row 3, column 3"]
    for number, (direction, label) in enumerate((d, lab) for d in ("from", "to") for lab in (0, 1)):
        found = attention_at(view.panes[0].arrays["weights"], (0, 0), label, None, 1, 10, direction)
        itself, on_object = falls_on(found, 10, np.repeat([1.0, 0.0], 8))
        word = {"from": "on", "to": "from"}[direction]
        assert captions[1 + number] == [
            {"from": "what it looks at", "to": "what looks at it"}[direction],
            ["without the label", "with the label"][label],
            f"{100 * itself:.1f} % {word} itself" if itself < 0.0995 else f"{100 * itself:.0f} % {word} itself",
            f"{100 * on_object:.0f} % {word} the object",
        ]
    note = page.locator(".wb-note").inner_text()
    assert note.startswith("Attention weights of the mean of the heads, layer 4, the nearest; t 0.1, the nearest.")
    assert note.endswith("Click a token in the token maps to see its attention.")
    page.get_by_role("radio", name="mean of all").focus()
    page.keyboard.press("ArrowRight")
    shown.slider("layer").focus()
    page.keyboard.press("End")
    shown.settled()
    note = page.locator(".wb-note").inner_text()
    assert note.startswith("Attention weights of head 1, layer 8; t 0.1, the nearest.")
    label = page.locator(".wb-tile canvas").nth(1).get_attribute("aria-label")
    assert re.fullmatch(
        r"image 2 of 2: bag, row 3, column 3: what it looks at, without the label, [\d.]+ % on itself, "
        r"\d+ % on the object",
        label,
    )
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save SVG").click()
    assert saved.value.path().read_text().count("<image") == 5


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_a_figure_shows_what_the_page_shows(show, width, scheme):
    view = view_of(weights(), masked=width > 500)
    state = {"tokens": [(7, 6)], "t": 0.9, "layer": 8, "head": "2"}
    shown = show(view, width, scheme, **state)
    captions = [each.inner_text().split("\n") for each in shown.page.locator("figcaption").all()]
    assert captions[0] == ["image 1 of 2: boot", "row 2, column 3"] and len(captions[1]) == (4 if width > 500 else 3)
    figure = view.figure(**state)
    assert [axis.get_xlabel().split("\n") for axis in figure.axes[:5]] == captions
    assert figure.axes[-1].get_xlabel() == "attention weight, head 2; layer 8; t 0.9"
    found = attention_at(view.panes[0].arrays["weights"], (1, 1), 1, 1, 0, 6, "to")
    assert np.array_equal(np.array(figure.axes[4].images[0].get_array()).ravel(), found)
    assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_what_is_refused():
    view = view_of(weights())
    with pytest.raises(ValueError, match="head is '4'; allowed are 'mean', '1', '2', '3'"):
        view.figure(head="4")
    with pytest.raises(ValueError, match=r"tokens has \(7, 16\); allowed are pairs of an image, 7, 40"):
        view.figure(tokens=[(7, 16)])
    arrays = view.panes[0].arrays
    with pytest.raises(ValueError, match="weights have 2 layers, and meta has None"):
        AttentionPane("Attention", arrays, {"times": [0.1, 0.9]}).complete(view.axes)
