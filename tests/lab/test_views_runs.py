"""Views of a tiny run: what they hold is what its features are."""

import shutil

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.backbones.base import Size
from workbench.config import load_config, plugin_class
from workbench.data.latents import open_latents
from workbench.diffusion.guidance import guide
from workbench.diffusion.paths import get_path
from workbench.features import attention, predictions
from workbench.features import embedding as embeddings
from workbench.features import extract as extraction
from workbench.features.extract import extract, noisy_latents
from workbench.features.grid import LABELS
from workbench.lab import noise
from workbench.lab.attended import attention_at
from workbench.lab.neighbours import right_by_neighbours
from workbench.lab.noise import noise_pictures
from workbench.lab.panes.heat import version_of
from workbench.lab.snippets import PACKED, deflated
from workbench.lab.sources import choose
from workbench.lab.unit_tokens import left_out, stored_similarity
from workbench.runs.models import load_backbone
from workbench.runs.store import prepare_run
from workbench.training.loop import fit

SMALL = ("data.name=digits", "data.source=auto", "data.limit=160", "vae.name=identity", "backbone.patch=8")
SHORT = (
    "training.steps=4",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "training.milestone_every=2",
)
LAYERS, TIMES = [1, 6, 12], [0.2, 0.7]


def quiet(*told):
    pass


def shaken(run, step=None, weights="ema"):
    """So early the gates are shut, and no label matters."""
    backbone, generator = load_backbone(run, step, weights), torch.Generator().manual_seed(len(run.name))
    for parameter in backbone.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain run, another of its kind that was trained longer, and one that never saw the null class."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plugin_class("backbone", "sit").sizes, "nano", Size(depth=12, width=32, heads=2))
        patch.setattr(extraction, "load_backbone", shaken)
        patch.setattr(predictions, "load_backbone", shaken)
        patch.setattr(attention, "load_backbone", shaken)
        patch.setenv("WORKBENCH_RUNS", str(root))
        found = {}
        for name, more in (
            ("plain", ()),
            ("longer", ("training.steps=6", "training.seed=1")),
            ("told", ("diffusion.label_dropout=0",)),
        ):
            config = load_config("demo/plain", (*SMALL, *SHORT, f"name={name}", *more))
            for _ in fit(config, root):
                pass
            found[name] = prepare_run(config, root)
        yield found


@pytest.fixture(scope="module")
def features(runs):
    rows = [
        int(row) for row in wb.maps("plain", images=4, layers=[1], times=[0.5], progress=quiet).axes["image"].values
    ]
    return extract(runs["plain"], rows, LAYERS, TIMES, labels=tuple(LABELS), root=runs["plain"].folder.parent)


def coordinates(view, pane=0, w=0.0):
    """u + w d of every place, from the 16-bit numbers."""
    arrays = view.panes[pane].arrays
    u, d = (arrays[name] * arrays[f"{name}_scale"][..., None, None, None].astype(np.float64) for name in ("u", "d"))
    return u + w * d


def distances(rows):
    rows = np.asarray(rows, np.float64)
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


def pasted(code):
    """What the snippet creates in a fresh namespace."""
    space = {}
    exec(code, space)
    return space["view"]


def test_maps_are_the_projected_guided_features(runs, features):
    view = wb.maps("plain", 4, LAYERS, TIMES, components=8, progress=quiet)
    arrays = view.panes[0].arrays
    assert arrays["u"].shape == (1, 1, 2, 3, 4, 16, 8) and view.axes["image"].values == features.rows
    assert arrays["images"].shape == (4, 32, 32, 1)
    for layer, number in enumerate(LAYERS):
        pairs = {t: [features.read(number, t, mode) for mode in ("null", "true")] for t in TIMES}
        projection = wb.project(*({t: pair[i] for t, pair in pairs.items()} for i in (0, 1)), components=8)
        for time, t in enumerate(TIMES):
            for w in (0.0, 1.0, 7.5):
                direct = (features.guided(number, t, w) - projection.mean.float()) @ projection.basis.float()
                direct = direct.reshape(-1, 8).numpy()
                shown = coordinates(view, w=w)[0, 0, time, layer].reshape(-1, 8)
                # 12 bits hold the numbers to 1/4094 of the largest, and w multiplies the error of d.
                error = 0.6 * (1 + w) * (arrays["u_scale"].max() + arrays["d_scale"].max()) * 8**0.5
                np.testing.assert_allclose(distances(shown[:, :3]), distances(direct[:, :3]), atol=2 * error)
                np.testing.assert_allclose(shown[:, 3:], direct[:, 3:], atol=error)
                uu, ud, dd = arrays["total"][0, 0, time, layer]
                guided = features.guided(number, t, w).reshape(-1, 32).double()
                total = float(guided.var(dim=0, unbiased=False).sum())
                assert uu + 2 * w * ud + w * w * dd == pytest.approx(total, rel=1e-4)


def test_pictures_are_the_decoded_latents(runs):
    view = wb.compare_maps(["plain", "longer", "vae"], [7, 40, 11], [1, 6], TIMES, progress=quiet)
    arrays, meta = view.panes[0].arrays, view.meta["panes"][0]
    assert meta["stops"] == [0, 1, 2, 5, 10, 30] and meta["runs"] == ["plain", "longer"]
    assert arrays["noisy"].shape == (1, 2, 3, 32, 32, 1)  # both were given the same
    assert arrays["predicted"].shape == (2, 1, 2, 6, 3, 32, 32, 1)
    run = runs["longer"]
    latents = open_latents(run.config, "train", _root(runs) / ".latents")
    backbone = shaken(run, 4)
    for time, t in enumerate(TIMES):
        _, x_t = noisy_latents(latents, np.array([7, 40, 11]), get_path("linear"), t, seed=0)
        assert np.abs(pixels(x_t) - arrays["noisy"][0, time]).max() <= 5
        labels = torch.from_numpy(latents.labels[[7, 40, 11]].astype(np.int64))
        v_u, v_c = (backbone(x_t, torch.full((3,), t), y) for y in (torch.full((3,), backbone.null_label), labels))
        for stop, w in enumerate(meta["stops"]):
            wanted = pixels(x_t - t * (v_u + w * (v_c - v_u)))
            assert np.abs(wanted - arrays["predicted"][1, 0, time, stop]).max() <= 3
    without = wb.compare_maps(["plain", "longer", "vae"], [7, 40, 11], [1, 6], TIMES, pictures=False, progress=quiet)
    assert "noisy" not in without.panes[0].arrays and "pictures" not in without.options


def test_pictures_are_decoded_once_and_again_if_damaged(runs, monkeypatch):
    subject = choose("longer", images=[3, 8], layers=[6], times=[0.4], steps=None, data=None)
    grids = subject.grids(quiet, "features", last=True)
    first, _ = noise_pictures(subject, grids, [1.0, 5.0], 1e6, quiet)
    decoded = []
    load = noise.load_run_vae
    monkeypatch.setattr(noise, "load_run_vae", lambda *given: decoded.append(given) or load(*given))
    again, _ = noise_pictures(subject, grids, [1.0, 5.0], 1e6, quiet)
    assert not decoded
    (file,) = grids[0][0].folder.glob("w5.0-*-picture.npy")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    damaged, _ = noise_pictures(subject, grids, [1.0, 5.0], 1e6, quiet)
    assert len(decoded) == 1
    for name in ("noisy", "predicted"):
        assert np.array_equal(first[name], again[name]) and np.array_equal(first[name], damaged[name])


def pixels(z):
    """Of the autoencoder "identity"."""
    images = ((z.detach() + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    return images.numpy().astype(np.int64)


def test_pictures_take_the_room_that_there_is(runs, monkeypatch):
    subject = choose("plain", images=list(range(8)), layers=[6], times=[0.5], steps=None, data=None)
    grids, stops = subject.grids(quiet, "features", last=True), [1.0, 5.0, 0.0]
    whole, kept = noise_pictures(subject, grids, stops, 1e6, quiet)
    assert kept == [0, 1, 5] and whole["noisy"].shape == (1, 1, 8, 32, 32, 1)
    first = np.ascontiguousarray(whole["predicted"][:, :, :, 1])  # w = 1
    room = PACKED * (deflated(whole["noisy"]) + deflated(first))
    one, kept = noise_pictures(subject, grids, stops, 1.001 * room, quiet)
    assert kept == [1] and np.array_equal(one["predicted"][:, :, :, 0], first)
    assert noise_pictures(subject, grids, stops, 0.999 * room, quiet) == ({}, [])
    monkeypatch.setattr(noise, "_SMALLEST", 8)  # below 32, pictures get smaller rather than fewer
    small, kept = noise_pictures(subject, grids, stops, 1.001 * room, quiet)
    assert kept == [0, 1, 5] and small["noisy"].shape == (1, 1, 8, 16, 16, 1)
    blocks = whole["predicted"].reshape(1, 1, 1, 3, 8, 16, 2, 16, 2, 1).mean(axis=(6, 8))
    assert np.abs(blocks - small["predicted"]).max() <= 5


def test_steps_are_in_one_basis_and_a_small_model_shows_all_layers(runs):
    view = wb.maps(runs["plain"], 2, times=[0.5], steps="all", progress=quiet)
    assert view.axes["step"].values == (2, 4) and view.axes["layer"].values == tuple(range(13))
    alone = wb.maps(runs["plain"], 2, [6], [0.5], steps=[2], progress=quiet)
    both = wb.maps(runs["plain"], 2, [6], [0.5], steps=[2, 4], progress=quiet)
    assert not np.allclose(coordinates(alone)[0, 0], coordinates(both)[0, 0], atol=1e-3)  # fitted on other tokens
    tokens = extract(runs["plain"], both.axes["image"].values, [6], [0.5], step=4, root=runs["plain"].folder.parent)
    np.testing.assert_allclose(
        both.panes[0].arrays["total"][0, 1, 0, 0, 0],
        float(tokens.read(6, 0.5).reshape(-1, 32).var(dim=0, unbiased=False).sum()),
        rtol=1e-5,
    )


def test_runs_and_targets_are_turned_onto_the_first(runs):
    view = wb.compare_maps(["plain", runs["longer"], "vae", "layersync"], 3, LAYERS, TIMES, progress=quiet)
    assert view.axes["source"].values == ["plain", "longer", "vae", "layersync"]
    assert view.axes["step"].values == (4,)  # the last that both kept
    plain = wb.maps("plain", 3, LAYERS, TIMES, progress=quiet)
    np.testing.assert_array_equal(coordinates(view)[0], coordinates(plain)[0])
    both = np.stack([coordinates(view), coordinates(view, w=1.0)])[..., :3]
    for source in (1, 2, 3):
        layer = 0 if source == 1 else 1  # a target is turned once, onto the middle layer
        scores, reference = (both[:, s, :, :, layer].reshape(-1, 3) for s in (source, 0))
        cross = (scores - scores.mean(axis=0)).T @ (reference - reference.mean(axis=0))
        np.testing.assert_allclose(cross, cross.T, atol=1e-2 * np.abs(cross).max())
    arrays = view.panes[0].arrays
    assert not arrays["d"][2:].any() and arrays["d"][1].any()
    assert (arrays["u"][2:] == arrays["u"][2:, :, :, :1]).all()
    assert (arrays["u"][2] == arrays["u"][2, :, :1]).all() and not (arrays["u"][3] == arrays["u"][3, :, :1]).all()
    at_once = wb.compare_maps(["plain", "vae", "layersync"], 2, [6], [0.5], progress=quiet)
    for told in (view, at_once):  # of one time too
        first = len(told.axes["source"].values) - 2
        assert told.meta["panes"][0]["still"] == {"t": [first], "w": [first, first + 1]}


def test_points_neighbours_and_frames_are_those_of_mean_tokens(runs, monkeypatch):
    asked = {"images": 40, "layers": [4, 12], "times": [0.5], "stops": (0.0, 10.0), "mapped": 3, "progress": quiet}
    view = wb.embedding("plain", **asked)
    scatter, maps = view.panes
    rows = maps.meta["rows"]
    assert rows == [0, 1, 2] and view.options["method"] == ["pca", "tsne"] and scatter.meta["neighbours"] == 20
    labels = scatter.arrays["labels"]
    assert np.bincount(labels).tolist() == [4] * 10
    images = wb.load_images(runs["plain"].config.data, "train")
    order = [int(row) for row in view.axes["image"].values]
    assert (scatter.arrays["sprite"][:3] == images.batch(order).numpy().transpose(0, 2, 3, 1)).all()
    means = extract(runs["plain"], _rows(images.labels, 40), [4, 12], [0.5], pooling="mean", root=_root(runs))
    for layer, number in enumerate((4, 12)):
        for stop, w in enumerate((0.0, 10.0)):
            guided = guide(means.read(number, 0.5, "null").float(), means.read(number, 0.5, "true").float(), w)
            right = right_by_neighbours(guided, labels, 20)
            assert (scatter.arrays["correct"][0, 0, 0, layer, stop] == right).all()
    assert scatter.arrays["tsne"].shape == (1, 1, 1, 2, 2, 40, 2)

    def never(*given, **options):
        raise AssertionError("a frame was computed again")

    monkeypatch.setattr(embeddings, "embed", never)
    again = wb.embedding("plain", **asked)
    assert again.data == view.data


def _rows(labels, count):
    from workbench.lab.sources import choose_rows

    return choose_rows(labels, count)


def _root(runs):
    return runs["plain"].folder.parent


def test_the_versions_of_leakage_are_those_of_the_features(runs):
    view = wb.leakage("plain", 60, [6], [0.7], scales=(0.0, 5.0), mapped=4, progress=quiet)
    maps, scatter, heat = view.panes
    rows = list(view.axes["image"].values)
    features = extract(runs["plain"], rows, [6], [0.7], labels=tuple(LABELS), root=_root(runs))
    for version, image, w in ((0, None, 9.0), (1, "true", 4.0), (2, "wrong", 4.0), (3, "noise", 4.0)):
        tokens = features.read(6, 0.7) if image is None else features.guided(6, 0.7, w, image)
        shown = coordinates(view, w=w)[version, 0, 0, 0].reshape(-1, 8)
        variance = float(tokens.reshape(-1, 32).double().var(dim=0, unbiased=False).sum())
        uu, ud, dd = maps.arrays["total"][version, 0, 0, 0]
        assert uu + 2 * w * ud + w * w * dd == pytest.approx(variance, rel=1e-4)
        assert shown.var(axis=0).sum() <= variance * 1.01
    means = extract(
        runs["plain"],
        _rows(np.array(wb.load_images(runs["plain"].config.data, "train").labels), 60),
        [6],
        [0.7],
        labels=tuple(LABELS),
        pooling="mean",
        root=_root(runs),
    )
    assert (scatter.arrays["given"] == means.given.numpy()).all() and (
        scatter.arrays["labels"] == means.true.numpy()
    ).all()
    measured = wb.measure_grid(means, scales=(0.0, 5.0), neighbours=15, processes=1)
    cell, versions = (0, 0, heat.meta["scales"].index(5.0)), heat.meta["versions"]
    at = (versions.index("label_only"), *cell)
    value = heat.arrays["values"][heat.meta["measures"].index("lda")][at]
    assert value == np.float32(measured.array("lda", "label_only")[0, 0, 1])
    # One kNN, that of the points, and one choice of the label for both.
    names, knn = view.axes["source"].values, heat.arrays["values"][heat.meta["measures"].index("knn")]
    for name, version, labels in (("label only", "label_only", ""), ("wrong label", "wrong_by_given", "_given")):
        right = scatter.arrays[f"correct{labels}"][(names.index(name), 0, *cell)]
        assert knn[(versions.index(version), *cell)] == np.float32(right.mean())
        state = view.state(source=name, labels="given" if labels else "true")
        assert version_of(heat.meta, state) == version
    assert "version" not in view.options
    assert all("wrong label" in name for name in maps.meta["names"])


def test_samples_have_the_same_noise_in_every_row(runs):
    view = wb.samples(["plain", "longer"], scales=(1.0, 3.0), count=3, progress=quiet)
    images = view.panes[0].arrays["images"]
    assert images.shape == (2, 2, 2, 3, 32, 32, 1)
    from dataclasses import replace

    from workbench.evaluation.generate import generate

    run = runs["longer"]
    settings = replace(run.config.sampling, count=3, guidance_scale=3.0, seed=0)
    assert (images[1, 0, 1] == generate(run, 2, settings).images.numpy().transpose(0, 2, 3, 1)).all()
    assert view.panes[0].meta["names"] == ["0", "1", "2"] and view.axes["step"].values == (2, 4)


VIEWS = {
    "maps": lambda: wb.maps("plain", 2, [1, 6], [0.5], progress=quiet),
    "compare": lambda: wb.compare_maps(["plain", "vae", "sra"], 2, [1, 6], (0.5,), progress=quiet),
    "embedding": lambda: wb.embedding("plain", 40, [6], [0.5], methods=["pca"], progress=quiet),
    "separability": lambda: wb.separability("plain", 60, [6], [0.5], (0.0, 5.0), progress=quiet),
    "explore": lambda: wb.explore("plain", 60, [6], [0.5], (0.0, 5.0), step=2, progress=quiet),
    "samples": lambda: wb.samples("plain", count=2, progress=quiet),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_small_page_and_its_code_makes_it_again(name, runs, tmp_path, monkeypatch):
    view = VIEWS[name]()
    page = view.save_html(tmp_path / "page.html")
    assert page.stat().st_size < 3_000_000
    again = pasted(view.snippet)
    assert again.data == view.data and again.meta == view.meta
    if name in ("maps", "explore"):
        monkeypatch.chdir(tmp_path)
        names = {}
        exec(view.code(w=4.5, basis="refit"), names)
        exec(view.code(w=4.5, basis="refit").split("to a file: ")[1], names)
        (picture,) = tmp_path.glob(f"{view.name}.*")
        assert picture.stat().st_size > 5000


def test_a_run_elsewhere_is_named_by_its_path(runs, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(runs["plain"].folder, folder / "copy")
    shutil.copytree(_root(runs) / ".latents", folder / ".latents")
    for given in (folder / "copy", wb.open_run(folder / "copy")):
        view = wb.maps(given, 1, [6], [0.5], progress=quiet)
        assert f"wb.maps({str(folder / 'copy')!r}" in view.snippet


def test_what_is_refused(runs, tmp_path):
    empty = tmp_path / "empty"
    shutil.copytree(runs["plain"].folder, empty)
    shutil.rmtree(empty / "checkpoints")
    for call, words in (
        (lambda: wb.maps("plain", layers=[13]), r"layers has 13; allowed are 0 \(the patch embedding\) to 12"),
        (lambda: wb.maps("plain", steps=[3]), "no checkpoint of step 3; it has: 2, 4"),
        (lambda: wb.maps(empty), "it has: none"),
        (lambda: wb.maps("told"), "label_dropout 0.*cannot be guided"),
        (lambda: wb.samples("told"), "null class is untrained"),
        (lambda: wb.maps("nobody"), "not a run folder"),
        (lambda: wb.maps("plain", components=2), "allowed are 3"),
        (lambda: wb.maps("plain", images=3000), "allowed are 1 to 160"),
        (lambda: wb.maps("plain", [0], LAYERS, TIMES, page_mb=0.05, progress=quiet), "more than 0.05: ask for fewer"),
        (lambda: wb.compare_maps(["plain"]), "at least one other"),
        (lambda: wb.compare_maps(["plain", "plain"]), "allowed are distinct runs"),
        (lambda: wb.compare_maps(["vae"]), "allowed are one or more runs"),
        (lambda: wb.embedding("plain", 40, methods=["mds"]), "allowed are one or more of pca, tsne, umap"),
        (lambda: wb.embedding("plain", 40, times=np.linspace(0, 1, 40).tolist()), "480 frames"),
        (lambda: wb.embedding("plain", images=20, mapped=[150]), "among the images"),
        (lambda: wb.samples([]), "at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("w", [0.0, 1.0, 12.5])
@pytest.mark.parametrize("several", ["mean", "maximum"])
def test_similarity_is_what_a_few_lines_of_torch_give(runs, w, several):
    similar = wb.similarity(
        [runs["plain"], runs["longer"], "vae"], 40, [3, 9], [7, 40, 11], [0, 6], 0.3, w, several, progress=quiet
    )
    assert (similar.rows, similar.layers, similar.sources) == ((7, 40, 11), (0, 6), ("plain", "longer", "vae"))
    for s, name in enumerate(("plain", "longer")):
        # Of the last step that both have.
        features = extract(runs[name], [7, 40, 11], [0, 6], [0.3], step=4, root=runs[name].folder.parent)
        for number, layer in enumerate((0, 6)):
            f_u, f_c = (features.read(layer, 0.3, label).double() for label in ("null", "true"))
            f_g = torch.nn.functional.normalize(f_u + w * (f_c - f_u), dim=-1)
            each = torch.stack([f_g @ f_g[1, token] for token in (3, 9)])
            wanted = each.mean(dim=0) if several == "mean" else each.max(dim=0).values
            np.testing.assert_allclose(similar.values[s, number], wanted, atol=1e-5)
    tokens = wb.target_tokens("vae", runs["plain"], [7, 40, 11], [0.3], root=runs["plain"].folder.parent)[0.3]
    each = torch.stack([torch.cosine_similarity(tokens, tokens[1, token], dim=-1) for token in (3, 9)])
    wanted = each.mean(dim=0) if several == "mean" else each.max(dim=0).values
    np.testing.assert_allclose(similar.values[2], np.stack([wanted] * 2), atol=1e-5)


def test_the_image_of_the_token_is_shown_whichever_others_are(runs, tmp_path):
    similar = wb.similarity(runs["plain"], 55, 0, 2, [4], progress=quiet)
    assert similar.rows[0] == 55 and len(similar.rows) == 3 and similar.tokens == ((0, 0),)
    assert similar.values[0, 0, 0, 0] == pytest.approx(1)
    assert similar.save(tmp_path / "similar.svg").read_text().startswith("<?xml")
    words = [axis.get_xlabel() for axis in similar.figure().axes]
    assert words[-1] == f"cosine similarity to row 1, column 1 of image 55, {similar.subject.names[0]}"
    assert "layer 4\nt 0.5, w 1" in [axis.get_title(loc="left") for axis in similar.figure().axes]


def test_a_view_has_the_similarities_of_the_run(runs):
    view = wb.compare_maps([runs["plain"], runs["longer"], "vae"], [7, 40, 11], [0, 6], [0.3], progress=quiet)
    arrays = view.panes[0].arrays
    exact = wb.similarity(
        [runs["plain"], runs["longer"], "vae"], 40, [3, 9], [7, 40, 11], [0, 6], 0.3, 5.0, progress=quiet
    )
    for source, layer in np.ndindex(3, 2):
        stored = stored_similarity(arrays, (source, 0, 0, layer), 5.0, [(1, 3), (1, 9)], "mean")
        np.testing.assert_allclose(stored, exact.values[source, layer], atol=0.02)
        assert left_out(arrays, (source, 0, 0, layer), 5.0) < 0.01


def test_attention_is_what_a_few_lines_of_torch_give(runs):
    seen = wb.attention(runs["plain"], 40, 5, [1, 6], 0.3, progress=quiet)
    assert seen.values.shape == (2, 2, 2, 2, 16) and (seen.layers, seen.row, seen.step) == ((1, 6), 40, 4)
    run = runs["plain"]
    latents, backbone = open_latents(run.config, "train", _root(runs) / ".latents"), shaken(run, 4)
    _, x_t = noisy_latents(latents, np.array([40]), get_path("linear"), 0.3, seed=0)
    entered = {}
    for layer in (1, 6):
        backbone.blocks[layer - 1].attn.register_forward_pre_hook(
            lambda module, given, layer=layer: entered.__setitem__(layer, given[0])
        )
    for which, y in enumerate((backbone.null_label, int(latents.labels[40]))):
        backbone(x_t, torch.tensor([0.3]), torch.tensor([y]))
        for number, layer in enumerate((1, 6)):
            q, k, _ = backbone.blocks[layer - 1].attn.qkv(entered[layer])[0].reshape(16, 3, 2, 16).permute(1, 2, 0, 3)
            wanted = (q @ k.transpose(1, 2) / 4).softmax(dim=2).detach().numpy()
            np.testing.assert_allclose(seen.values[which, 0, number], wanted[:, 5], atol=1e-5)
            np.testing.assert_allclose(seen.values[which, 1, number], wanted[:, :, 5], atol=1e-5)
    np.testing.assert_allclose(seen.values[:, 0].sum(axis=-1), 1, atol=1e-5)
    assert np.abs(seen.values[0] - seen.values[1]).max() > 1e-4  # the label matters
    np.testing.assert_allclose(seen.on_itself[:, 0], seen.values[:, 0, ..., 5], atol=1e-5)
    with pytest.raises(ValueError, match="have no masks"):
        _ = seen.on_object
    assert len(seen.figure(head=2).axes) == 2 * 5 + 1
    for head in (0, 3, True):
        with pytest.raises(ValueError, match=f"head is {head}; allowed are 1 to 2, or None for their mean"):
            seen.figure(head=head)


def test_a_view_has_the_attention_of_the_run(runs):
    view = wb.maps(runs["plain"], [7, 40], [0, 2, 6, 12], TIMES, attention=True, progress=quiet)
    pane = view.panes[1]
    assert pane.meta["layers"] == [2, 6, 12] and pane.meta["times"] == TIMES
    exact = wb.attention(runs["plain"], 40, 9, [2, 6, 12], 0.7, progress=quiet)
    for label, layer in np.ndindex(2, 3):
        for d, direction in enumerate(("from", "to")):
            found = attention_at(pane.arrays["weights"], (1, layer), label, None, 1, 9, direction)
            np.testing.assert_allclose(found, exact.mean[label, d, layer], atol=4e-3)
    assert view.figure(pane=1, tokens=[(40, 9)], head="2").axes[0].get_xlabel().startswith("image 2 of ")
    assert pasted(view.snippet).data == view.data


def test_attention_that_is_not_there_is_refused_before_anything_starts(runs, monkeypatch):
    def never(*given, **options):
        raise AssertionError("something long was started")

    monkeypatch.setattr("workbench.features.attention.attention_of", never)
    monkeypatch.setattr(extraction, "opened_latents", never)
    for call, words in (
        (lambda: wb.attention("plain", 0, 16), "token is 16; allowed are 0 to 15"),
        (lambda: wb.attention("plain", 160, 0), "image is 160; allowed are 0 to 159"),
        (lambda: wb.attention("plain", 0, 0, [0, 3]), r"layers are \[0, 3\]; allowed are 1 to 12"),
        (lambda: wb.attention("plain", 0, 0, [13]), "layers has 13; allowed are"),
        (lambda: wb.attention("plain", 0, 0, t=1.5), "t is 1.5; allowed are 0"),
        (lambda: wb.attention("plain", 0, 0, step=3), "no checkpoint of step 3"),
        (lambda: wb.attention("told", 0, 0), "label_dropout 0"),
        (lambda: wb.maps("plain", 2, [0], attention=True), r"layers are \[0\]; attention is in 1 to 12"),
        (lambda: wb.maps("plain", 100, attention=True, page_mb=0.2), "MB for each layer and time"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_backbone_without_attention_is_named(runs, monkeypatch):
    def mixed(run, step=None, weights="ema"):
        backbone = shaken(run, step, weights)
        backbone.blocks[5].attn = torch.nn.Identity()
        return backbone

    monkeypatch.setattr("workbench.features.attention.load_backbone", mixed)
    for call in (lambda: wb.attention("plain", 0, 0, [6]), lambda: wb.maps("plain", 2, [6], attention=True)):
        with pytest.raises(ValueError, match="layer 6 of backbone sit has no attention weights to show"):
            call()
