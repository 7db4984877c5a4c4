"""Guidance against a weak model: in every view the numbers are f_weak + w (f - f_weak), as a few lines of torch say."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.__main__ import main
from workbench.config import load_config
from workbench.data.latents import open_latents
from workbench.diffusion.paths import get_path
from workbench.diffusion.randomness import normal
from workbench.evaluation.generate import generate, sample_latents
from workbench.evaluation.statistics import protocol
from workbench.features.extract import extract, noisy_latents
from workbench.features.grid import LABELS
from workbench.features.predictions import predict_clean
from workbench.lab.sources import choose
from workbench.lab.views.leakage import VERSIONS, _pair
from workbench.runs.index import runs_table
from workbench.runs.models import load_backbone
from workbench.runs.store import Run, prepare_run
from workbench.runs.weak import Weak, find_weak
from workbench.training.loop import fit

TINY = (
    *("data.name=digits", "data.limit=100", "vae.name=identity", "backbone.patch=8", "backbone.size=pico"),
    *("training.steps=4", "training.batch=8", "training.log_every=1", "sampling.steps=3", "sampling.count=4"),
    *("training.checkpoint_every=2", "training.milestone_every=2"),
    # In great leaps, or no gate would open in so few steps.
    *("training.learning_rate=0.02", "training.warmup_steps=0", "training.ema=0.1"),
)
ROWS, LAYER, T = [0, 3, 7], 6, 0.3


def quiet(*told):
    pass


def trained(root, name: str, *changes: str) -> Run:
    config = load_config("demo/plain", (*TINY, f"name={name}", *changes))
    list(fit(config, root))
    return prepare_run(config, root)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that fit each other, and copies of the second with records that do not fit the first."""
    root = tmp_path_factory.mktemp("runs")
    strong = trained(root, "strong")
    other = trained(root, "other", "training.seed=1", "training.steps=2", "diffusion.label_dropout=0")
    copies = tmp_path_factory.mktemp("copies")
    return {
        "strong": strong,
        "other": other,
        "wide": copy(other, copies / "wide", "config.yaml", "size: pico", "size: nano"),
        "coarse": copy(other, copies / "coarse", "config.yaml", "patch: 8", "patch: 16"),
        "cosine": copy(other, copies / "cosine", "config.yaml", "path: linear", "path: cosine"),
        "vae": copy(other, copies / "vae", "provenance.json", '"name": "identity"', '"name": "other"'),
        "images": copy(other, copies / "images", "config.yaml", "name: digits", "name: stamps"),
        "itself": copy(strong, copies / "itself", "config.yaml", "", ""),
    }


def copy(run: Run, folder, file: str, old: str, new: str) -> Run:
    shutil.copytree(run.folder, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    return Run(folder)


@pytest.fixture(autouse=True)
def here(runs, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(runs["strong"].folder.parent))


@torch.no_grad()
def by_hand(run: Run, step: int, images: Run, label: str = "true", rows=ROWS, t=T):
    """Features of a layer, and the velocity, at the x_t that the images of a run are given as."""
    latents = open_latents(images.config, "train", images.folder.parent / ".latents")
    z, x_t = noisy_latents(latents, np.asarray(rows), get_path("linear"), t, seed=0)
    backbone, times = load_backbone(run, step), torch.full((len(rows),), t)
    true = torch.from_numpy(latents.labels[rows].astype(np.int64))
    y = true if label == "true" else torch.full_like(true, backbone.null_label)
    return backbone.features(x_t, times, y, (LAYER,))[LAYER], backbone(x_t, times, y), x_t


def named(runs, name: str):
    """What `weak` can be, and the run and step that it names."""
    strong, other = runs["strong"], runs["other"]
    return {
        "step": (2, strong, 2),
        "run": (other, other, 2),
        "name": ("other", other, 2),
        "pair": ((strong, 2), strong, 2),
        "name and step": (f"{strong.name}@2", strong, 2),
        "step as text": ("2", strong, 2),
        "folder": (other.folder, other, 2),
    }[name]


@pytest.mark.parametrize("name", ["step", "run", "name", "pair", "name and step", "step as text", "folder"])
def test_each_way_of_naming_it_gives_its_features(runs, name):
    strong = runs["strong"]
    weak, run, step = named(runs, name)
    assert find_weak(weak, strong) == Weak(Run(run.folder), step)
    features = extract(strong, ROWS, [LAYER], [T], labels=["true"], weak=weak)
    (f, *_), (f_weak, *_) = by_hand(strong, 4, strong), by_hand(run, step, strong)
    assert (f - f_weak).abs().max() > 1e-2
    for w in (0.0, 1.0, 2.5):
        torch.testing.assert_close(features.guided(LAYER, T, w), f_weak + w * (f - f_weak), rtol=1e-5, atol=1e-5)


def test_similarities_of_guided_tokens_are_those_of_torch(runs):
    strong = runs["strong"]
    similar = wb.similarity(strong, 3, 5, images=ROWS, layers=[LAYER], t=T, w=3.0, weak="other", progress=quiet)
    (f, *_), (f_weak, *_) = by_hand(strong, 4, strong), by_hand(runs["other"], 2, strong)
    f_g = f_weak + 3.0 * (f - f_weak)
    expected = torch.cosine_similarity(f_g.double(), f_g[1, 5].double(), dim=-1)
    np.testing.assert_allclose(similar.values[0, 0], expected.numpy(), atol=1e-5)
    words = [axis.get_title(loc="left").replace("\n", " ") for axis in similar.figure().axes]
    assert any("w 3, guided against other, step 2" in of for of in words), words


def test_predictions_are_guided_in_the_same_way(runs):
    strong, other = runs["strong"], runs["other"]
    depth = 12
    features = extract(strong, ROWS, [LAYER, depth], [T], labels=["true"], weak=other)
    found = predict_clean(strong, features, root=strong.folder.parent, weak=Weak(other, 2))
    (_, v, x_t), (_, v_weak, _) = by_hand(strong, 4, strong), by_hand(other, 2, strong)
    for w in (0.0, 1.0, 4.0):
        torch.testing.assert_close(found.guided(w)[0], x_t - T * (v_weak + w * (v - v_weak)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("guided", ["null", "weak"])
def test_the_lens_reads_guided_tokens(runs, guided):
    strong, w = runs["strong"], 3.0
    weak = (runs["other"], 2) if guided == "weak" else None
    seen = wb.lens(strong, [LAYER], [T], tuned=False, images=3, fit=20, held=3, w=w, weak=weak, progress=quiet)
    rows = list(range(20, 23))
    (f, _, x_t) = by_hand(strong, 4, strong, rows=rows)
    first = by_hand(strong, 4, strong, "null", rows)[0] if weak is None else by_hand(*weak, strong, rows=rows)[0]
    model, latents = load_backbone(strong, 4), open_latents(strong.config, "train", strong.folder.parent / ".latents")
    y, times = torch.from_numpy(latents.labels[rows].astype(np.int64)), torch.full((3,), T)
    patches = model.final_layer(first + w * (f - first), model.t_embedder(times) + model.y_embedder(y))
    v = patches.unflatten(1, (4, 4)).unflatten(3, (8, 8)).permute(0, 1, 3, 2, 4).reshape(3, 1, 32, 32)
    z = latents.moments(np.asarray(rows)).chunk(2, dim=1)[0]
    assert seen.errors["raw"][0, 0] == pytest.approx(float((x_t - T * v - z).square().mean()), rel=1e-4)
    assert "w = 3" in repr(seen) and ("guided against other" in repr(seen)) == (weak is not None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"w": 2.0, "label": "null"}, "without a weak model guidance needs both labels"),
        ({"w": float("nan")}, "w is nan; allowed are finite numbers"),
        ({"weak": 2}, "step 2, but at w = 1 it changes nothing: choose another w, such as w=2"),
    ],
)
def test_a_lens_without_guidance_is_refused_before_anything_runs(runs, monkeypatch, options, sentence):
    monkeypatch.setattr("workbench.lab.lens.opened_latents", None)
    with pytest.raises(ValueError, match=sentence):
        wb.lens(runs["strong"], [LAYER], [T], images=2, fit=20, held=4, **options, progress=quiet)


def test_pictures_of_predictions_are_not_taken_from_those_of_the_null_label(runs):
    stored = {}
    for name, weak in (("null", None), ("weak", 2), ("again", None)):
        view = wb.maps(runs["strong"], ROWS, layers=[LAYER], times=[T], w=(0.0, 5.0), weak=weak, progress=quiet)
        (pane,) = view.panes
        stored[name] = {stop: pane.arrays["predicted"][0, 0, 0, k] for k, stop in enumerate(pane.meta["stops"])}
    for stop in (0.0, 5.0):
        np.testing.assert_array_equal(stored["null"][stop], stored["again"][stop])
        assert not np.array_equal(stored["null"][stop], stored["weak"][stop])
    np.testing.assert_array_equal(stored["null"][1.0], stored["weak"][1.0])  # of f itself


@pytest.mark.parametrize(
    "make",
    [
        lambda run, weak: wb.maps(run, 3, layers=[LAYER], times=[T], weak=weak, progress=quiet),
        lambda run, weak: wb.compare_maps([run, "vae"], 3, layers=[LAYER], times=[T], weak=weak, progress=quiet),
        lambda run, weak: wb.embedding(run, 30, [LAYER], [T], methods=["pca"], mapped=2, weak=weak, progress=quiet),
        lambda run, weak: wb.separability(run, 100, [LAYER], [T], [2.0], mapped=2, weak=weak, progress=quiet),
        lambda run, weak: wb.leakage(run, 100, [LAYER], [T], [2.0], mapped=2, weak=weak, progress=quiet),
        lambda run, weak: wb.explore(run, 100, [LAYER], [T], [2.0], mapped=2, weak=weak, progress=quiet),
        lambda run, weak: wb.samples(run, None, [1.0, 2.0], count=2, weak=weak, progress=quiet),
        lambda run, weak: wb.lens_view(run, [LAYER], [T], w=2.0, weak=weak, images=2, fit=20, held=4, progress=quiet),
    ],
    ids=["maps", "compare_maps", "embedding", "separability", "leakage", "explore", "samples", "lens_view"],
)
def test_a_view_and_its_page_say_which_guidance_is_meant(runs, make):
    strong = runs["strong"]
    view = make(strong, f"{strong.name}@2")
    axis = view.axes.get("w") or view.axes["guidance"]
    assert "weak model" in axis.label and "weak" in axis.hint and "step 2" in view.title
    assert "not against the null label" in view.html()
    assert f"weak='{strong.name}@2'" in view.code()
    assert [text for name, text in view.made if name == "weak model"][0].endswith("step 2")


def test_guidance_against_the_null_label_is_not_called_another(runs):
    view = wb.maps(runs["strong"], 2, layers=[LAYER], times=[T], progress=quiet)
    assert view.axes["w"].label == "guidance w" and "weak" not in view.code() and "guided against" not in view.title
    assert "weak" not in str(view.made) and "weak" not in view.html().partition("<script")[0]


def test_measures_at_the_ends_of_w_are_those_of_the_two_models(runs):
    strong = runs["strong"]
    rows = list(range(100))
    means = {"layers": [LAYER], "times": [T], "labels": list(LABELS), "pooling": "mean"}
    against = {"null": None, "weak": 2}
    grids = {name: extract(strong, rows, weak=weak, **means) for name, weak in against.items()}
    own = extract(strong, rows, step=2, **means)
    found = {
        name: wb.measure_grid(features, scales=[0.0, 1.0], neighbours=5, processes=1)
        for name, features in {**grids, "own": own}.items()
    }
    for version in ("true", "wrong_by_true", "wrong_by_given", "label_only"):
        for measure in ("silhouette", "knn"):
            values = {name: of.array(measure, version)[0, 0] for name, of in found.items()}
            assert values["weak"][0] == values["own"][1], (version, measure)  # w = 0 is the weak model's f_c
            assert values["weak"][1] == values["null"][1]  # w = 1 is the run's
    assert found["weak"].array("silhouette", "true")[0, 0, 0] != found["null"].array("silhouette", "true")[0, 0, 0]
    assert (found["weak"].about["weak"], found["weak"].about["weak_step"]) == (strong.name, 2)


def test_in_the_control_of_the_null_label_neither_model_is_given_one(runs):
    strong = runs["strong"]
    features = extract(strong, ROWS, [LAYER], [T], labels=list(LABELS), weak=2)
    for version, label in (("null label", "null"), ("true label", "true")):
        assert VERSIONS[version][1] == label
        first, second = _pair(features, version, T, LAYER)
        torch.testing.assert_close(first, by_hand(strong, 2, strong, label)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second, by_hand(strong, 4, strong, label)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_samples_follow_the_guided_velocity(runs):
    strong, other = runs["strong"], runs["other"]
    settings = load_config("demo/plain", [*TINY, "sampling.count=2", "sampling.guidance_scale=2.5"]).sampling
    models = [load_backbone(strong, 4), load_backbone(other, 2)]
    y, rows = torch.tensor([1, 2]), np.arange(2)
    z = sample_latents(strong, settings, models[0], models[0], rows, y, "", "", models[1])
    x = normal(settings.seed, "sample", rows, tuple(z.shape[1:])).double()
    for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        v, v_weak = (model(x.float(), torch.full((2,), t), y).double() for model in models)
        x = x + (t_next - t) * (v_weak + 2.5 * (v - v_weak))
    torch.testing.assert_close(z, x.float(), rtol=1e-4, atol=1e-5)
    stored = {
        (w, weak): generate(strong, 4, replace(settings, guidance_scale=w), weak=of)
        for w in (1.0, 2.5)
        for weak, of in (("null", None), ("weak", Weak(other, 2)))
    }
    assert torch.equal(stored[1.0, "null"].images, stored[1.0, "weak"].images)
    assert not torch.equal(stored[2.5, "null"].images, stored[2.5, "weak"].images)


def test_scores_against_a_weak_model_are_kept_apart(runs, capsys):
    strong, other = runs["strong"], runs["other"]
    settings = replace(strong.config.sampling, count=4, steps=3, guidance_scale=2.5)
    how = {"detector": "pixels-pca64", "small_ok": True}
    null, weak = wb.score(strong, 4, settings, **how), wb.score(strong, 4, settings, weak=other, **how)
    assert (weak[0]["weak"], weak[0]["weak_step"], null[0]["weak"]) == (other.name, 2, None)
    assert wb.score(strong, 4, settings, weak="other@2", **how) == weak
    assert weak[0]["value"] != null[0]["value"] == wb.score(strong, 4, settings, **how)[0]["value"]
    pairs = wb.score(strong, 4, settings, weak=2, **how)
    assert pairs[0]["weak"] == "the run itself" and protocol(pairs[0]) != protocol(weak[0]) != protocol(null[0])
    (row,) = [row for row in runs_table(strong.folder.parent) if row.name == strong.name]
    assert dict(row.scores)[weak[0]["metric"]] == null[0]["value"]
    plain = replace(settings, guidance_scale=1.0)
    assert wb.score(strong, 4, plain, weak=other, **how) == wb.score(strong, 4, plain, **how)  # w = 1 is the run itself
    command = ["evaluate", strong.name, "guidance_scale=2.5", "count=4", "steps=3", "--small-ok"]
    main([*command, "--detector", "pixels-pca64", "--weak", "2"])
    assert "guided against the run itself at step 2, against 100 of" in " ".join(capsys.readouterr().out.split())


def test_edits_with_features_guided_against_a_weak_model(runs):
    strong = runs["strong"]
    edit = {"layer": LAYER, "count": 3, "progress": quiet}
    same = wb.patch(strong, weak=2, w=1.0, **edit)
    assert torch.equal(same.after, same.before)
    # w = 0 is the weak model's features: those of the run at that step.
    weak, replaced = wb.patch(strong, weak=2, w=0.0, **edit), wb.patch(strong, with_=strong, with_step=2, **edit)
    assert torch.equal(weak.after, replaced.after) and not torch.equal(weak.after, weak.before)
    assert "against" in weak.edit.text and (weak.edit.about["weak"], weak.edit.about["weak_step"]) == (strong.name, 2)


@pytest.mark.fuzz
@given(st.one_of(st.text(max_size=12), st.from_regex(r"(other|strong|[0-9]{0,3})?@?[0-9]*", fullmatch=True)))
def test_any_text_names_a_run_and_step_or_is_refused_in_a_sentence(runs, text):
    try:
        found = find_weak(text, runs["strong"])
    except ValueError as error:
        assert str(error).startswith("weak is ") or "has no checkpoint of step" in str(error)
    else:
        assert found.step in [checkpoint.step for checkpoint in found.run.checkpoints]


BAD = {
    "the run itself": (lambda runs: runs["strong"], r"the same weights as the run itself.*its steps \(2\)"),
    "its own step": (lambda runs: 4, "the same weights as the run itself"),
    "no such step": (lambda runs: 3, "no checkpoint of step 3; it has: 2, 4"),
    "no such step of another": (lambda runs: "other@4", "no checkpoint of step 4; it has: 2"),
    "no such run": (lambda runs: "gone", "weak is 'gone', and .*is not a run.*RUN@1200"),
    "a target": (lambda runs: "vae", "weak is 'vae', and "),
    "nothing": (lambda runs: "", "weak is '', and the name of the run is empty"),
    "another width": (lambda runs: runs["wide"], "width 128 instead of 48; allowed are runs"),
    "another grid": (lambda runs: runs["coarse"], "tokens 4 instead of 16; allowed are runs"),
    "another path": (lambda runs: runs["cosine"], "noise path 'cosine' instead of 'linear'"),
    "another VAE": (lambda runs: runs["vae"], "VAE 'other' instead of 'identity'"),
    "other images": (lambda runs: runs["images"], "images 'stamps' instead of 'digits'"),
    "a copy": (lambda runs: runs["itself"], "the same weights as the run itself"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_weak_model_that_cannot_be_one_is_refused_before_anything_runs(runs, what, monkeypatch):
    make, sentence = BAD[what]
    for module in ("workbench.features.extract", "workbench.evaluation.generate", "workbench.evaluation.edits"):
        monkeypatch.setattr(f"{module}.load_backbone", None)  # nothing may be computed
    strong, weak = runs["strong"], make(runs)
    monkeypatch.setattr("workbench.lab.sources.load_images", None)
    for call in (
        lambda: wb.maps(strong, 3, layers=[LAYER], times=[T], weak=weak, progress=quiet),
        lambda: extract(strong, 3, [LAYER], [T], weak=weak),
        lambda: wb.patch(strong, LAYER, weak=weak, count=2, progress=quiet),
        lambda: wb.samples(strong, None, [2.0], count=2, weak=weak, progress=quiet),
        lambda: wb.score(strong, 4, replace(strong.config.sampling, guidance_scale=2.0), weak=weak),
        lambda: wb.lens(strong, [LAYER], [T], images=2, fit=20, held=4, w=2.0, weak=weak, progress=quiet),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize("weak", [0.5, True, (1, 2, 3), (2, 4), ("other", "2"), [], {"run": "other"}])
def test_what_names_no_weak_model_is_refused(runs, weak):
    with pytest.raises(ValueError, match="weak is .*; allowed are another run, a step of the run itself, such as 1200"):
        find_weak(weak, runs["strong"])


def test_a_run_without_a_null_label_can_be_guided_but_not_controlled(runs):
    strong, other = runs["strong"], runs["other"]
    with pytest.raises(ValueError, match="its null class is untrained.*weak="):
        choose(other, images=3, layers=[LAYER], times=[T], steps=None, data=None)
    view = wb.maps(other, 3, layers=[LAYER], times=[T], weak=strong, progress=quiet)
    assert view.title.endswith("guided against strong, step 4")
    for controlled in (wb.leakage, wb.separability, wb.explore):
        with pytest.raises(ValueError, match="its null class is untrained"):
            controlled(other, 100, [LAYER], [T], weak=strong, progress=quiet)
    with pytest.raises(ValueError, match="needs features with the null label"):
        wb.leakage(strong, 100, [LAYER], [T], weak=other, progress=quiet)


def test_the_command_takes_it(runs, tmp_path, capsys):
    page, name = tmp_path / "page.html", runs["strong"].name
    main(["page", name, str(page), "--images", "2", "--weak", "other@2"])
    assert "guided against other, step 2" in page.read_text()
    for arguments, sentence in (
        (["--weak", "gone"], "weak is 'gone'"),
        (["--weak", "3"], "no checkpoint of step 3"),
        (["--weak", name], "the same weights as the run itself"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["page", name, str(tmp_path / "no.html"), "--images", "2", *arguments])
        said = capsys.readouterr().err
        assert left.value.code == 2 and sentence in said and said.count("\n") == 1, said
    assert not (tmp_path / "no.html").exists()
