"""Token maps: the browser's colours are those of Python, and Python's are those of the projections they stand for."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from workbench import lab
from workbench.features.projection import project
from workbench.lab.components import map_column, map_pixels
from workbench.lab.panes import Axis
from workbench.lab.panes.maps import MapsPane, draw_maps
from workbench.lab.view import View

READ = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""
STATES = [
    {"basis": basis, "colour": colour, "w": w, "layer": layer, "t": t}
    for basis in ("fixed", "refit", "per map", "foreground")
    for colour, w, layer, t in (("rgb", 2.5, 7, 0.3), ("single", 0.0, 3, 0.9), ("three", 6.0, 12, 0.1))
]


def drawn(shown) -> np.ndarray:
    """Pixels of every map of the first row that has them all: rows x columns x side x side x 3, without images."""
    tiles = shown.page.locator(".wb-tile canvas").all()
    columns = int(shown.page.locator(".wb-grid").evaluate("(grid) => grid.style.getPropertyValue('--wb-columns')"))
    pixels = [np.array(tile.evaluate(READ)) for index, tile in enumerate(tiles) if index % columns]
    return np.stack(pixels).reshape(len(tiles) // columns, columns - 1, 8, 8, 4)[..., :3] / 255


def expected(view, state) -> np.ndarray:
    (pane,), state = view.panes, view.state(**state)
    chosen = [state["layer"], *pane.complete(view.axes)["layers"]]
    parts = {"rgb": [None], "single": [0], "three": [0, 1, 2]}[state["colour"]]
    images = range(6) if state["show"] == "all images" else [state["image"]]
    found = []
    for image in images:
        for part in parts:
            at = [map_column(pane.arrays, (0, 0, state["t"], layer), state["w"], state["basis"]) for layer in chosen]
            found.append([map_pixels(column, part)[image].reshape(8, 8, 3) for column in at])
    return np.array(found)


@pytest.mark.parametrize("state", STATES, ids=lambda state: f"{state['basis']}-{state['colour']}")
def test_the_browser_paints_what_python_computes(show, maps_view, state):
    view = maps_view()
    found = drawn(show(view, **state, show="all images"))
    wanted = expected(view, {**state, "show": "all images"})
    assert found.shape == wanted.shape and wanted.std() > 0.1
    assert np.abs(found - wanted).max() <= 2 / 255


def test_sliders_and_choices_reach_the_picture(show, maps_view):
    view = maps_view()
    shown = show(view, image=1)
    for name, keys in (("w", ["PageUp"]), ("t", ["Home", "ArrowRight"]), ("layer", ["End"]), ("image", ["ArrowRight"])):
        shown.slider(name).focus()
        for key in keys:
            shown.page.keyboard.press(key)
    shown.page.get_by_role("radio", name="refit").check(force=True)
    shown.settled()
    w = float(shown.slider("w").input_value())
    assert w > 1
    wanted = expected(view, {"w": w, "t": 0.3, "layer": 12, "image": 2, "basis": "refit"})
    assert np.abs(drawn(shown) - wanted).max() <= 2 / 255


def test_sources_stand_beside_each_other(show, maps_view):
    view = maps_view(sources=3, columns="sources")
    shown = show(view, layer=5, t=0.5, w=2.0)
    found = drawn(shown)[0]
    arrays = view.panes[0].arrays
    for source in range(3):
        column = map_column(arrays, (source, 0, 2, 4), 2.0, "fixed")
        assert np.abs(found[source] - map_pixels(column, None)[0].reshape(8, 8, 3)).max() <= 2 / 255
    captions = shown.page.locator(".wb-tile-head .wb-line:first-child").all_inner_texts()
    assert captions[1:] == ["plain", "guided", "REPA"]


def compared(maps_view, **meta):
    """Four sources: of the third only t moves the features, of the fourth nothing does."""
    view = maps_view(sources=4)
    arrays = {name: array.copy() for name, array in view.panes[0].arrays.items()}
    arrays["d"][2:] = 0
    for name in ("u", "u_scale"):
        arrays[name][3] = arrays[name][3][:, :1]
    meta = {"columns": "sources", **meta}
    return View("Token maps", [MapsPane("Token maps", arrays, meta)], view.axes)


def test_captions_name_t_and_w_where_they_change_something(show, maps_view):
    view = compared(maps_view)
    assert view.meta["panes"][0]["still"] == {"t": [3], "w": [2, 3]}
    places = ["t 0.3, w 2.5", "t 0.3, w 2.5", "t 0.3", None]
    shown = show(view, t=0.3, w=2.5)
    heads = [each.inner_text().split("\n") for each in shown.page.locator(".wb-tile-head").all()[1:]]
    assert [head[1] if len(head) == 2 else None for head in heads] == places
    labels = [each.get_attribute("aria-label") for each in shown.page.locator(".wb-tile canvas").all()[1:]]
    assert "token map of REPA, t 0.3; " in labels[2] and "token map of SRA; " in labels[3]
    pane, state = view.panes[0], view.state(t=0.3, w=2.5)
    figure = draw_maps(pane.complete(view.axes), pane.arrays, state, view.axes)
    drawn = [axis.get_title(loc="left").split("\n") for axis in figure.axes[1:]]
    assert [lines[1] if len(lines) == 2 else None for lines in drawn] == places


def test_of_a_single_time_no_source_is_known_to_be_the_same_at_every_t(maps_view):
    (pane,) = compared(maps_view).panes
    arrays = {name: array if name == "images" else array[:, :, :1] for name, array in pane.arrays.items()}
    axes = {**maps_view(sources=4).axes, "t": Axis("t", (0.1,))}
    assert MapsPane("One time", arrays).complete(axes)["still"] == {"t": [], "w": [2, 3]}


@pytest.mark.parametrize(
    "meta, said",
    [
        ({"columns": "layers"}, "One PCA basis for each layer: within a column"),
        ({}, "Each column has its own PCA basis"),
        ({"joint": True}, "One PCA basis for each layer, the same in all columns"),
    ],
)
def test_whose_basis_it_is_is_said(show, maps_view, meta, said):
    shown = show(compared(maps_view, **meta))
    assert shown.page.locator(".wb-note").inner_text().startswith(said)


def test_a_label_says_what_a_map_shows(show, maps_view):
    shown = show(maps_view(), t=0.3, w=2.5, layer=7, basis="refit")
    label = shown.page.locator(".wb-tile canvas").nth(1).get_attribute("aria-label")
    column = map_column(maps_view().panes[0].arrays, (0, 0, 1, 6), 2.5, "refit")
    share, outside = (f"{100 * value:.0f} %" for value in (column.share(None), column.outside))
    assert label == (
        "image 1 of 6: boot; token map of layer 7 (slider), t 0.3, w 2.5; "
        f"{share} of variance, {outside} outside subspace"
    )


def test_selected_images_are_shown_alone(show, maps_view):
    view = maps_view(rows=[10, 11, 12, 13, 14, 15])
    shown = show(view, show="all images", selection=[11, 14, 99])
    assert drawn(shown).shape[0] == 2
    assert "2 of the 3 selected" in shown.page.locator(".wb-note").inner_text()
    assert np.abs(drawn(shown) - expected(view, {"show": "all images"})[[1, 4]]).max() <= 2 / 255


def projected(with_totals, t: float = 0.4):
    random = torch.Generator().manual_seed(0)
    f_u = torch.randn(5, 16, 20, generator=random) @ torch.randn(20, 20, generator=random)
    f_c = f_u + torch.randn(5, 16, 20, generator=random) @ torch.randn(20, 20, generator=random) * 0.3
    projection = project({t: f_u}, {t: f_c}, components=8)
    arrays = with_totals(
        *(x[t].numpy()[None, None, None, None].astype(np.float64) for x in (projection.u, projection.d))
    )
    moments = projection.moments[t]
    arrays["total"][:] = [moments.total_uu, moments.total_ud, moments.total_dd]
    return projection, arrays


@pytest.mark.parametrize("w", [0.0, 1.0, 3.5])
def test_fixed_and_refit_are_those_of_the_projection(with_totals, w):
    projection, arrays = projected(with_totals)
    fixed, refit = (map_column(arrays, (0, 0, 0, 0), w, basis) for basis in ("fixed", "refit"))
    size = projection.at(0.4, w).std()
    assert np.abs(fixed.scores - projection.at(0.4, w)[..., :3].numpy()).max() < 1e-3 * size
    assert list(fixed.shares) == pytest.approx(projection.energy(0.4, w).tolist()[:3], abs=1e-4)
    whole = projection.refit(0.4, w)
    assert np.abs(refit.scores - whole.coordinates.numpy()).max() < 1e-3 * size
    assert refit.share(None) == pytest.approx(float(whole.explained.sum()), abs=1e-4)
    assert refit.outside == pytest.approx(whole.left_out, abs=1e-4)


def test_per_map_is_a_pca_of_each_image_from_least_to_most(features):
    from sklearn.decomposition import PCA

    arrays = features()
    column = map_column(arrays, (0, 0, 1, 6), 2.0, "per map")
    scales = arrays["u_scale"][0, 0, 1, 6], arrays["d_scale"][0, 0, 1, 6]
    rows = arrays["u"][0, 0, 1, 6].astype(np.float64) * scales[0] + 2.0 * arrays["d"][0, 0, 1, 6] * scales[1]
    for image in range(6):
        scores = PCA(3).fit_transform(rows[image])
        signs = np.sign((scores * column.scores[image]).sum(axis=0))
        np.testing.assert_allclose(scores * signs, column.scores[image], atol=1e-9)
    pixels = map_pixels(column, None)
    assert np.all(pixels.min(axis=1) == 0) and np.all(pixels.max(axis=1) == 1)


def test_the_foreground_is_the_side_in_the_middle_and_the_rest_is_black(with_totals):
    side, random = 8, np.random.default_rng(1)
    inside = np.zeros((2, side, side), dtype=bool)
    inside[:, 2:6, 3:6] = True
    rows = random.normal(size=(2, side * side, 5)) * 0.2
    rows[..., 0] += np.where(inside.reshape(2, -1), -4.0, 4.0)
    arrays = with_totals(rows[None, None, None, None], np.zeros_like(rows)[None, None, None, None])
    column = map_column(arrays, (0, 0, 0, 0), 1.0, "foreground")
    assert np.array_equal(column.foreground.reshape(inside.shape), inside)
    assert not map_pixels(column, None)[~column.foreground].any()


def test_viridis_of_the_browser_is_that_of_matplotlib():
    script = (Path(lab.__file__).parent / "js" / "colours.js").read_text(encoding="utf-8")
    text = "".join(re.findall(r'"([0-9a-f]+)"', script[script.index("VIRIDIS") : script.index(".match(")]))
    expected = np.floor(255 * colormaps["viridis"](np.arange(256))[:, :3] + 0.5)
    assert np.array_equal(np.frombuffer(bytes.fromhex(text), np.uint8).reshape(256, 3), expected)


@pytest.mark.parametrize(
    ("layers", "titles"),
    [
        ([0, 5, 11], ["layer 6 (slider)", "layer 1", "layer 6", "layer 12"]),
        (list(range(12)), [f"layer {n}" + " (slider)" * (n == 6) for n in range(1, 13)]),
    ],
)
def test_the_layer_of_the_slider_has_a_column_unless_all_are_shown(show, maps_view, layers, titles):
    shown = show(maps_view(layers=layers), layer=6)
    assert shown.page.locator(".wb-tile-head .wb-line:first-child").all_inner_texts()[1:] == titles
    assert shown.page.locator(".wb-tile-head.wb-chosen").count() == 1
