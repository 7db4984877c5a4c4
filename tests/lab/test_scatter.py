"""The scatter: points, selection and numbers in the browser are those of Python."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from workbench.lab.packing import quantise
from workbench.lab.panes import Axis
from workbench.lab.panes.scatter import ScatterPane, class_numbers, draw_scatter, positions
from workbench.lab.view import View

NAMES = ("boot", "bag", "coat")
STOPS = (0.0, 1.0, 4.0)
SIDE = 6
PLOT = ".wb-sc-plot > canvas"


def scatter_view(count: int = 240) -> View:
    """Three classes of points that part as w grows, with a sprite of one grey level a row; 2 times, 3 layers."""
    random = np.random.default_rng(1)
    labels = np.arange(count, dtype=np.uint16) % 3
    u = random.normal(size=(1, 1, 2, 3, count, 2)) * np.array([2.0, 1.0])
    d = np.broadcast_to(np.array([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]])[labels], u.shape) * 1.5
    tsne = random.normal(size=(1, 1, 2, 3, len(STOPS), count, 2)) * 20
    arrays = {
        "labels": labels,
        "given": np.where(np.arange(count) % 4 == 0, (labels + 1) % 3, labels).astype(np.uint16),
        "sprite": np.broadcast_to(np.arange(count)[:, None, None, None] % 251, (count, SIDE, SIDE, 1)).astype(np.uint8),
        "correct": random.integers(0, 2, (1, 1, 2, 3, len(STOPS), count), dtype=np.uint8),
        "correct_given": random.integers(0, 2, (1, 1, 2, 3, len(STOPS), count), dtype=np.uint8),
    }
    for name, values, kept in (("u", u, 4), ("d", d, 4), ("tsne", tsne, 5)):
        arrays[name], arrays[f"{name}_scale"] = quantise(values, kept)
    axes = {
        "t": Axis("t", (0.1, 0.5)),
        "layer": Axis("layer", (2, 4, 8)),
        "w": Axis("w", (0.0, 4.0, 0.1), continuous=True, stops=STOPS),
    }
    return View("Embedding", [ScatterPane("Embedding", arrays, {"names": NAMES})], axes)


def in_pixels(view: View, shown, **values) -> np.ndarray:
    """Where Python expects every point: the middle of the extremes in the middle, all within 94 % of the height."""
    state = view.state(**values)
    points = positions(view.panes[0].arrays, state, view.axes)
    box = shown.page.locator(PLOT).bounding_box()
    width, height = box["width"], box["height"]
    low, high = points.min(axis=0), points.max(axis=0)
    unit = 0.47 * height / max((high[0] - low[0]) / 2 / (width / height), (high[1] - low[1]) / 2)
    return np.array([width / 2, height / 2]) + (points - (low + high) / 2) * unit * np.array([1, -1])


def saved(shown, tmp_path) -> ElementTree.Element:
    with shown.page.expect_download() as waiting:
        shown.page.get_by_role("button", name="Save SVG").click()
    waiting.value.save_as(tmp_path / "saved.svg")
    return ElementTree.parse(tmp_path / "saved.svg").getroot()


def table(shown) -> list[tuple[str, ...]]:
    rows = shown.page.locator(".wb-sc-table tbody tr, .wb-sc-table tfoot tr").all()
    return [tuple(cell.inner_text().strip() for cell in row.locator("th, td").all()) for row in rows]


def expected(view: View, **values) -> list[tuple[str, ...]]:
    by_class, total = class_numbers(view.panes[0].meta, view.panes[0].arrays, view.state(**values), view.axes)
    return [one.texts for one in (*by_class, total)]


def draw_around(shown, left: float, top: float, right: float, bottom: float) -> None:
    box, mouse = shown.page.locator(PLOT).bounding_box(), shown.page.mouse
    mouse.move(box["x"] + left, box["y"] + top)
    mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom)):
        mouse.move(box["x"] + x, box["y"] + y, steps=8)
    mouse.up()
    shown.settled()


def rows_in(points: np.ndarray, left: float, top: float, right: float, bottom: float) -> list[int]:
    return np.flatnonzero(((points > [left, top]) & (points < [right, bottom])).all(axis=1)).tolist()


def clear_edge(values: np.ndarray, near: float) -> float:
    """A coordinate by `near` that no point is near to."""
    values = np.sort(values[np.abs(values - near) < 40])
    widest = np.argmax(np.diff(values))
    return float(values[widest : widest + 2].mean())


def test_principal_components_are_linear_in_w_and_the_others_stand_at_stops():
    view = scatter_view()
    arrays = view.panes[0].arrays
    at = {w: positions(arrays, view.state(w=w, layer=8), view.axes) for w in (0.0, 1.0, 4.0)}
    np.testing.assert_allclose(at[4.0] - at[0.0], 4 * (at[1.0] - at[0.0]), atol=1e-12)
    stood = positions(arrays, view.state(w=2.4, method="tsne", t=0.5), view.axes)
    np.testing.assert_allclose(stood, arrays["tsne"][0, 0, 1, 1, 1] * float(arrays["tsne_scale"][0, 0, 1, 1, 1]))


@pytest.mark.parametrize("state", [{"w": 1.3, "layer": 8}, {"w": 0.0, "t": 0.5}, {"method": "tsne", "w": 3.2}], ids=str)
def test_the_browser_draws_the_points_of_python(show, tmp_path, state):
    view = scatter_view()
    shown = show(view, **state)
    wanted = in_pixels(view, shown, **state)
    root = saved(shown, tmp_path)
    found: dict[int, list[list[float]]] = {0: [], 1: [], 2: []}
    for use in root.iter("{http://www.w3.org/2000/svg}use"):
        found[int(use.get("href").removeprefix("#wb-m"))].append([float(use.get("x")), float(use.get("y"))])
    for label, points in found.items():
        own = wanted[view.panes[0].arrays["labels"] == label]
        distances = np.abs(np.array(points)[:, None] - own[None]).max(axis=2)
        assert distances.shape == (80, 80)
        assert distances.min(axis=0).max() <= 0.06 and distances.min(axis=1).max() <= 0.06
    assert [text for text in root.itertext() if "of 240" in text] == ["0 of 240"]
    assert "var(" not in ElementTree.tostring(root, encoding="unicode")


def test_a_lasso_selects_what_lies_in_it_shift_adds_and_alt_removes(show):
    view = scatter_view()
    shown = show(view, w=1.0)
    assert table(shown) == expected(view, w=1.0)
    points = in_pixels(view, shown, w=1.0)
    x, y = np.median(points, axis=0)
    middle, level = clear_edge(points[:, 0], x), clear_edge(points[:, 1], y)
    width, height = (shown.page.locator(PLOT).bounding_box()[side] for side in ("width", "height"))
    quarters = [(3, 3, middle, level), (middle, 3, width - 3, level), (3, level, middle, height - 3)]
    rows = [set(rows_in(points, *quarter)) for quarter in quarters]
    assert all(len(part) > 20 for part in rows)
    draw_around(shown, *quarters[0])
    assert table(shown) == expected(view, w=1.0, selection=sorted(rows[0]))
    assert shown.status() == f"{len(rows[0])} of 240 images selected."
    draw_around(shown, *quarters[1])
    assert table(shown) == expected(view, w=1.0, selection=sorted(rows[1]))
    shown.page.keyboard.down("Shift")
    draw_around(shown, *quarters[2])
    shown.page.keyboard.up("Shift")
    assert table(shown) == expected(view, w=1.0, selection=sorted(rows[1] | rows[2]))
    shown.page.keyboard.down("Alt")
    draw_around(shown, *quarters[1])
    shown.page.keyboard.up("Alt")
    assert table(shown) == expected(view, w=1.0, selection=sorted(rows[2]))
    # The grid shows these images, by class; the one below the pointer is marked in the plot.
    images = shown.page.get_by_role("list", name="Selected images").get_by_role("img")
    chosen = sorted(rows[2], key=lambda row: (row % 3, row))
    labels = [image.get_attribute("aria-label") for image in images.all()]
    assert labels == [f"{NAMES[row % 3]}, image {row + 1} of 240" for row in chosen]
    shade = images.nth(5).evaluate("(c) => c.getContext('2d').getImageData(0, 0, 1, 1).data[0]")
    assert shade == chosen[5] % 251
    images.nth(5).hover()
    ring = shown.page.locator(".wb-sc-over circle")
    assert abs(float(ring.get_attribute("cx")) - points[chosen[5], 0]) < 0.5
    label = shown.page.locator(PLOT).get_attribute("aria-label")
    assert label == f"PCA · layer 4 · t = 0.5 · w = 1: 240 images of 3 classes, {len(rows[2])} selected"
    shown.page.get_by_role("button", name="Clear selection").click()
    assert table(shown) == expected(view, w=1.0) and images.count() == 0


def test_a_selection_of_two_thousand_points_takes_less_than_50_ms(show):
    shown = show(scatter_view(2000))
    canvas = shown.page.locator(PLOT)
    canvas.evaluate("""(canvas) => {
      window.taken = [];
      canvas.addEventListener("pointerup", () => {
        const start = performance.now();
        requestAnimationFrame(() => setTimeout(() => taken.push(performance.now() - start)));
      }, true);
    }""")
    box = canvas.bounding_box()
    for _ in range(5):
        draw_around(shown, 1, 1, box["width"] - 1, box["height"] - 1)
        shown.page.wait_for_timeout(30)
    assert shown.status() == "2,000 of 2,000 images selected."
    assert min(shown.page.evaluate("taken")) < 50


def test_points_by_keyboard(show):
    view = scatter_view()
    shown = show(view, w=1.0)
    points, keyboard = in_pixels(view, shown, w=1.0), shown.page.keyboard
    shown.page.locator(".wb-sc-plot").focus()

    def row() -> int:
        return -1 + int(
            re.search(r"image (\d+) of 240", shown.page.locator(".wb-sc-spoken[aria-live]").inner_text())[1]
        )

    keyboard.press("ArrowRight")  # the first key takes the point nearest to the middle
    box = shown.page.locator(PLOT).bounding_box()
    visited = [row()]
    assert visited[0] == np.argmin(((points - [box["width"] / 2, box["height"] / 2]) ** 2).sum(axis=1))
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowUp", 1, -1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, 1)):
        keyboard.press(key)
        visited.append(row())
        assert sign * (points[visited[-1]] - points[visited[-2]])[axis] > 0
    keyboard.press("Enter")
    assert table(shown) == expected(view, w=1.0, selection=[visited[-1]])
    keyboard.press("Home")
    keyboard.press("Enter")
    assert table(shown) == expected(view, w=1.0, selection=sorted({0, visited[-1]}))
    keyboard.press("Enter")
    assert table(shown) == expected(view, w=1.0, selection=[visited[-1]])
    keyboard.press("Escape")
    assert table(shown) == expected(view, w=1.0)
    whole = shown.page.get_by_role("button", name="Whole plot")
    keyboard.press("+")
    assert whole.is_visible()
    keyboard.press("0")
    assert whole.is_hidden()
    shown.page.locator(PLOT).hover()
    shown.page.mouse.wheel(0, -300)
    whole.wait_for(state="visible")
    shown.page.locator(PLOT).dblclick(position={"x": 4, "y": 4})
    assert whole.is_hidden()


def test_a_class_is_toggled_in_the_table(show):
    view = scatter_view()
    shown = show(view, w=1.0, selection=[1])
    bag = shown.page.get_by_role("button", name="bag")
    assert bag.get_attribute("aria-pressed") == "mixed"
    bag.click()
    assert bag.get_attribute("aria-pressed") == "true"
    assert table(shown) == expected(view, w=1.0, selection=list(range(1, 240, 3)))
    bag.press("Enter")
    assert bag.get_attribute("aria-pressed") == "false" and table(shown) == expected(view, w=1.0)


def test_given_labels_bring_the_neighbours_by_them(show):
    view = scatter_view()
    shown = show(view, w=1.0)
    note = shown.page.locator(".wb-sc-note")
    assert note.inner_text().endswith("vote for their true class.")
    shown.page.get_by_role("radio", name="given label").check(force=True)
    assert table(shown) == expected(view, w=1.0, labels="given")
    total = view.panes[0].arrays["correct_given"][0, 0, 1, 1, 1].mean()
    assert table(shown)[-1][-1] == f"{total:.2f}".removeprefix("0")
    assert note.inner_text().endswith("vote for their given label.")
    pane = view.panes[0]
    for labels, told in (("true", "space."), ("given", "space, by the given labels.")):
        figure = draw_scatter(pane.complete(view.axes), pane.arrays, view.state(labels=labels), view.axes)
        assert figure.get_supxlabel().endswith(told)


def test_given_labels_are_a_choice_where_there_are_any():
    view = scatter_view()
    assert view.options["labels"] == ["true", "given"] and 'labels="given"' in view.code(labels="given")
    arrays = dict(view.panes[0].arrays)
    del arrays["correct_given"]
    with pytest.raises(ValueError, match="given and correct_given must be present together"):
        View("Half", [ScatterPane("Half", arrays, {"names": NAMES})], view.axes)
    del arrays["given"]
    assert "labels" not in View("None", [ScatterPane("None", arrays, {"names": NAMES})], view.axes).options


def test_the_pointer_shows_the_image_of_the_point_under_it(show):
    view = scatter_view()
    shown = show(view, w=4.0)
    points = in_pixels(view, shown, w=4.0)
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2)) + 1e9 * np.eye(240)
    row = int(np.argmax(np.where(np.arange(240) % 4 == 0, apart.min(axis=1), 0)))  # one of another given label
    box = shown.page.locator(PLOT).bounding_box()
    shown.page.mouse.move(box["x"] + points[row, 0], box["y"] + points[row, 1])
    correct = view.panes[0].arrays["correct"][0, 0, 1, 1, 2, row]
    name = f"{NAMES[row % 3]}, given label {NAMES[(row + 1) % 3]}"
    assert shown.page.locator(".wb-sc-tip").inner_text().split("\n") == [
        name,
        f"image {row + 1} of 240",
        f"kNN predicts {'its class' if correct else 'another class'}",
    ]
    grey = shown.page.locator(".wb-sc-thumb").evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, 6, 6).data]")
    assert grey == [row % 251, row % 251, row % 251, 255] * SIDE**2
    shown.page.mouse.move(0, 0)
    assert shown.page.locator(".wb-sc-tip").is_hidden()


def test_what_is_shown_and_what_it_does_not_mean_are_said(show):
    shown = show(scatter_view(), w=2.0)
    title, note = shown.page.locator(".wb-scatter .wb-caption"), shown.page.locator(".wb-sc-note")
    assert title.inner_text() == "PCA · layer 4 · t = 0.5 · w = 2 · kNN at w = 1, the nearest stop"
    assert "mean nothing" not in note.inner_text()
    shown.page.get_by_role("radio", name="t-SNE").check(force=True)
    assert title.inner_text() == "t-SNE · layer 4 · t = 0.5 · w = 2 · shown at w = 1, the nearest stop"
    assert note.inner_text().startswith("Distances between clusters, and their sizes, mean nothing in t-SNE.")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_points_glide_between_frames_unless_the_reader_wants_none(show, motion):
    shown = show(scatter_view(), w=1.0)
    shown.page.emulate_media(reduced_motion=motion)
    early, late = shown.page.locator(PLOT).evaluate("""async (canvas) => {
      const frames = (n) => new Promise((done) => (n ? requestAnimationFrame(() => done(frames(n - 1))) : done()));
      const slider = document.querySelector("input[data-axis=layer]");
      slider.value = 2;
      slider.dispatchEvent(new Event("input"));
      await frames(3);
      const early = canvas.toDataURL();
      await new Promise((done) => setTimeout(done, 600));
      return [early, canvas.toDataURL()];
    }""")
    assert (early == late) == (motion == "reduce")


def test_the_figure_has_the_same_points_and_those_selected_on_top(tmp_path):
    view = scatter_view()
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        assert view.save(tmp_path / f"figure{ending}", method="tsne", selection=[1, 2]).read_bytes().startswith(magic)
    state = view.state(w=1.3, selection=[5, 6, 200])
    pane = view.panes[0]
    figure = draw_scatter(pane.complete(view.axes), pane.arrays, state, view.axes)
    plot, numbers = figure.axes
    behind, front = (np.asarray(drawn.get_offsets()) for drawn in plot.collections)
    points = positions(pane.arrays, state, view.axes)
    assert sorted(map(tuple, front)) == sorted(map(tuple, points[[5, 6, 200]]))
    assert sorted(map(tuple, np.vstack([behind, front]))) == sorted(map(tuple, points))
    texts = [text.get_text() for text in numbers.texts]
    assert texts[4:] == [text for row in expected(view, w=1.3, selection=[5, 6, 200]) for text in row]


def test_pictures_list_forty_of_many_classes_and_the_page_all(show, tmp_path):
    view = scatter_view()
    arrays = {**view.panes[0].arrays, "labels": np.arange(240, dtype=np.uint16) % 60}
    many = View("Many", [ScatterPane("Many", arrays, {"names": [f"class {k}" for k in range(60)]})], view.axes)
    state = many.state(selection=[55, 59])
    figure = draw_scatter(many.panes[0].complete(view.axes), arrays, state, view.axes)
    listed = [text.get_text() for text in figure.axes[1].texts][4::4]
    assert listed == ["class 55", "class 59", *(f"class {k}" for k in range(38)), "All 60 classes"]
    shown = show(many, selection=[55, 59])
    assert len(table(shown)) == 61
    root = saved(shown, tmp_path)
    assert [text for text in root.itertext() if re.match(r"class \d+$|All", text)] == listed


@pytest.mark.parametrize("width", [390, 900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(show, width, scheme):
    page = show(scatter_view(2000), width=width, scheme=scheme, selection=list(range(2000))).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plot, numbers = (page.locator(name).bounding_box() for name in (".wb-sc-plot", ".wb-sc-table"))
    below = numbers["y"] >= plot["y"] + plot["height"]
    assert below == (width < 700)
    assert below or numbers["x"] >= plot["x"] + plot["width"]
    assert page.locator(".wb-sc-table").evaluate("(e) => e.scrollWidth <= e.clientWidth")
