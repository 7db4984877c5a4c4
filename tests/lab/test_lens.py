"""The lens: predictions of the clean latent from any layer, raw and tuned, against plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from workbench.backbones.base import TransformerBackbone
from workbench.config import load_config, plugin_class
from workbench.data.latents import open_latents
from workbench.diffusion.randomness import normal
from workbench.features.extract import extract
from workbench.features.lens import fit_affine, read_layers
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import load_backbone
from workbench.runs.store import prepare_run
from workbench.training.loop import fit

QUIET = {"progress": lambda *_: None}
OPTIONS = ("data.name=digits", "data.limit=60", "vae.name=identity", "training.steps=2", "training.batch=4")
OPTIONS += ("backbone.patch=8", "backbone.size=pico")


@pytest.fixture(scope="module", params=["sit", "lightningdit"])
def run(request, tmp_path_factory):
    """A run of 16 tokens with random weights, also in the parts that are initialised with zeros."""
    config = load_config(
        "demo/plain", [*OPTIONS, "backbone.patch=8", "backbone.size=pico", f"backbone.name={request.param}"]
    )
    root = tmp_path_factory.mktemp("runs")
    list(fit(config, root))
    run, generator = prepare_run(config, root), torch.Generator().manual_seed(0)
    weights = run.checkpoint(2).load("ema")
    for name, values in weights.items():
        if not name.startswith("feat_rope"):
            values += 0.05 * torch.randn(values.shape, generator=generator)
    save_checkpoint(run.checkpoint_folder, 2, {"ema": weights}, {})
    return run


def read(run, layers=(0, 6, 12), times=(0.3, 0.8), **options):
    held = range(20, 26)
    return read_layers(run, range(20), held, layers, times, shown=held, root=run.folder.parent, **options)


@torch.no_grad()
def test_the_raw_lens_by_hand(run):
    readings = read(run, tuned=False)
    latents = open_latents(run.config, "train", run.folder.parent / ".latents")
    rows, model = np.arange(20, 26), load_backbone(run)
    z, deviation = latents.moments(rows).chunk(2, dim=1)
    assert not deviation.any()  # of the identity
    eps = normal(0, "feature-noise", rows, (1, 32, 32))
    y = torch.from_numpy(latents.labels[rows].astype(np.int64))
    torch.testing.assert_close(readings.z, z)
    for i, t in enumerate((0.3, 0.8)):
        x_t = (1 - t) * z + t * eps
        times = torch.full((6,), t)
        condition = model.t_embedder(times) + model.y_embedder(y)
        for j, layer in enumerate((0, 6, 12)):
            f = model.features(x_t, times, y, (layer,))[layer]
            patches = model.final_layer(f, condition)  # 4 x 4 tokens of 8 x 8 pixels
            v = patches.unflatten(1, (4, 4)).unflatten(3, (8, 8)).permute(0, 1, 3, 2, 4).reshape(6, 1, 32, 32)
            torch.testing.assert_close(readings.predicted["raw"][i, j], x_t - t * v, atol=1e-5, rtol=1e-5)
            error = (x_t - t * v - z).square().mean()
            assert readings.errors["raw"][i, j] == pytest.approx(float(error), rel=1e-4)
        # At the last layer it is what the model itself predicts.
        whole = x_t - t * model(x_t, times, y)
        torch.testing.assert_close(readings.predicted["raw"][i, 2], whole, atol=1e-5, rtol=1e-5)
    assert readings.fits is None and readings.predicted.keys() == {"raw"}


def test_the_tuned_lens_by_hand(run):
    readings = read(run, label="null")
    grid = extract(run, range(26), [6, 12], [0.8], labels=["null"], root=run.folder.parent)
    x, y = (grid.read(layer, 0.8, "null").double().numpy() for layer in (6, 12))
    inputs = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    solved, *_ = np.linalg.lstsq(inputs[:20].reshape(-1, 49), y[:20].reshape(-1, 48), rcond=None)
    wrong = ((inputs[20:] @ solved - y[20:]) ** 2).mean()
    variance = ((y[20:] - y[20:].mean(axis=(0, 1))) ** 2).mean()
    assert readings.fits[1, 1] == pytest.approx(wrong / variance, rel=1e-6)
    # The last layer is mapped to itself.
    assert readings.fits[:, 2] == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(readings.predicted["tuned"][:, 2], readings.predicted["raw"][:, 2], atol=1e-4, rtol=1e-4)


def test_a_known_affine_map_is_found():
    generator = torch.Generator().manual_seed(0)
    matrix, offset = torch.randn(5, 5, generator=generator), torch.randn(5, generator=generator)
    x = torch.randn(4, 9, 5, generator=generator)
    x[..., 4] = x[..., 0]  # a direction without variance of its own
    y = x @ matrix + offset
    affine = fit_affine(x[:2], y[:2], x[2:], y[2:])
    torch.testing.assert_close(affine(x), y, atol=1e-5, rtol=1e-5)
    assert affine.error < 1e-10
    noise = torch.randn(4, 9, 5, generator=generator)
    assert 0.5 < fit_affine(x[:2], noise[:2], x[2:], noise[2:]).error < 3  # nothing to find
    with pytest.raises(ValueError, match="got 9 tokens of 1 images to fit .* of 5 numbers on; it needs at least 12,"):
        fit_affine(x[:1], y[:1], x, y)


def test_a_velocity_made_in_another_way_is_refused(run, monkeypatch):
    kind = plugin_class("backbone", run.config.backbone.name)
    monkeypatch.setattr(
        kind, "forward_tapped", lambda self, *given: doubled(TransformerBackbone.forward_tapped(self, *given))
    )
    with pytest.raises(
        ValueError, match="makes its velocity in another way .*so there is no lens; it can override read"
    ):
        read(run, tuned=False)


def doubled(tapped):
    return replace(tapped, v=2 * tapped.v)


def test_the_picture_and_the_numbers(run, tmp_path):
    seen = wb.lens(run, layers=[4, 12], times=[0.5, 0.9], images=3, fit=20, held=5, **QUIET)
    assert seen.raw.shape == seen.tuned.shape == (2, 2, 3, 1, 32, 32) and seen.noisy.shape == (2, 3, 1, 32, 32)
    assert seen.clean.shape == (3, 1, 32, 32) and len(set(seen.names)) == 3
    (axis,) = seen.figure(1).axes
    assert [label.get_text() for label in axis.get_yticklabels()][:2] == ["t = 0.5, raw", "t = 0.5, tuned"]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert columns == ["x_t", "layer 4", "layer 12", seen.names[1]] and len(axis.images) == 4 * 4
    assert f"{seen.errors['tuned'][1, 0]:.2g}" in [text.get_text() for text in axis.texts]
    assert f"{seen.errors['raw'][0, 0]:8.3f}" in repr(seen) and "fitted on 20 other images" in repr(seen)
    assert Image.open(seen.save(tmp_path / "lens.png")).width > 300
    raw = wb.lens(run, times=[0.5], tuned=False, images=1, held=1, fit=1, **QUIET)
    assert raw.tuned is None and raw.fits is None and raw.layers == (0, 2, 4, 6, 8, 10, 12)
    assert len(raw.figure().axes[0].images) == 9
    with pytest.raises(ValueError, match="image is 3; allowed are 0 to 2"):
        seen.figure(3)
    with pytest.raises(ValueError, match="allowed endings are .png, .svg, .pdf"):
        seen.save(tmp_path / "lens.jpg")


LENS = {"layers": [4, 12], "times": [0.5, 0.9], "images": 3, "fit": 20, "held": 5, **QUIET}


def test_the_view_has_the_same_pictures_and_errors(run, tmp_path):
    seen, view = wb.lens(run, **LENS), wb.lens_view(run, **LENS)
    (arrays,) = (pane.arrays for pane in view.panes)
    stored = torch.from_numpy(arrays["predicted"]).movedim(-1, -3).float()
    assert stored.shape == (2, 2, 2, 3, 1, 32, 32)
    for kind, exact in zip(stored, (seen.raw, seen.tuned), strict=True):
        assert (kind - exact.float()).abs().max() <= 3  # rounded to fours, and to 255
    np.testing.assert_array_equal(arrays["images"][..., 0], seen.clean[:, 0].numpy())
    np.testing.assert_allclose(arrays["errors"], list(seen.errors.values()), rtol=1e-6)
    for lens, rows in (("raw and tuned", 2), ("tuned", 1)):
        (axis,) = view.figure(t=0.9, image=seen.rows[1], lens=lens).axes
        assert len(axis.images) == rows * 4
        assert [of.get_text() for of in axis.get_xticklabels()] == ["given", "layer 4", "layer 12", seen.names[1]]
        notes = [text.get_text() for text in axis.texts if text.get_text()]
        tuned = seen.errors["tuned"][1]
        assert notes[-2:] == [f"{error:.{2 if error >= 0.1 else 3}f}" for error in tuned]
    assert "wb.lens_view(" in view.code() and "layers=[4, 12]" in view.code()
    raw = wb.lens_view(run, **LENS, tuned=False)
    assert raw.options["lens"] == ["raw"] and "tuned lens was fitted" not in raw.html()
    with pytest.raises(ValueError, match="the page of this view would have .* more than 0.1: ask for fewer of layers"):
        seen.view(page_mb=0.1)


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_shows_what_the_figure_shows(run, show, width, scheme):
    if run.config.backbone.name != "sit":
        pytest.skip("a page of one backbone is enough")
    view = wb.lens_view(run, **LENS)
    shown = show(view, width, scheme, t=0.5)
    lanes = shown.page.locator(".wb-lane:not(.wb-heads)")
    assert [lane.get_attribute("aria-label") for lane in lanes.all()] == ["raw lens", "tuned lens"]
    shown.page.get_by_role("radio", name="tuned", exact=True).focus()
    shown.page.keyboard.press("Space")
    shown.slider("noise t").focus()
    shown.page.keyboard.press("End")
    shown.settled()
    error = view.panes[0].arrays["errors"][1, 1, 0]
    label = lanes.nth(1).locator("canvas").nth(1).get_attribute("aria-label")
    assert label.endswith(f"tuned lens, layer 4, error {error:.{2 if error >= 0.1 else 3}f}, t 0.9")
    assert not lanes.nth(0).is_visible() and lanes.nth(1).is_visible()
    assert shown.page.locator(".wb-note").inner_text().startswith("t 0.9. Errors are mean squared errors")
    assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= width
    with shown.page.expect_download() as saved:
        shown.page.get_by_role("button", name="Save SVG").click()
    assert saved.value.path().read_text().count("<image") == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": [13]}, "layers has 13; allowed are 0 .the patch embedding. to 12"),
        ({"layers": []}, "layers has nothing; allowed"),
        ({"times": [1.5]}, "times has 1.5; allowed are 0 to 1"),
        ({"times": []}, "times has nothing; allowed are 0 to 1"),
        ({"times": ["noise"]}, "times has 'noise'; allowed are 0 to 1"),
        ({"images": 0}, "images is 0; allowed are whole numbers from 1"),
        ({"images": 9, "held": 8}, "images is 9, of 8 held-out ones; allowed are 1 to 8"),
        ({"fit": 100}, "150 images are to be read; allowed are 1 to 60"),
        ({"fit": 2, "held": 8}, "got 32 tokens of 2 images to fit .* needs at least 98, which are 7 images"),
    ],
)
def test_what_is_not_there_is_refused(run, options, said):
    if run.config.backbone.name == "sit":
        with pytest.raises(ValueError, match=said):
            getattr(wb.lens, "__wrapped__", wb.lens)(run, **options, **QUIET)  # without the tests' checks of types
