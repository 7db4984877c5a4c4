"""Object and background in a run of scenes: the masks' shares, the views and the charts; and runs without masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

import workbench as wb
from workbench.config import load_config
from workbench.data.images import Images
from workbench.diffusion.tokens import patchify
from workbench.features.grid import LABELS
from workbench.lab import sources
from workbench.lab.measured import heat_pane
from workbench.runs.store import prepare_run
from workbench.training.loop import fit

SMALL = ("vae.name=identity", "backbone.size=pico", "training.batch=8", "training.steps=4", "training.log_every=2")
STEPS = ("training.checkpoint_every=2", "training.milestone_every=2", "data.limit=100")
SCENES = ("data.name=scenes", "data.size=32", "backbone.patch=8", "name=scenes")
SCALES = (0.0, 5.0)


def quiet(*told):
    pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, own in (("scenes", SCENES), ("digits", ("data.name=digits", "backbone.patch=8", "name=digits"))):
        config = load_config("demo/plain", (*SMALL, *STEPS, *own))
        list(fit(config, root))
        found[name] = prepare_run(config, root)
    return found


def test_shares_are_in_the_order_of_the_tokens(runs):
    run, rows = runs["scenes"], [3, 0, 99]
    masks = wb.load_images(run.config.data, "train").masks(rows)
    expected = patchify(masks[:, None].float(), 8).mean(dim=2)
    assert torch.equal(wb.object_shares(run, rows), expected) and 0 < expected.mean() < 1
    held = wb.load_images(run.config.data, "test").masks(rows)
    assert torch.equal(
        wb.object_shares(run, rows, split="test"),
        rearrange(held.float(), "b (h p) (w q) -> b (h w) (p q)", p=8, q=8).mean(2),
    )
    with pytest.raises(ValueError, match="the train split of data.name=digits has no masks"):
        wb.object_shares(runs["digits"], rows)


def test_shares_are_those_of_the_images_of_the_features(runs):
    run, root = runs["scenes"], runs["scenes"].folder.parent
    other = replace(run.config.data, limit=50)
    for given in ({}, {"split": "test"}, {"data": other}):
        features = wb.extract(run, [3, 0, 49], [6], [0.5], root=root, **given)
        expected = wb.object_shares(run, features.rows, **given)
        assert torch.equal(wb.object_shares(run, features), expected)
        assert torch.equal(wb.object_shares(run, features, **given), expected)
    features = wb.extract(run, [3, 0], [6], [0.5], root=root, split="test")
    with pytest.raises(ValueError, match="the features are of the test images of scenes; shares of others need"):
        wb.object_shares(run, features, split="train")
    with pytest.raises(ValueError, match="the features are of the test images of scenes; shares of others need"):
        wb.object_shares(run, features, data=other)


def test_the_views_have_them_if_the_images_have_masks(runs):
    run = runs["scenes"]
    view = wb.separability(run, 60, [6], [0.5], SCALES, mapped=2, objects=40, progress=quiet)
    pane = next(pane for pane in view.panes if "measures" in pane.meta)
    rows = sources.choose_rows(wb.load_images(run.config.data, "train").labels, 60)[:40]
    features = wb.extract(run, rows, [6], [0.5], labels=tuple(LABELS), root=run.folder.parent)
    found = wb.measure_objects(features, wb.object_shares(run, rows), scales=SCALES, processes=1)
    measures, versions = pane.meta["measures"], pane.meta["versions"]
    for measure, version, own in (
        ("object_auc", "true", "true"),
        ("object_iou", "wrong_by_given", "wrong"),
        ("object_probe_same_place_gain", "wrong_by_true", "wrong"),
        ("object_silhouette", "label_only", "label_only"),
    ):
        shown = pane.arrays["values"][measures.index(measure), versions.index(version), 0, 0]
        assert shown[pane.meta["scales"].index(5.0)] == np.float32(found.array(measure, own)[0, 0, 1])
    low = pane.arrays["low"][measures.index("object_auc"), versions.index("null"), 0, 0, 0]
    assert low == np.float32(found.array("object_auc", "null", "low")[0, 0, 0])
    share = pane.arrays["values"][measures.index("difference_share"), versions.index("true"), 0, 0]
    assert np.isnan(share[[0, 2]]).all() and share[1] == np.float32(found.array("difference_share", "true")[0, 0, 0])
    chance = pane.meta["chance"]
    assert chance["object_auc_same_place"] == 0.5 and chance["knn"] == 0.1
    assert chance["object_auc"] == chance["object_probe_shuffled"] > 0.5
    assert chance["object_auc"] == pytest.approx(found.array("object_auc_chance").mean())
    assert chance["object_iou"] == pytest.approx(found.array("object_iou_chance").mean())
    gains = {name for name in measures if "_gain" in name}
    assert len(gains) == 8 and {name for name, centre in pane.meta["centre"].items() if not centre} == {
        "silhouette",
        "object_silhouette",
        *gains,
    }
    assert all(name in pane.meta["labels"] for name in measures)
    assert view.figure(pane=0, measure="object_auc", version="true").axes


def measures_of(view):
    return next(pane.meta["measures"] for pane in view.panes if "measures" in pane.meta)


def test_all_measures_are_there_by_default_and_none_if_not_asked_for(runs):
    wanted = dict(images=40, layers=[6], times=[0.5], scales=SCALES, mapped=2, progress=quiet)
    assert "object_auc" in measures_of(wb.leakage(runs["scenes"], **wanted))
    assert not any(
        name.startswith("object") for name in measures_of(wb.separability(runs["scenes"], objects=0, **wanted))
    )
    assert not any(name.startswith("object") for name in measures_of(wb.separability(runs["digits"], **wanted)))
    with pytest.raises(ValueError, match="the train split of data.name=digits has no masks of its objects"):
        wb.separability(runs["digits"], objects=40, **wanted)


def test_objects_that_are_smaller_than_a_token_leave_the_other_measures(runs, monkeypatch):
    images = sources.load_images(runs["scenes"].config.data, "train")
    specks = replace(images, read_masks=lambda rows: images.read_masks(rows) & (np.arange(32) == 9))
    monkeypatch.setattr(sources, "load_images", lambda *asked: specks)
    assert isinstance(specks, Images) and specks.masks([0, 1, 2]).any()
    wanted = dict(images=40, layers=[6], times=[0.5], scales=SCALES, mapped=2, progress=quiet)
    with pytest.warns(UserWarning, match="object and background were not measured: of the 20 images to fit on, 0%"):
        measures = measures_of(wb.separability(runs["scenes"], **wanted))
    assert "knn" in measures and "object_auc" not in measures


def drawn(chart):
    return {line.get_label(): line.get_ydata() for line in chart.figure.axes[0].lines}


def test_the_chart_over_guidance_has_the_four_versions(runs):
    found = drawn(wb.versions_over_guidance(runs["scenes"], 8, 0.5, 40, SCALES, "object_probe", progress=quiet))
    assert list(found) == ["null label", "true label", "wrong label", "label only", "chance"]
    assert found["true label"][0] == found["wrong label"][0] == found["null label"][0] == found["null label"][1]
    assert found["chance"][0] > 0.5  # that of the place alone
    with pytest.raises(ValueError, match="data.name=digits has no masks"):
        wb.versions_over_guidance(runs["digits"], images=40, measure="object_probe", progress=quiet)
    with pytest.raises(ValueError, match="'difference_share' of 'null' was not measured"):
        wb.versions_over_guidance(runs["scenes"], 8, 0.5, 40, SCALES, "difference_share", progress=quiet)


def test_the_chart_over_training_has_a_point_for_each_step_and_a_line_for_each_scale(runs):
    run = runs["scenes"]
    chart = wb.objects_over_training(run, "object_auc", scales=SCALES, images=40, progress=quiet)
    found = drawn(chart)
    assert list(found) == ["w = 0", "w = 5", "chance"]
    rows = sources.choose_rows(wb.load_images(run.config.data, "train").labels, 40)
    for number, step in enumerate((2, 4)):
        tokens = wb.extract(run, rows, [8], [0.5], step=step, root=run.folder.parent).guided(8, 0.5, 5.0)
        expected = wb.object_separation(tokens, wb.object_shares(run, rows)).auc
        assert found["w = 5"][number] == pytest.approx(expected.value)
    # Both lines have a band.
    assert expected.low in chart.figure.axes[0].collections[1].get_paths()[0].vertices[:, 1]


def test_the_chart_over_training_against_an_own_step_leaves_that_step_out(runs):
    run = runs["scenes"]
    chart = wb.objects_over_training(run, "object_auc", scales=[1.0, 3.0], images=40, weak=2, progress=quiet)
    found, rows = drawn(chart), sources.choose_rows(wb.load_images(run.config.data, "train").labels, 40)
    root = run.folder.parent
    tokens = [wb.extract(run, rows, [8], [0.5], step=step, root=root).read(8, 0.5, "true") for step in (2, 4)]
    expected = wb.object_separation(tokens[0] + 3 * (tokens[1] - tokens[0]), wb.object_shares(run, rows)).auc
    assert found["w = 3"] == pytest.approx([expected.value], abs=1e-6)
    assert f"against {run.name}, step 2" in chart.figure.axes[0].get_xlabel()


def test_a_measure_that_needs_masks_says_so(runs):
    features = wb.extract(runs["digits"], 100, [6], [0.5], pooling="mean", root=runs["digits"].folder.parent)
    grid = wb.measure_grid(features, scales=SCALES, neighbours=5, processes=1)
    with pytest.raises(ValueError, match="'object_auc' of 'null' was not measured; .*need images with masks"):
        grid.array("object_auc")
    assert "object_auc" not in heat_pane(grid).meta["measures"]
