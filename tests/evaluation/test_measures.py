"""Every measure of a grid at once is that of the single functions, kept, and gone on with."""

import json

import numpy as np
import pytest
import torch

from workbench.evaluation import measures as module
from workbench.evaluation.leakage import leakage, version
from workbench.evaluation.measures import MeasureGrid, measure_grid, measure_objects
from workbench.evaluation.objects import object_difference, object_probe, object_separation, split_masks
from workbench.evaluation.probe import linear_probe
from workbench.evaluation.similarity import cknna, linear_cka, rank_me, uniformity
from workbench.evaluation.statistics import t_interval
from workbench.features.cache import array_file, write_array
from workbench.features.grid import LABELS, FeatureGrid, local_distant_similarity, wrong_labels

LAYERS, TIMES, SCALES, COUNT, CLASSES, WIDTH = (1, 2, 5), (0.2, 0.7), (0.0, 1.0, 10.0), 120, 3, 8


def make_grid(folder, labels=tuple(LABELS), layers=LAYERS) -> FeatureGrid:
    """Tokens on a grid of 3 x 3: the image, clearer in deep layers and at small times, and the name of the label."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(COUNT) % CLASSES
    given = torch.from_numpy(wrong_labels(true.numpy(), seed=0))
    names = torch.eye(CLASSES + 1, WIDTH)
    told = {"null": torch.full_like(true, CLASSES), "true": true, "given": given}
    centres = torch.randn(CLASSES, 9, WIDTH, generator=generator)
    for layer in layers:
        for t in TIMES:
            image, blank = (torch.randn(COUNT, 9, WIDTH, generator=generator) for _ in range(2))
            image += layer * (1 - t) * centres[true]
            for label in labels:
                noise, name = LABELS[label]
                tokens = (blank if noise else image) + 0.5 * names[told[name]][:, None]
                write_array(array_file(folder, label, t, layer), tokens.numpy())
    return FeatureGrid(
        run="known",
        step=1,
        layers=tuple(layers),
        times=TIMES,
        labels=tuple(labels),
        pooling="tokens",
        rows=tuple(range(COUNT)),
        true=true,
        given=given,
        classes=tuple("abc"),
        folder=folder,
    )


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def found(grid):
    return measure_grid(grid, scales=SCALES, neighbours=5, processes=1)


def at(found, **where):
    chosen = [r for r in found.records if where.items() <= r.items()]
    assert len(chosen) == 1, chosen
    return chosen[0]


def share(record):
    return record["value"], record["low"], record["high"], record["count"]


def test_separability_and_leakage_are_those_of_the_single_function(grid, found):
    for layer, t, scale in ((1, 0.7, 0.0), (5, 0.2, 1.0), (2, 0.7, 10.0)):
        expected = leakage(grid, layer, t, scale, seed=0, neighbours=5)
        for name in ("null", "true", "wrong_by_true", "wrong_by_given", "label_only"):
            where = {"layer": layer, "t": t, "scale": None if name == "null" else scale, "version": name}
            separable = getattr(expected, name)
            for kind in ("knn", "lda"):
                for measure, part in ((kind, "report"), (f"{kind}_choose", "choose")):
                    held_out = getattr(getattr(separable, kind), part)
                    assert share(at(found, **where, measure=measure)) == tuple(vars(held_out).values())
            for measure in ("silhouette", "davies_bouldin", "fisher"):
                assert at(found, **where, measure=measure)["value"] == getattr(separable, measure)
        where = {"layer": layer, "t": t, "scale": scale, "version": "wrong"}
        assert at(found, **where, measure="condition_share")["value"] == expected.condition.share
        assert at(found, **where, measure="by_image")["value"] == expected.condition.by_image


def test_measures_without_a_scale_are_those_of_the_single_functions(grid, found):
    for layer, t in ((1, 0.2), (5, 0.7)):
        for name, scale in (("null", None), ("true", 1.0)):
            where = {"layer": layer, "t": t, "scale": scale, "version": name}
            (rows, labels), (deepest, _) = (version(grid, name, of, t, 1.0) for of in (layer, 5))
            assert at(found, **where, measure="rank_me")["value"] == rank_me(rows)
            assert at(found, **where, measure="uniformity")["value"] == uniformity(rows)
            assert at(found, **where, measure="cka")["value"] == linear_cka(rows, deepest)
            alike = cknna(rows, deepest, seed=0)
            assert at(found, **where, measure="cknna")["value"] == alike.value
            assert at(found, **where, measure="cknna_chance")["value"] == alike.null_high
            spread = local_distant_similarity(grid.read(layer, t, name))
            interval = t_interval(spread.tolist())
            lds = at(found, **where, measure="lds")
            assert share(lds) == (pytest.approx(float(spread.mean())), interval.low, interval.high, COUNT)
        where = {"layer": layer, "t": t, "scale": None, "version": "null"}
        rows = version(grid, "null", layer, t, 0.0)[0]
        for measure, labels in (("probe", grid.true), ("probe_shuffled", grid.given)):
            probe = linear_probe(rows, labels, seed=0)
            assert share(at(found, **where, measure=measure)) == (probe.accuracy, probe.low, probe.high, probe.count)


def test_alignment_is_of_two_draws_of_the_noise(grid, tmp_path):
    again = make_grid(tmp_path / "again", labels=("null", "true"))  # the same numbers, so every pair agrees
    found = measure_grid(grid, scales=(1.0,), neighbours=5, processes=1, again=again)
    assert at(found, layer=2, t=0.7, version="true", measure="alignment")["value"] == 0
    other = FeatureGrid(**{**vars(again), "layers": (1,), "folder": tmp_path / "other"})
    other.folder.mkdir()
    for t in TIMES:
        for label in ("null", "true"):
            write_array(array_file(other.folder, label, t, 1), -again.read(1, t, label).numpy())
    alone = FeatureGrid(**{**vars(grid), "layers": (1,)})
    opposite = measure_grid(alone, scales=(1.0,), neighbours=5, processes=1, again=other)
    assert at(opposite, layer=1, t=0.2, version="null", measure="alignment")["value"] == pytest.approx(4)
    with pytest.raises(ValueError, match="another seed"):
        measure_grid(grid, scales=(1.0,), again=grid)


def test_arrays_have_the_axes_of_the_grid(found):
    silhouettes, probes = found.array("silhouette", "label_only"), found.array("probe")
    assert silhouettes.shape == (3, 2, 3) and probes.shape == (3, 2, 1)
    assert (
        silhouettes[1, 0, 2]
        == at(found, layer=2, t=0.2, scale=10.0, version="label_only", measure="silhouette")["value"]
    )
    assert found.array("cka", "true").shape == (3, 2, 1)
    np.testing.assert_allclose(found.array("cka")[2], 1, rtol=1e-12)  # the deepest layer with itself
    np.testing.assert_array_equal(found.array("knn", "true")[:, :, 0], found.array("knn")[:, :, 0])  # scale 0
    with pytest.raises(ValueError, match="'probe' of 'true' was not measured; there are .*probe of null"):
        found.array("probe", "true")


def test_what_it_shows(found):
    # The label alone makes clusters that are better the more it is guided; nothing of that is in the images.
    label_only = found.array("silhouette", "label_only")
    assert (
        (np.diff(label_only, axis=2) > 0).all() and label_only[:, :, 0].max() < 0.05 and label_only[:, :, 2].min() > 0.9
    )
    assert (np.diff(found.array("condition_share", "wrong"), axis=2) >= 0).all()
    assert found.array("probe")[2, 0] == 1
    shuffled = [r for r in found.records if r["measure"] == "probe_shuffled"]
    # 95 % intervals of the same 36 rows each: all six miss together or by chance once.
    assert sum(r["low"] <= 1 / 3 <= r["high"] for r in shuffled) >= 5


def test_a_second_call_computes_nothing(grid, found, monkeypatch):
    monkeypatch.setattr(module, "_task", None)
    again = measure_grid(grid, scales=SCALES, neighbours=5)
    assert again == found
    fewer = measure_grid(grid, scales=(10.0,), neighbours=5)
    assert fewer.array("knn", "true").tolist() == found.array("knn", "true")[:, :, 2:].tolist()


def counting(monkeypatch):
    """The parts that are computed, as they are."""
    parts, task = [], module._task

    def counted(cells, wanted):
        found = task(cells, wanted)
        parts.extend(found)
        return found

    monkeypatch.setattr(module, "_task", counted)
    return parts


def test_a_call_that_was_cut_off_goes_on(found, tmp_path, monkeypatch):
    grid, parts = make_grid(tmp_path / "grid"), counting(monkeypatch)
    steps = []

    def killer(done, total):
        steps.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_grid(grid, scales=SCALES, neighbours=5, processes=1, progress=killer)
    assert steps == [(4, 24), (8, 24)]
    file = next(grid.folder.glob("measures-*.jsonl"))
    file.write_bytes(file.read_bytes()[:-50])  # and the last line was cut short
    parts.clear()
    again = measure_grid(grid, scales=SCALES, neighbours=5, processes=1)
    assert len(parts) == 17 and again == found
    parts.clear()
    measure_grid(grid, scales=(0.0, 2.0), neighbours=5, processes=1)
    assert [part[2] for part in parts] == 6 * [2.0]


def test_processes_find_the_same(found, tmp_path):
    again = measure_grid(make_grid(tmp_path / "grid"), scales=SCALES, neighbours=5, processes=2)
    assert again.records == [
        {**r, "value": pytest.approx(r["value"], rel=1e-9, abs=1e-12)} if r["value"] is not None else r
        for r in found.records
    ]


def test_an_outside_reference_takes_the_deepest_layer_s_place(tmp_path):
    grid = make_grid(tmp_path / "grid", labels=("null",), layers=(1, 2))
    reference = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(3))
    found = measure_grid(grid, neighbours=5, reference=reference, processes=1)
    rows = version(grid, "null", 2, 0.7, 0.0)[0]
    assert at(found, layer=2, t=0.7, version="null", measure="cka")["value"] == linear_cka(rows, reference)
    assert found.about["against"].startswith("reference ") and found.about["against"] != "layer 2"
    # With the null label alone there is nothing to guide.
    assert {r["version"] for r in found.records} == {"null"}
    assert measure_grid(grid, neighbours=5, processes=1).about["against"] == "layer 2"
    with pytest.raises(ValueError, match="the reference has 3 rows; the grid has 120 images"):
        measure_grid(grid, reference=reference[:3])


@pytest.fixture(scope="module")
def shares():
    return torch.rand(COUNT, 9, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def objects(grid, shares):
    return measure_objects(grid, shares, scales=SCALES, processes=1)


def test_measures_of_objects_are_those_of_the_single_functions(grid, shares, objects):
    layer, t, masks = 2, 0.7, split_masks(shares, seed=0, labels=grid.true)
    f_u = grid.read(layer, t, "null")
    nothing, where = object_separation(f_u, masks), {"layer": layer, "t": t}
    for name, pair in (("null", None), ("true", "true"), ("wrong", "wrong"), ("label_only", "noise")):
        for scale in (None,) if pair is None else SCALES:
            tokens = f_u if pair is None else grid.guided(layer, t, scale, pair)
            found, here = object_separation(tokens, masks), {**where, "version": name, "scale": scale}
            for measure in found.resampled:
                expected = tuple(vars(getattr(found, measure)).values())
                assert share(at(objects, **here, measure=f"object_{measure}")) == pytest.approx(expected)
            assert at(objects, **here, measure="object_iou_chance")["value"] == masks.iou_of_place
            assert at(objects, **here, measure="object_auc_chance")["value"] == masks.auc_of_place
            assert at(objects, **here, measure="object_silhouette")["value"] == pytest.approx(found.silhouette)
            if name in ("true", "wrong"):
                gain = tuple(vars(found.less(nothing, "auc_same_class")).values())
                assert share(at(objects, **here, measure="object_auc_same_class_gain")) == pytest.approx(gain)
            if name == "true":
                conditional = object_separation(grid.guided(layer, t, 1.0), masks)
                gain = tuple(vars(found.less(conditional, "auc_same_place")).values())
                assert share(at(objects, **here, measure="object_auc_same_place_gain_over_f_c")) == pytest.approx(gain)
        if pair:
            first, second = (grid.guided(layer, t, scale, pair) for scale in (0.0, 1.0))
            expected, here = object_difference(first, second, masks), {**where, "version": name, "scale": 1.0}
            for measure in ("share", "ratio", "ratio_same_place"):
                value = tuple(vars(getattr(expected, measure)).values())
                assert share(at(objects, **here, measure=f"difference_{measure}")) == pytest.approx(value)
            assert at(objects, **here, measure="difference_area")["value"] == expected.area
    shuffled = at(objects, **where, version="null", scale=None, measure="object_probe_shuffled")
    assert shuffled["value"] == object_probe(f_u, masks.shuffled(0)).value
    assert objects.array("object_auc", "true").shape == (3, 2, 3)
    assert (objects.array("object_auc_same_class_gain", "true")[:, :, 0] == 0).all()


def test_measures_of_objects_are_kept_beside_the_others_and_join_them(grid, found, shares, objects, monkeypatch):
    both = found.joined(objects, "objects")
    assert both.array("knn", "true").tolist() == found.array("knn", "true").tolist()
    assert both.array("object_iou").tolist() == objects.array("object_iou").tolist()
    assert both.about == {**found.about, "objects": objects.about}
    with pytest.raises(ValueError, match="objects were measured at other layers, times or scales"):
        found.joined(measure_objects(grid, shares, scales=(1.0,), processes=1), "objects")
    monkeypatch.setattr(module, "_task", None)
    assert measure_objects(grid, shares, scales=SCALES) == objects
    assert measure_grid(grid, scales=SCALES, neighbours=5) == found


def test_features_without_a_difference_have_none_and_are_still_measured(shares, tmp_path):
    grid = make_grid(tmp_path / "grid", labels=("null", "true"), layers=(1,))  # as the patch embedding
    for t in TIMES:
        write_array(array_file(grid.folder, "true", t, 1), grid.read(1, t, "null").numpy())
    found = measure_objects(grid, shares, scales=(1.0,), processes=1)
    none = at(found, layer=1, t=0.2, scale=1.0, version="true", measure="difference_share")
    assert share(none) == (None, None, None, COUNT)
    found.save(tmp_path / "measures.json")
    json.loads((tmp_path / "measures.json").read_text(), parse_constant=pytest.fail)
    assert (found.array("object_probe_same_place_gain", "true") == 0).all()
    assert {record["version"] for record in found.records} == {"null", "true"}


def test_measures_of_objects_need_tokens_and_masks_of_the_same_images(grid, shares):
    with pytest.raises(ValueError, match="pooling 'mean'; measures of objects need pooling \"tokens\""):
        measure_objects(FeatureGrid(**{**vars(grid), "pooling": "mean"}), shares)
    with pytest.raises(ValueError, match="got the shares of 4 images; the grid has 120 images"):
        measure_objects(grid, shares[:4], processes=1)
    with pytest.raises(
        ValueError, match="layer 1, t = 0.2, null: got 120 images of 9 tokens and .* 120 images of 4 tok"
    ):
        measure_objects(grid, shares[:, :4], processes=1)


def test_it_is_written_and_read(found, tmp_path):
    file = tmp_path / "measures.json"
    found.save(file)
    assert MeasureGrid.load(file) == found
    json.loads(file.read_text(), parse_constant=pytest.fail)  # numbers that any reader of JSON takes
    file.write_text('{"layers": []}')
    with pytest.raises(ValueError, match="measures.json is damaged: it lacks about, records, scales, times"):
        MeasureGrid.load(file)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_measured_is_named(tmp_path, processes):
    grid = make_grid(tmp_path / "grid", layers=(1, 2))
    file = array_file(grid.folder, "wrong", 0.7, 2)
    broken = grid.read(2, 0.7, "wrong").clone()
    broken[17] = torch.nan
    write_array(file, broken.numpy())
    with pytest.raises(ValueError, match="layer 2, t = 0.7, scale 10, wrong_by_true: row 17 .*not finite"):
        measure_grid(grid, scales=(10.0,), neighbours=5, processes=processes)


def test_arguments_are_checked(grid, tmp_path):
    with pytest.raises(ValueError, match="scales has nan; allowed are finite numbers"):
        measure_grid(grid, scales=(float("nan"),))
    with pytest.raises(ValueError, match="processes is 0; allowed are 1 and more"):
        measure_grid(grid, processes=0)
    with pytest.raises(ValueError, match="the grid has label modes true; all measures need null"):
        measure_grid(make_grid(tmp_path / "grid", labels=("true",)))
