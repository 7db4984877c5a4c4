"""Views in Python: what fits, what is refused, packing, code, files, and the widget without a browser."""

import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from workbench.lab.components import map_column
from workbench.lab.packing import pack, quantise, unpack
from workbench.lab.panes import Axis, Pane
from workbench.lab.panes.heat import HeatPane
from workbench.lab.panes.maps import MapsPane, draw_maps
from workbench.lab.panes.samples import SamplesPane
from workbench.lab.view import View


def test_state_and_values_are_two_writings_of_one_thing(maps_view):
    view = maps_view()
    values = {"t": 0.7, "layer": 6, "w": 2.5, "image": 3, "basis": "refit", "selection": [4, 2]}
    state = view.state(**values)
    assert (state["t"], state["layer"], state["w"], state["image"], state["step"]) == (3, 5, 2.5, 3, 0)
    assert {name: view.values(state)[name] for name in values} == values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"t": 0.4}, "t is 0.4; allowed are 0.1, 0.3, 0.5, 0.7, 0.9"),
        ({"w": 7.0}, "w is 7.0; allowed are numbers from 0 to 6"),
        ({"w": True}, "w is True"),
        ({"basis": "own"}, "allowed are 'fixed', 'refit', 'per map', 'foreground'"),
        ({"selection": [-1]}, "a list of row numbers"),
        ({"depth": 1}, "this view has no 'depth'; allowed are step, t, layer, w, image, basis"),
    ],
)
def test_values_that_there_are_not_are_refused(maps_view, values, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        maps_view().state(**values)


@pytest.mark.parametrize(
    "state", [{"layer": 12}, {"layer": -1}, {"layer": 3.0}, {"w": "2"}, {"basis": 1}, {"other": 0}]
)
def test_states_that_there_are_not_are_refused(maps_view, state):
    with pytest.raises(ValueError, match="allowed"):
        maps_view().check(state)


def test_code_names_what_can_be_chosen_and_runs(maps_view, tmp_path, monkeypatch):
    view = maps_view()
    code = view.code(t=0.3, w=2.5, basis="per map")
    assert code.startswith('view = wb.token_maps("plain")\n')
    assert "step" not in code and "selection" not in code  # nothing to choose, nothing that selects
    assert "selection=[3, 1]" in maps_view(rows=list(range(6))).code(selection=[3, 1])
    monkeypatch.chdir(tmp_path)
    exec(code.split("\n", 1)[1], {"view": view})
    assert view.widget().state == view.state(t=0.3, w=2.5, basis="per map")
    exec(code.split("to a file: ")[1], {"view": view})
    expected = view.picture("png", None, view.state(t=0.3, w=2.5, basis="per map"))
    assert (tmp_path / "token-maps.png").read_bytes() == expected


def test_quantised_values_are_near_and_zero_stays_zero():
    values = np.random.default_rng(0).normal(size=(2, 3, 5, 4)) * np.array([1e-3, 10.0])[:, None, None, None]
    values[1, 2] = 0
    packed, scale = quantise(values, 2)
    back = packed * scale.astype(np.float64)[..., None, None]
    assert packed.dtype == np.int16 and scale.shape == (2, 3)
    assert np.all(np.abs(back - values) <= scale[..., None, None] * 0.51) and np.all(back[1, 2] == 0)
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([np.nan]), 0)


def test_arrays_are_aligned_and_come_back():
    random = np.random.default_rng(0)
    panes = [
        SamplesPane("One", {"images": random.integers(0, 255, (1, 1, 1, 1, 3, 3, 1), dtype=np.uint8)}),
        HeatPane("Two", {name: random.normal(size=(1, 1, 1, 1, 3)).astype(np.float32) for name in ("values", "low")}),
    ]
    places, data = pack(panes)
    assert [place["offset"] for place in places.values()] == [0, 16, 32] and len(data) == 48
    for number, pane in enumerate(panes):
        back = unpack(places, data, number)
        assert back.keys() == pane.arrays.keys()
        assert all(np.array_equal(back[name], array) for name, array in pane.arrays.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"u": np.zeros((1, 1, 5, 11, 6, 64, 8), np.int16)}, "layer must be 12"),
        ({"images": np.zeros((5, 8, 8, 3), np.uint8)}, "n must be"),
        ({"total": np.zeros((1, 1, 5, 12, 2), np.float32)}, "3 must be 3"),
        ({"u": np.zeros((1, 1, 5, 12, 6, 64, 8), np.float32)}, "u is float32; it must be int16"),
        (
            {"other": np.zeros(3, np.uint8)},
            "needed ['d', 'd_scale', 'images', 'total', 'u', 'u_scale'], allowed ['d', ",
        ),
        ({"ratio": np.zeros((1, 1, 5, 12, 6, 64), np.float32)}, "lengths, unit_d, unit_u missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(maps_view, change, said):
    view = maps_view()
    with pytest.raises(ValueError, match=re.escape(said)):
        View("x", [MapsPane("x", {**view.panes[0].arrays, **change})], view.axes)


def test_panes_and_axes_that_there_are_not_are_refused(maps_view):
    view = maps_view()
    with pytest.raises(ValueError, match=r"x: arrays are \['film'\]; needed \[\], allowed \[\]"):
        View("x", [Pane("x", {"film": np.zeros(3, np.uint8)})], {})
    with pytest.raises(ValueError, match="axes among"):
        View("x", view.panes, {"depth": Axis("depth", (1,))})
    with pytest.raises(ValueError, match="the axis w is continuous"):
        View("x", view.panes, {"w": Axis("w", (0, 1, 2))})
    with pytest.raises(ValueError, match="distinct"):
        Axis("t", (0.1, 0.1))
    for values in ((0.0, 6.0), (6.0, 0.0, 0.1), (0.0, 6.0, -0.1), (0.0, math.inf, 0.1), ("a", "b", "c")):
        with pytest.raises(ValueError, match="lowest, highest, step"):
            Axis("w", values, continuous=True)
    assert Axis("run", ("b", "c", "a")).text("c") == "c"  # three names are no range


def test_numbers_are_said_without_needless_zeros():
    axis = Axis("w", (0.0, 6.0, 0.1), continuous=True, unit=" x")
    assert [axis.text(value) for value in (2.5, 2.0, 0.30000000000000004, 100.0)] == ["2.5 x", "2 x", "0.3 x", "100 x"]
    assert Axis("step", (0, 20_000)).meta["texts"] == ["0", "20,000"]


def test_pictures_are_saved_as_their_ending_says(maps_view, tmp_path):
    view = maps_view()
    for ending, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = view.save(tmp_path / f"maps.{ending}", t=0.3)
        assert path.read_bytes().startswith(magic) and len(path.read_bytes()) > 2000
    assert np.array(Image.open(tmp_path / "maps.png").convert("L")).std() > 10
    with pytest.raises(ValueError, match="allowed endings are .png, .svg, .pdf"):
        view.save(tmp_path / "maps.jpg")


def test_several_pictures_are_pages_or_one_is_chosen(maps_view, tmp_path):
    one = maps_view()
    view = View("Two", [one.panes[0], MapsPane("Again", one.panes[0].arrays)], one.axes)
    pdf = view.save(tmp_path / "two.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 2
    with pytest.raises(ValueError, match="choose a pane of 0: Token maps, 1: Again"):
        view.save(tmp_path / "two.png")
    assert view.save(tmp_path / "two.png", pane=1).exists()
    with pytest.raises(ValueError, match="pane is 2; allowed are 0 to 1"):
        view.save(tmp_path / "two.png", pane=2)


def test_a_figure_has_the_maps_and_says_what_they_are(maps_view):
    view = maps_view()
    state = view.state(t=0.3, layer=5, w=2.5, basis="refit", colour="three")
    figure = draw_maps(view.panes[0].complete(view.axes), view.panes[0].arrays, state, view.axes)
    cells = figure.get_axes()
    assert len(cells) == 3 * 5 and sum(bool(cell.images) for cell in cells) == 13
    # The layer of the slider has its place among the others: 1, 5, 7, 12.
    assert cells[2].get_title(loc="left").split("\n") == ["layer 5", "t 0.3, w 2.5"]
    text = cells[-4 + 1].get_xlabel().replace("\n", " ")
    column = map_column(view.panes[0].arrays, (0, 0, 1, 4), 2.5, "refit")
    shares = ", ".join(f"{100 * of:.0f} %" for of in column.shares)
    assert text == f"{shares} of variance {100 * column.outside:.0f} % outside subspace"


def test_a_figure_is_what_is_saved(maps_view):
    view = maps_view()
    figure = view.figure(t=0.3, layer=5)
    shown, saved = io.BytesIO(), view.picture("png", None, view.state(t=0.3, layer=5))
    figure.savefig(shown, format="png", dpi=220, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    assert shown.getvalue() == saved
    two = View("Two", [*view.panes, MapsPane("Again", view.panes[0].arrays)], view.axes)
    with pytest.raises(ValueError, match="a figure has one picture; choose a pane of 0: Token maps, 1: Again"):
        two.figure()
    assert len(two.figure(pane=1, t=0.3, layer=5).axes) == len(figure.axes)
    for wrong, said in (({"pane": 2}, "pane is 2; allowed are 0 to 1"), ({"pane": 0, "t": 0.4}, "t is 0.4")):
        with pytest.raises(ValueError, match=said):
            two.figure(**wrong)


def test_the_widget_takes_good_states_and_says_what_is_wrong_with_others(maps_view):
    view = maps_view()
    widget = view.widget(layer=7)
    assert widget is view.widget() and widget.state["layer"] == 6
    widget.set_state({"state": {**widget.state, "layer": 3}})
    assert view.widget().state["layer"] == 3
    widget.set_state({"state": {**widget.state, "layer": 40}})
    assert widget.state["layer"] == 3 and "allowed are indices from 0 to 11" in widget.error
    with pytest.raises(ValueError, match="layer"):
        widget.state = {"layer": 40}


def test_the_widget_answers_with_a_pdf_or_an_error(maps_view, monkeypatch):
    view = maps_view()
    widget, sent = view.widget(), []
    monkeypatch.setattr(widget, "send", lambda content, buffers: sent.append((content, buffers)))
    widget._on_message(widget, {"type": "save", "pane": None, "state": view.state()}, [])
    ((content, (file,)),) = sent
    assert content == {"type": "file", "name": "token-maps.pdf"} and file.startswith(b"%PDF")
    widget._on_message(widget, {"type": "save", "pane": 5, "state": view.state()}, [])
    assert len(sent) == 1 and "pane is 5" in widget.error
