"""The parts of the views that need no run."""

import numpy as np
import pytest
import torch

from workbench.config import DataConfig
from workbench.lab.coordinates import joint_coordinates
from workbench.lab.measured import heat_pane
from workbench.lab.neighbours import right_by_neighbours
from workbench.lab.packing import quantise
from workbench.lab.progress import Bar, Lines, part_of, reported
from workbench.lab.snippets import check_page, snippet
from workbench.lab.sources import choose_rows
from workbench.lab.views.embedding import snake


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("neighbours", [1, 4, 7])
def test_leave_one_out_is_what_trying_all_finds(neighbours):
    rows, labels = draw(60, 5), np.random.default_rng(0).integers(0, 4, 60)
    rows[labels == 1] += 1
    found = right_by_neighbours(rows, labels, neighbours)
    for i, row in enumerate(rows):
        cosines = [(float(torch.cosine_similarity(row, other, dim=0)), j) for j, other in enumerate(rows) if j != i]
        votes = [int(labels[j]) for _, j in sorted(cosines, reverse=True)[:neighbours]]
        assert found[i] == (max(sorted(set(votes)), key=votes.count) == labels[i])
    assert 0.2 < found.mean() < 1


def test_a_row_is_no_neighbour_of_its_own():
    # Three pairs: each one's nearest other is of the other class.
    rows = torch.tensor([[1, 0.0], [1, 0.1], [0, 1.0], [0.1, 1], [-1, 0.0], [-1, 0.1]])
    assert not right_by_neighbours(rows, np.array([0, 1, 0, 1, 0, 1]), 1).any()
    with pytest.raises(ValueError, match="1 to 5, the other images"):
        right_by_neighbours(rows, np.zeros(6, int), 6)


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 3), (2, 2, 3, 2, 3), (1, 3, 1, 2, 1)])
def test_each_frame_is_one_step_from_the_last(shape):
    order = list(snake(shape))
    assert sorted(order) == sorted(np.ndindex(shape))
    assert {int(np.abs(np.subtract(a, b)).sum()) for a, b in zip(order, order[1:], strict=False)} == {1}
    if shape == (1, 1, 3, 4, 3):  # w moves first, then t, then the layer
        assert [at[2:] for at in order[:5]] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 2), (1, 0, 1)]


def layered(layers=3, times=2, n=4, m=9, d=6):
    """Features by (time, layer): of a layer the others' in another basis, with a detail of its own."""
    common = {(t, which): draw(n, m, d, seed=10 * t + which) for t in range(times) for which in (0, 1)}
    turns = [torch.linalg.qr(draw(d, d, seed=100 + layer))[0] for layer in range(layers)]
    sizes = torch.linspace(3, 0.3, d)

    def read(source, step, t, layer):
        own = 0.2 * draw(n, m, d, seed=1000 + layer)
        return tuple((common[int(t), which] * sizes + own) @ turns[layer] + layer for which in (0, 1))

    return read


def test_coordinates_are_the_joint_principal_components_of_each_layer():
    read = layered()
    found = joint_coordinates(read, (1, 1), [0.0, 1.0], [0, 1, 2], components=4)
    assert found.u.shape == (1, 1, 2, 3, 4, 9, 4)
    for layer in range(3):
        pairs = [read(0, 0, t, layer) for t in (0.0, 1.0)]
        rows = torch.cat([of.reshape(-1, 6) for pair in pairs for of in pair]).double().numpy()
        _, _, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        for t, (f_u, f_c) in enumerate(pairs):
            for w in (0.0, 1.0, 12.0):
                guided = (f_u + w * (f_c - f_u)).reshape(-1, 6).double().numpy() - rows.mean(axis=0)
                scores = guided @ directions[:4].T
                shown = (found.u + w * found.d)[0, 0, t, layer].reshape(-1, 4)
                # A turn of the first three changes no angle between tokens.
                np.testing.assert_allclose(
                    shown[:, :3] @ shown[:, :3].T, scores[:, :3] @ scores[:, :3].T, rtol=1e-5, atol=1e-2
                )
                np.testing.assert_allclose(np.abs(shown[:, 3]), np.abs(scores[:, 3]), atol=1e-4)
            around = [(of - of.mean(dim=(0, 1))).reshape(-1, 6).double() for of in (f_u, f_c - f_u)]
            expected = [(around[a] * around[b]).sum() / 36 for a, b in ((0, 0), (0, 1), (1, 1))]
            np.testing.assert_allclose(found.total[0, 0, t, layer], expected, rtol=1e-5)


def test_layers_are_turned_onto_the_middle_one():
    found = joint_coordinates(layered(), (1, 1), [0.0, 1.0], [0, 1, 2], components=4)
    both = np.stack([found.u, found.u + found.d])[..., :3]
    scores = [both[:, :, :, :, layer].reshape(-1, 3).astype(np.float64) for layer in range(3)]
    for layer in (0, 2):
        own, middle = (of - of.mean(axis=0) for of in (scores[layer], scores[1]))
        # No turn brings them nearer exactly if the cross-covariance is symmetric without negative eigenvalues.
        cross = own.T @ middle
        np.testing.assert_allclose(cross, cross.T, atol=1e-3 * np.abs(cross).max())
        assert np.linalg.eigvalsh((cross + cross.T) / 2).min() > 0
        assert np.corrcoef(own.ravel(), middle.ravel())[0, 1] > 0.9


def test_fewer_bits_are_a_coarser_scale():
    values = draw(2, 50).numpy().astype(np.float64)
    for bits in (8, 12, 16):
        packed, scale = quantise(values, 1, bits=bits)
        assert np.abs(packed).max() == 2 ** (bits - 1) - 1
        assert (np.abs(packed * scale[:, None].astype(np.float64) - values) <= 0.5001 * scale[:, None]).all()


def test_rows_of_a_count_are_one_of_each_class_in_turn():
    labels = np.array([2, 0, 0, 1, 2, 0, 1])
    assert choose_rows(labels, 7) == [1, 3, 0, 2, 6, 4, 5]
    assert choose_rows(labels, 4) == [1, 3, 0, 2] and choose_rows(labels, [5, 2]) == [5, 2]
    for images, words in ((8, "1 to 7"), (0, "1 to 7"), ([0, 7], "from 0 to 6"), ([3, 3], "distinct"), ([], "0 row")):
        with pytest.raises(ValueError, match=words):
            choose_rows(labels, images)


def test_a_page_that_would_be_too_large_says_what_to_leave_out():
    arrays = {"maps": {"u": np.zeros((1000, 1000), np.int16)}, "points": {"u": np.zeros(10, np.int16)}}
    check_page(arrays, 3.0, "layers")
    with pytest.raises(ValueError, match=r"2\.\d MB \(maps 2\.1, points 0\.0\), more than 1: ask for fewer of layers"):
        check_page(arrays, 1.0, "layers")


def made(runs, images=6, layers=None, data=None):
    return None


def test_a_snippet_has_what_is_not_the_default(monkeypatch):
    defaults = {"images": 6, "layers": None}
    elsewhere = f"view = wb.view(\"{made.__module__}:made\", 'plain')"
    assert snippet(made, "plain", defaults) == f"import workbench as wb\n\n{elsewhere}"
    monkeypatch.setattr(made, "__module__", "workbench.lab.views.made")
    assert snippet(made, "plain", defaults) == "import workbench as wb\n\nview = wb.made('plain')"
    code = snippet(
        made, ["plain", "vae"], {"images": np.arange(2), "layers": (np.int64(1),), "data": DataConfig("digits")}
    )
    assert code.splitlines() == [
        "import workbench as wb",
        "from workbench.config import DataConfig",
        "",
        "view = wb.made(['plain', 'vae'], images=[0, 1], layers=(1,), data=DataConfig(name='digits'))",
    ]


def test_lines_say_how_long_it_will_take_and_are_few():
    now, said = [0.0], []
    lines = Lines(said.append, lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.5
        lines.update("features", done, 100)
    assert said == ["features: 5 of 100, about 48 s left; cached for the next call", "features: done in 50 s"]
    said.clear()
    for done in (1, 2):  # quick work is not worth a word
        now[0] += 0.1
        lines.update("neighbours", done, 2)
    assert not said


def test_a_bar_says_what_is_left_and_leaves_nothing():
    now, shown = [0.0], []

    def display(content):
        shown.append(content)
        return shown.append

    bar = Bar(display, lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.5
        bar.update("a < b", done, 100)
        bar.update("a < b", done, 100)  # not drawn again so soon
    # From the first second on; the time left is estimated after two more.
    assert len(shown) == 99 and shown[0] == '<progress value="2" max="100"></progress> a &lt; b: 2 of 100'
    assert shown[3] == '<progress value="5" max="100"></progress> a &lt; b: 5 of 100, about 48 s left'
    bar.close()
    assert shown[-1] == ""
    quick = Bar(pytest.fail, lambda: 0.0)
    quick.update("neighbours", 1, 2)
    quick.close()


def test_parts_of_a_stage_count_as_one():
    seen = []
    for number in (0, 1):
        counted = part_of(lambda *told: seen.append(told), "samples", number, 2, 10)
        counted(5, 10)
        counted(4, 4)
    assert seen == [("samples", done, 20) for done in (5, 10, 15, 20)]
    with reported(print) as report:
        assert report is print


def test_the_heat_maps_have_every_record_at_its_place():
    from workbench.evaluation.measures import MeasureGrid

    def record(measure, version, scale, value, low=None, high=None):
        told = {"measure": measure, "version": version, "value": value, "low": low, "high": high, "count": 9}
        return {"layer": 2, "t": 0.5, "scale": scale, **told}

    records = [
        record("probe", "null", None, 0.5, 0.4, 0.6),
        record("knn", "true", 5.0, 0.7, 0.6, 0.8),
        record("fisher", "true", 5.0, None),
        record("condition_share", "wrong", 5.0, 0.25),
        record("knn", "wrong_by_given", 5.0, 0.3, 0.2, 0.4),
        record("cknna", "null", None, 0.2),
        record("cknna_chance", "null", None, 0.125),
        record("knn_choose", "true", 5.0, 0.9),
    ]
    pane = heat_pane(MeasureGrid([1, 2], [0.5], [5.0], records, {"classes": 4}))
    meta, values = pane.meta, pane.arrays["values"]
    assert meta["measures"] == ["knn", "probe", "fisher", "cknna", "condition_share"]
    assert meta["versions"] == ["null", "true", "wrong_by_true", "wrong_by_given"] and meta["scales"] == [0.0, 1.0, 5.0]
    at = {(m, v): values[i, j, 1, 0] for i, m in enumerate(meta["measures"]) for j, v in enumerate(meta["versions"])}
    np.testing.assert_array_equal(at["probe", "null"], np.float32([0.5, np.nan, np.nan]))  # f_u is w = 0
    np.testing.assert_array_equal(at["knn", "true"], np.float32([np.nan, np.nan, 0.7]))
    np.testing.assert_array_equal(at["condition_share", "wrong_by_given"], np.float32([np.nan, np.nan, 0.25]))
    assert np.isnan(at["fisher", "true"]).all() and np.isnan(values[:, :, 0]).all()
    np.testing.assert_array_equal(at["condition_share", "wrong_by_true"], at["condition_share", "wrong_by_given"])
    assert np.isfinite(values).sum() == 6
    np.testing.assert_array_equal(pane.arrays["low"][0, 1, 1, 0], np.float32([np.nan, np.nan, 0.6]))
    assert meta["chance"] == {"knn": 0.25, "probe": 0.25, "cknna": 0.125}
