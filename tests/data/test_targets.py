"""Target tokens: stored and computed ones agree, belong to the latents' images, and are encoded once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.config import Plugin, load_config
from workbench.data import shards
from workbench.data import targets as targets_module
from workbench.data.encoders import Encoder, load_encoder
from workbench.data.images import load_images
from workbench.data.latents import open_latents
from workbench.data.targets import ComputedTargets, StoredTargets, Targets, open_targets

# 25 images of 32 pixels that are their own latents; patches of 8 make a grid of 4 x 4.
OPTIONS = ["data.name=digits", "data.limit=25", "vae.name=identity", "backbone.patch=8", "objective.name=repa"]
INDICES = np.array([24, 3, 10])
WIDTHS = {"effnet-lite0": 3, "dinov2-s": 5}


def configure(*more: str):
    return load_config("demo/plain", [*OPTIONS, *more])


def tiny(name: str) -> Encoder:
    """Patches of 4 x 4 pixels times a random matrix, seeded by the name."""
    width = WIDTHS[name]
    with torch.random.fork_rng():
        torch.manual_seed(width)
        network = torch.nn.Conv2d(3, width, 4, stride=4).requires_grad_(False)
    read = lambda model, pixels: model(pixels).flatten(2).transpose(1, 2)  # noqa: E731
    return Encoder(name, f"hash of {name}", width, 4, (0.5,) * 3, (0.5,) * 3, network, read)


@pytest.fixture
def encoders(monkeypatch):
    monkeypatch.setattr(targets_module, "load_encoder", lambda name, device: tiny(name))


def open_all(tmp_path, *more: str, split: str = "train", progress=None) -> dict[str, Targets]:
    config = configure(*more)
    latents = open_latents(config, split, tmp_path / "latents")
    return open_targets(config, split, latents, tmp_path / "targets", "cpu", progress)


def test_stored_and_computed_are_the_encoders_tokens_of_those_images(tmp_path):
    stored = open_all(tmp_path)["effnet-lite0"]
    computed = open_all(tmp_path, "objective.stored=false")["effnet-lite0"]
    assert isinstance(stored, StoredTargets) and isinstance(computed, ComputedTargets)
    assert stored.width == computed.width == 112 and len(stored.shards) == 25
    images = load_images(configure().data, "train").batch(INDICES)
    expected = load_encoder("effnet-lite0").tokens(images, 4)
    assert torch.allclose(computed.tokens(INDICES), expected, atol=1e-4)
    tokens = stored.tokens(INDICES)
    assert tokens.dtype == torch.float32 and tokens.shape == (3, 16, 112)
    # Half precision rounds by one part in 2,048 at most; the rest is for sums in another order.
    assert torch.allclose(tokens, expected, rtol=2**-11, atol=1e-4)
    assert not torch.equal(tokens, expected)


def test_encoded_once(tmp_path, encoders):
    calls = []
    first = open_all(tmp_path, progress=lambda *done: calls.append(done))["effnet-lite0"]
    assert calls == [(25, 25)]
    again = open_all(tmp_path, progress=lambda *done: calls.append(done))["effnet-lite0"]
    assert calls == [(25, 25)] and again.shards.folder == first.shards.folder
    described = first.shards.index
    assert described["encoder"] == {"name": "effnet-lite0", "hash": "hash of effnet-lite0"}
    assert described["images"] == load_images(configure().data, "train").content


def test_interrupted_encoding_goes_on(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 10 * 16 * 3 * 2)  # ten images of 16 tokens of 3 halves

    def interrupt(done: int, _: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_all(tmp_path, progress=interrupt)
    (finished,) = (tmp_path / "targets").rglob("*.safetensors")
    written = finished.stat().st_mtime_ns
    stored = open_all(tmp_path)["effnet-lite0"]
    assert [shard["rows"] for shard in stored.shards.index["shards"]] == [10, 10, 5]
    assert finished.stat().st_mtime_ns == written
    computed = open_all(tmp_path, "objective.stored=false")["effnet-lite0"]
    assert torch.equal(stored.tokens(np.arange(25)), computed.tokens(np.arange(25)).half().float())


def test_several_encoders_have_tables_of_their_own(tmp_path, encoders):
    found = open_all(tmp_path, "objective.encoder=dinov2-s, effnet-lite0")
    assert {name: targets.width for name, targets in found.items()} == {"dinov2-s": 5, "effnet-lite0": 3}
    pixels = load_images(configure().data, "train").batch(INDICES).float().expand(-1, 3, -1, -1) / 127.5 - 1
    for name, targets in found.items():
        patches = tiny(name).network(F.interpolate(pixels, size=16, mode="bicubic"))
        expected = patches.reshape(3, WIDTHS[name], 16).transpose(1, 2)
        assert torch.allclose(targets.tokens(INDICES), expected, rtol=2**-11, atol=1e-4)


@pytest.mark.parametrize("stored", ["true", "false"])
def test_mirrored_tokens_are_those_of_the_mirrored_images(tmp_path, encoders, stored):
    (targets,) = open_all(tmp_path, "data.flip=true", f"objective.stored={stored}").values()
    images = load_images(configure().data, "train").batch(INDICES)
    images[1] = torch.from_numpy(images[1].numpy()[:, :, ::-1].copy())
    expected = tiny("effnet-lite0").tokens(images, 4)
    tokens = targets.tokens(INDICES, np.array([False, True, False]))
    assert torch.allclose(tokens, expected, rtol=2**-11, atol=1e-4)
    assert not torch.allclose(tokens[1], targets.tokens(INDICES)[1], atol=0.1)
    assert torch.equal(targets.tokens(INDICES, np.zeros(3, bool)), targets.tokens(INDICES))


def test_mirrored_tokens_that_were_not_stored_are_refused(tmp_path, encoders):
    (targets,) = open_all(tmp_path).values()
    with pytest.raises(ValueError, match="without mirrored images"):
        targets.tokens(INDICES, np.zeros(3, bool))


def test_content_changes_with_whatever_the_tokens_depend_on(tmp_path, encoders, monkeypatch):
    def folder(*more: str, split: str = "train") -> str:
        (targets,) = open_all(tmp_path, *more, split=split).values()
        assert targets.shards.folder.name == targets.shards.index["content"][:16]
        return targets.shards.folder.name

    folders = [
        folder(),
        folder("objective.encoder=dinov2-s"),
        folder("backbone.patch=16"),
        folder("data.limit=24"),
        folder("data.flip=true"),
        folder(split="test"),
    ]
    assert len(set(folders)) == 6
    assert folder("training.seed=1", "objective.weight=0.1") == folders[0]
    changed = replace(tiny("effnet-lite0"), hash="other weights")
    monkeypatch.setattr(targets_module, "load_encoder", lambda name, device: changed)
    assert folder() not in folders


@pytest.mark.parametrize("stored", ["true", "false"])
def test_latents_of_other_images_are_refused(tmp_path, encoders, stored):
    latents = open_latents(configure("data.limit=24"), "train", tmp_path)
    config = configure(f"objective.stored={stored}")
    with pytest.raises(ValueError, match="do not belong to the train images"):
        open_targets(config, "train", latents, tmp_path, "cpu")
    assert open_targets(replace(config, data=configure("data.limit=24").data), "train", latents, tmp_path, "cpu")


def test_an_objective_needs_no_option_but_encoder(tmp_path, encoders):
    config = replace(configure(), objective=Plugin("another", {"encoder": "dinov2-s"}))
    latents = open_latents(config, "train", tmp_path / "latents")
    (targets,) = open_targets(config, "train", latents, tmp_path / "targets", "cpu").values()
    assert isinstance(targets, StoredTargets) and targets.width == 5


def test_an_objective_without_encoder_has_no_targets(tmp_path, monkeypatch):
    monkeypatch.setattr(targets_module, "load_images", None)  # nor are the images read a second time
    assert open_all(tmp_path, "objective.name=denoise") == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("effnet-lite0,", "is not known.* Allowed: effnet-lite0, dinov2-s"),
        ("effnet", "is not known.* Allowed: effnet-lite0, dinov2-s"),
        ("", "objective.encoder is empty"),
    ],
)
def test_unknown_encoders_are_refused(tmp_path, name, said):
    with pytest.raises(ValueError, match=said):
        open_all(tmp_path, f"objective.encoder='{name}'")
    assert not (tmp_path / "targets").exists()


def test_a_patch_that_does_not_divide_the_latents_is_refused_before_encoding(tmp_path, encoders):
    with pytest.raises(ValueError, match="patch 5 does not divide the latent height 32"):
        open_all(tmp_path, "backbone.patch=5")
    assert not (tmp_path / "targets").exists()


def test_computed_targets_are_in_the_precision_of_the_training(tmp_path, encoders):
    computed = open_all(tmp_path, "objective.stored=false", "objective.encoder=dinov2-s")["dinov2-s"]
    exact, half = computed.tokens(INDICES), replace(computed, precision="bf16").tokens(INDICES)
    assert half.dtype == exact.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02)
