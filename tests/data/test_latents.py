"""Encoded sets: what is read is what was encoded, and damage is named."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import load_config
from workbench.data import latents as latents_module
from workbench.data import shards
from workbench.data.images import load_images, to_float
from workbench.data.latents import _add_times, known_folder, latent_source, open_latents
from workbench.data.vae import load_vae, sample_posterior
from workbench.files import write_json
from workbench.runs.models import load_run_vae, load_teacher
from workbench.runs.store import open_run, prepare_run

CONFIG = load_config("demo/plain", ["data.name=digits", "data.limit=25", "vae.name=identity"])


def test_moments_are_those_of_the_images(tmp_path):
    latents = open_latents(CONFIG, "train", tmp_path)
    images = load_images(CONFIG.data, "train")
    moments = latents.moments(torch.tensor([24, 3, 10]).numpy())
    assert torch.equal(moments[:, :1], to_float(images.batch([24, 3, 10])))
    assert moments[:, 1:].abs().max() == 0
    assert latents.labels.tolist() == images.labels.tolist()
    assert open_latents(CONFIG, "train", tmp_path).content == latents.content
    other = replace(CONFIG, data=replace(CONFIG.data, limit=24))
    assert open_latents(other, "train", tmp_path).content != latents.content


def test_shipped_vae_reconstructs_and_has_unit_variance():
    images = load_images(load_config("demo/plain").data, "test").batch(range(200))
    vae = load_vae("kl-f4", 1)
    moments = vae.encode(images)
    z = sample_posterior(moments, torch.zeros(200, 4, 8, 8))
    assert z.shape == (200, 4, 8, 8) and 0.8 < z.std() < 1.2
    error = (vae.decode(z).float() - images.float()).div(255).square().mean()
    assert error < 0.0025  # the record says 0.0016 on 2,000 test images
    with pytest.raises(ValueError, match="is for images of 1 channels; these have 3"):
        load_vae("kl-f4", 3)
    with pytest.raises(ValueError, match="Allowed: kl-f4"):
        load_vae("kl-f8", 1)


def test_content_is_that_of_the_images_and_the_split(tmp_path):
    train, test = (open_latents(CONFIG, split, tmp_path) for split in ("train", "test"))
    assert train.content != test.content and train.shards.folder != test.shards.folder
    assert not torch.equal(train.moments(np.arange(25)), test.moments(np.arange(25)))
    assert (train.channels, train.height, len(train), len(train.classes)) == (1, 32, 25, 10)


def test_encoded_once(tmp_path):
    calls = []
    open_latents(CONFIG, "train", tmp_path, lambda *done: calls.append(done))
    open_latents(CONFIG, "train", tmp_path, lambda *done: calls.append(done))
    assert calls == [(25, 25)]


def test_of_a_set_that_is_not_encoded_a_few_images_are_encoded_alone(tmp_path):
    config = load_config("demo/plain", ["data.limit=300"])
    stored = tmp_path / "stored"
    few = open_latents(config, "train", stored, reads=3)
    chosen = np.array([24, 3, 24])
    alone = few.moments(chosen)
    assert not stored.exists() and torch.equal(alone[0], alone[2])
    assert torch.equal(few.moments(np.array([7, 3]))[1], alone[1])
    whole = open_latents(config, "train", stored, reads=latents_module._FEW + 1)
    assert (stored / whole.content[:16] / "index.json").is_file()
    torch.testing.assert_close(alone, whole.moments(chosen), rtol=1e-4, atol=1e-4)
    assert (few.content, len(few), few.classes) == (whole.content, len(whole), whole.classes)
    assert (few.channels, few.height) == (whole.channels, whole.height) and np.array_equal(few.labels, whole.labels)
    assert open_latents(config, "train", stored, reads=3).shards == whole.shards
    with pytest.raises(ValueError, match="without mirrored images"):
        few.moments(chosen, np.array([True, False, True]))


def with_data(**options):
    return replace(CONFIG, data=replace(CONFIG.data, **options))


def test_mirrored_images_are_stored_beside(tmp_path):
    plain, both = open_latents(CONFIG, "train", tmp_path), open_latents(with_data(flip=True), "train", tmp_path)
    images = load_images(CONFIG.data, "train")
    chosen, flipped = np.array([24, 3, 10]), np.array([True, False, True])
    for mask in (flipped, ~flipped, np.zeros(3, bool), np.ones(3, bool)):
        pixels = images.batch(chosen)
        pixels[mask] = pixels[mask].flip(3)
        assert torch.equal(both.moments(chosen, mask)[:, :1], to_float(pixels))
    assert torch.equal(both.moments(chosen), plain.moments(chosen)) and both.content != plain.content
    with pytest.raises(ValueError, match="was written without mirrored images"):
        plain.moments(chosen, flipped)


def test_half_precision_is_half_the_disk_and_read_in_single(tmp_path):
    single, half = (
        open_latents(CONFIG, "train", tmp_path),
        open_latents(with_data(precision="float16"), "train", tmp_path),
    )
    chosen = np.arange(25)
    assert half.moments(chosen).dtype == torch.float32 and half.content != single.content
    torch.testing.assert_close(half.moments(chosen), single.moments(chosen), rtol=2**-11, atol=0)
    sizes = [latents.index["shards"][0]["bytes"] for latents in (single, half)]
    labels = 8 * 25
    assert abs((sizes[0] - labels) / (sizes[1] - labels) - 2) < 0.01


def test_shards_stay_below_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_BYTES", 10 * 2 * 32 * 32 * 4)  # ten images: mean and deviation, singles
    rows = {"float32": [10, 10, 5], "float16": [20, 5]}
    for precision, expected in rows.items():
        latents = open_latents(with_data(precision=precision), "train", tmp_path)
        assert [shard["rows"] for shard in latents.index["shards"]] == expected
    both = open_latents(with_data(flip=True), "train", tmp_path)
    assert [shard["rows"] for shard in both.index["shards"]] == [5] * 5
    assert torch.equal(both.moments(np.arange(25)), open_latents(CONFIG, "train", tmp_path).moments(np.arange(25)))


def test_numbers_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.data.vae.to_float", lambda images: images / torch.zeros(()))
    with pytest.raises(ValueError, match="VAE 'identity' encodes images 0 to 24 to non-finite numbers"):
        open_latents(CONFIG, "train", tmp_path)
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_latents_of_another_vae_are_refused_for_a_run(tmp_path):
    latents, run = open_latents(CONFIG, "train", tmp_path / ".latents"), prepare_run(CONFIG, tmp_path)
    trained = {
        "vae": {"name": "identity", "hash": "identity"},
        "channels": 1,
        "height": 32,
        "classes": list(latents.classes),
        "pixel_channels": 1,
    }
    student = load_config("demo/guided", [f"objective.teacher={run.folder}", "data.name=digits", "vae.name=identity"])

    def recorded(**changes):
        write_json(run.folder / "provenance.json", {**run.provenance, "latents": {**trained, **changes}})
        return open_run(str(run.folder), tmp_path)

    assert load_run_vae(recorded()).hash == "identity"
    other = {"vae": {"name": "identity", "hash": "another"}}
    with pytest.raises(ValueError, match="VAE 'identity' is not the one that run .* was trained with"):
        load_run_vae(recorded(**other))
    with pytest.raises(ValueError, match="the teacher .* was trained on other latents"):
        load_teacher(student, latents, tmp_path)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_outside_the_classes_are_refused(tmp_path, monkeypatch, wrong):
    images = load_images(CONFIG.data, "train")
    labels = images.labels.copy()
    labels[3] = wrong
    monkeypatch.setattr(latents_module, "load_images", lambda *_: replace(images, labels=labels))
    with pytest.raises(ValueError, match=r"has labels .* allow 0 to 9"):
        open_latents(CONFIG, "train", tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A configuration of eight images in two classes, for which the note of large folders is written."""
    pixels = np.random.default_rng(0).integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    for number in range(8):
        place = tmp_path / "images" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(place / f"{number}.png")
    options = ["data.name=image-folder", f"data.path={tmp_path / 'images'}", "data.size=8", "vae.name=identity"]
    return load_config("demo/plain", ["data.limit=null", *options]), Image.fromarray(pixels[8])


def test_ready_latents_of_a_large_folder_are_opened_without_listing_it(tmp_path, monkeypatch, folder):
    config, another = folder
    monkeypatch.setattr(latents_module, "_MANY", 5)
    written = open_latents(config, "train", tmp_path / "latents")
    with monkeypatch.context() as patch:
        patch.setattr(latents_module, "load_images", lambda *_: pytest.fail("listed"))
        again = open_latents(config, "train", tmp_path / "latents")
        assert again.content == written.content and len(again) == 8
        assert known_folder(config, "test", tmp_path / "latents") is None
    another.save(tmp_path / "images" / "train" / "b" / "9.png")
    more = open_latents(config, "train", tmp_path / "latents")
    assert len(more) == 9 and more.content != written.content
    (tmp_path / "images" / "train" / "b" / "9.png").unlink()
    assert open_latents(config, "train", tmp_path / "latents").content == written.content


def test_small_folders_are_always_listed(tmp_path, folder):
    config, _ = folder
    open_latents(config, "train", tmp_path / "latents")
    assert known_folder(config, "train", tmp_path / "latents") is None


def test_images_are_read_ahead_of_the_autoencoder(tmp_path, folder):
    """The next images are read while the current ones are encoded; the rows are those of one after the other."""
    config, _ = folder
    source = latent_source(config, "train")
    reading, seen = threading.Event(), []

    def read(indices):
        seen.append(("read", int(indices[0])))
        if indices[0] == 3:
            reading.set()
        return source.rows.read(indices)

    def compute(indices, pixels):
        assert indices[0] != 0 or reading.wait(30)  # the first ones are held back until the next ones are read
        seen.append(("compute", int(indices[0])))
        return source.rows.compute(indices, pixels)

    shards.write_shards(tmp_path / "ahead", 8, shards.ReadRows(read, compute), source.described, batch=3)
    shards.write_shards(tmp_path / "in-turn", 8, lambda indices: source.rows(indices), source.described, batch=3)
    files = [tmp_path / name / "shard-00000.safetensors" for name in ("ahead", "in-turn")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [at for what, at in seen if what == "compute"] == [0, 3, 6]


@pytest.mark.parametrize("links", [None, 1, 2])
def test_a_folder_in_a_folder_is_seen_whatever_the_file_system_counts(tmp_path, monkeypatch, links):
    """Some file systems give every folder one link, or two, not one more for each folder in it."""
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    own = Path.stat

    def stat(path, **how):
        status = own(path, **how)
        times = {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_ctime_ns}
        return status if links is None else SimpleNamespace(**times, st_nlink=links, st_mode=status.st_mode)

    monkeypatch.setattr(Path, "stat", stat)
    times: dict = {}
    _add_times(tmp_path, 2, times)
    assert times.keys() == {str(tmp_path / name) for name in (".", "a", "a/inner", "b")}
