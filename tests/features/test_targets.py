import pytest
import torch
from einops import rearrange

from workbench.data.images import load_images
from workbench.data.latents import open_latents
from workbench.data.targets import open_targets
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.randomness import normal
from workbench.features import extract as module
from workbench.features.extract import extract
from workbench.features.targets import target_tokens
from workbench.objectives import layersync, sra
from workbench.objectives.base import Context, Inputs

ROWS, TIMES = [5, 0, 17], [0.05, 0.6]


@pytest.fixture
def shaken(backbone, monkeypatch):
    monkeypatch.setattr(module, "load_backbone", lambda *_: backbone)
    return backbone


def test_the_latent_is_cut_into_the_tokens_of_the_run(run, root):
    found = target_tokens("vae", run, ROWS, TIMES, root=root)
    images = load_images(run.config.data, "train").batch(ROWS).float() / 127.5 - 1
    expected = rearrange(images, "n c (h p) (w q) -> n (h w) (p q c)", p=8, q=8)  # without a VAE latents are pixels
    assert list(found) == TIMES
    for tokens in found.values():
        torch.testing.assert_close(tokens, expected)


def test_an_encoders_tokens_are_the_targets_of_repa(run, root):
    from dataclasses import replace

    from workbench.config import Plugin

    found = target_tokens("effnet-lite0", run, ROWS, TIMES, root=root)
    config = replace(run.config, objective=Plugin("repa", {"encoder": "effnet-lite0", "stored": False}))
    latents = open_latents(config, "train", root / ".latents")
    targets = open_targets(config, "train", latents, root, "cpu")["effnet-lite0"]
    torch.testing.assert_close(found[0.6], targets.tokens(torch.tensor(ROWS).numpy()))
    assert found[0.6].shape == (3, 16, 112)


def test_layersync_is_the_deeper_layer_with_the_true_label(run, root, shaken):
    found = target_tokens("layersync", run, ROWS, TIMES, root=root)
    ((_, deep),) = layersync.PLACEMENT[12]["pairs"]
    direct = extract(run, ROWS, [deep], TIMES, labels=["true"], root=root)
    for t in TIMES:
        torch.testing.assert_close(found[t], direct.read(deep, t, "true"))


def test_sra_is_its_objectives_target_at_the_mean_of_its_draw(run, root, shaken):
    found = target_tokens("sra", run, ROWS, TIMES, root=root)
    context = Context(12, shaken.width, 8, 1, 32, "linear", {})
    objective = sra.Objective(context, **sra.PLACEMENT[12])
    images = load_images(run.config.data, "train")
    z, y = images.batch(ROWS).float() / 127.5 - 1, torch.from_numpy(images.labels[ROWS])
    eps = normal(0, "feature-noise", ROWS, z.shape[1:])
    for t in TIMES:
        times = torch.full((3,), t)
        noised = interpolate(get_path("linear"), z, eps, times)
        half = torch.full((3,), 0.5)
        inputs = Inputs(z, eps, times, noised.x_t, noised.v, y, y, half, {}, {}, shaken)
        torch.testing.assert_close(found[t], objective.target(inputs), atol=1e-5, rtol=1e-5)
    assert not torch.equal(found[0.05], found[0.6])


def test_what_is_refused(run, root):
    with pytest.raises(ValueError, match="vae"):
        target_tokens("vea", run, ROWS, TIMES, root=root)
    with pytest.raises(ValueError, match=r"depth 3; there are values for depth 12"):
        from workbench.backbones.base import Size
        from workbench.config import plugin_class

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(plugin_class("backbone", "sit").sizes, "nano", Size(depth=3, width=32, heads=2))
            target_tokens("sra", run, ROWS, TIMES, root=root)
