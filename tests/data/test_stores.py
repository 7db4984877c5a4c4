"""Latents of other programs: the same numbers in the VAE's units, in their order, with their labels; refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from workbench.config import load_config
from workbench.data import latents as module
from workbench.data.images import load_images
from workbench.data.latents import open_latents
from workbench.data.vae import Identity, KLAutoencoder

SHIFT, SCALE = torch.tensor([1.0, -2, 0, 3]).reshape(-1, 1, 1), torch.tensor([0.5, 2, 1, 0.25]).reshape(-1, 1, 1)
COUNT = 7
LABELS = [3, 0, 2, 2, 1, 3, 0]


ARCHITECTURE = {"latent_channels": 4, "in_channels": 3, "block_out_channels": (1, 1, 1)}


def _no_network():
    raise AssertionError("its network is not needed")


@pytest.fixture(autouse=True)
def vae(monkeypatch):
    found = KLAutoencoder("tiny", "abc", ARCHITECTURE, _no_network, SCALE, SHIFT, {})
    monkeypatch.setattr(module, "find_vae", lambda name, pixel_channels, device="cpu": found)
    return found


def configure(kind, path, **options):
    config = load_config("demo/plain", [f"data.name={kind}", f"data.path={path}", "data.size=32"])
    return replace(config, data=replace(config.data, **options))


@pytest.fixture
def raw():
    return np.random.default_rng(0).standard_normal((COUNT, 8, 8, 8), dtype=np.float32)


@pytest.fixture
def repa(tmp_path, raw):
    """REPA's layout; written in another order than that of the names, as files are found."""
    root = tmp_path / "repa"
    latents = [[f"00000/img-mean-std-{i:08d}.npy", LABELS[i]] for i in range(COUNT)]
    images = [[f"00000/img{i:08d}.png", LABELS[i]] for i in range(COUNT)]
    for folder, entries in (("vae-sd", latents), ("images", images)):
        (root / folder / "00000").mkdir(parents=True)
        (root / folder / "dataset.json").write_text(json.dumps({"labels": entries[::-1]}))
    for i in reversed(range(COUNT)):
        np.save(root / "vae-sd" / latents[i][0], raw[i])
        Image.new("RGB", (32, 32), (i, 0, 0)).save(root / "images" / images[i][0])
    return root


@pytest.fixture
def lightningdit(tmp_path, raw):
    root = tmp_path / "lightningdit"
    root.mkdir()
    for name, rows in (("latents_rank00_shard000", range(4)), ("latents_rank01_shard000", range(4, COUNT))):
        columns = {"latents": raw[rows, :4], "latents_flip": raw[rows, 4:], "labels": np.array(LABELS)[rows]}
        save_file({key: np.ascontiguousarray(value) for key, value in columns.items()}, root / f"{name}.safetensors")
    return root


def standard(values):
    return (torch.from_numpy(values) - SHIFT) * SCALE


def test_repas_moments_in_latent_units(tmp_path, repa, raw):
    latents = open_latents(configure("repa-latents", repa), "train", tmp_path)
    assert (len(latents), latents.channels, latents.height) == (COUNT, 4, 8)
    assert latents.labels.tolist() == LABELS and latents.classes == ("0", "1", "2", "3")
    chosen = np.array([5, 0, 6])
    expected = torch.cat([standard(raw[chosen, :4]), torch.from_numpy(raw[chosen, 4:]) * SCALE], dim=1)
    torch.testing.assert_close(latents.moments(chosen), expected)
    assert latents.index["vae"] == {"name": "tiny", "hash": "abc"} and latents.index["pixel_channels"] == 3


def test_repas_images_go_with_the_latents(tmp_path, repa):
    config = configure("repa-latents", repa).data
    images = load_images(config, "train")
    assert images.labels.tolist() == LABELS and images.batch([5, 0])[:, 0, 3, 3].tolist() == [5, 0]
    for limit in (None, 3):
        limited = configure("repa-latents", repa, limit=limit)
        latents = open_latents(limited, "train", tmp_path)
        assert latents.index["images"] == load_images(limited.data, "train").content
    listing = repa / "images" / "dataset.json"
    listing.write_text(listing.read_text().replace("3]", "1]"))
    with pytest.raises(ValueError, match="the labels in .*images and in .*vae-sd differ"):
        load_images(config, "train")


def test_lightningdits_samples_in_latent_units(tmp_path, lightningdit, raw):
    plain = open_latents(configure("lightningdit-latents", lightningdit), "train", tmp_path)
    both = open_latents(configure("lightningdit-latents", lightningdit, flip=True), "train", tmp_path)
    chosen, flipped = np.array([5, 0, 6, 3]), np.array([True, False, False, True])
    assert plain.labels.tolist() == LABELS and (plain.channels, plain.height) == (4, 8)
    moments = plain.moments(chosen)
    torch.testing.assert_close(moments[:, :4], standard(raw[chosen, :4]))
    assert moments.shape == (4, 8, 8, 8) and moments[:, 4:].abs().max() == 0  # one sample: no deviation is known
    expected = np.where(flipped[:, None, None, None], raw[chosen, 4:], raw[chosen, :4])
    torch.testing.assert_close(both.moments(chosen, flipped)[:, :4], standard(expected))
    size = plain.index["shards"][0]["bytes"]
    assert size < COUNT * (4 * 8 * 8 * 4 + 8) + 400  # the deviations take no room


def test_a_limit_keeps_the_same_latents_and_images(tmp_path, repa, raw):
    for kind, ending in (("vae-sd", ".npy"), ("images", ".png")):
        names = sorted(p.relative_to(repa / kind).as_posix() for p in (repa / kind).rglob(f"*{ending}"))
        labels = [[name, place // 3] for place, name in enumerate(names)]  # class by class: 3 + 3 + 1
        (repa / kind / "dataset.json").write_text(json.dumps({"labels": labels}))
    config = configure("repa-latents", repa, limit=4)
    latents, images = open_latents(config, "train", tmp_path), load_images(config.data, "train")
    kept = np.array([0, 1, 3, 5])  # 7 k / 4
    assert images.batch(range(4))[:, 0, 3, 3].tolist() == kept.tolist()
    torch.testing.assert_close(latents.moments(np.arange(4))[:, :4], standard(raw[kept, :4]))
    assert latents.labels.tolist() == images.labels.tolist() == [0, 0, 1, 1]
    assert latents.index["images"] == images.content


def test_limit_and_split_folders(tmp_path, lightningdit, raw):
    few = open_latents(configure("lightningdit-latents", lightningdit, limit=3, flip=True), "train", tmp_path)
    assert len(few) == 3 and few.labels.tolist() == LABELS[:3]
    mirrored = few.moments(np.array([2, 0]), np.array([True, True]))[:, :4]
    torch.testing.assert_close(mirrored, standard(raw[[2, 0], 4:]))
    with pytest.raises(ValueError, match="only has a training split"):
        open_latents(configure("lightningdit-latents", lightningdit), "test", tmp_path)
    root = tmp_path / "divided"
    (root / "val").mkdir(parents=True)
    lightningdit.rename(root / "train")
    for file in (root / "train").glob("*rank01*"):
        file.rename(root / "val" / file.name)
    config = configure("lightningdit-latents", root)
    assert [len(open_latents(config, split, tmp_path)) for split in ("train", "test")] == [4, 3]


@pytest.mark.parametrize("kind", ["repa-latents", "lightningdit-latents"])
def test_class_names(tmp_path, repa, lightningdit, kind):
    root = repa if kind == "repa-latents" else lightningdit
    (root / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    assert open_latents(configure(kind, root), "train", tmp_path).classes == ("ant", "bee", "cat", "dog", "elk")


def test_what_does_not_go_together_is_refused(tmp_path, repa, lightningdit, vae, monkeypatch):
    def refused(kind, root, said, **options):
        with pytest.raises(ValueError, match=said):
            open_latents(configure(kind, root, **options), "train", tmp_path / "latents")

    refused("repa-latents", repa, "has no latents of mirrored images", flip=True)
    refused("repa-latents", repa, "8x8, which VAE 'tiny' decodes to 32x32 pixels; data.size is 256", size=256)
    statistics = {"mean": SHIFT[None] + 0.05, "std": 1 / SCALE[None]}
    torch.save(statistics, lightningdit / "latents_stats.pt")
    assert len(open_latents(configure("lightningdit-latents", lightningdit), "train", tmp_path / "latents")) == COUNT
    torch.save({**statistics, "std": 3 / SCALE[None]}, lightningdit / "latents_stats.pt")
    refused("lightningdit-latents", lightningdit, "latents_stats.pt does not match VAE 'tiny'.* a factor 3 from 1")
    torch.save({"mean": torch.zeros(5)}, lightningdit / "latents_stats.pt")
    refused("lightningdit-latents", lightningdit, "latents_stats.pt must have mean and std of 4 channels")
    (lightningdit / "latents_stats.pt").unlink()
    monkeypatch.setitem(ARCHITECTURE, "latent_channels", 16)
    refused("lightningdit-latents", lightningdit, "has 4 channels, VAE 'tiny' has 16")
    monkeypatch.setattr(module, "find_vae", lambda name, pixel_channels, device: Identity(pixel_channels))
    refused("lightningdit-latents", lightningdit, "has latents of an autoencoder; VAE 'identity' is not one")
    with pytest.raises(ValueError, match="has latents but no images"):
        load_images(configure("lightningdit-latents", lightningdit).data, "train")


def test_damaged_repa_stores_are_named(tmp_path, repa):
    def refused(said):
        with pytest.raises(ValueError, match=said):
            open_latents(configure("repa-latents", repa), "train", tmp_path / "latents")

    folder = repa / "vae-sd" / "00000"
    np.save(folder / "extra.npy", np.zeros(3))
    refused("1 files of .*dataset.json have no label in it, the first is .*extra.npy")
    (folder / "extra.npy").unlink()
    np.save(folder / "img-mean-std-00000002.npy", np.zeros((8, 4, 4), np.float32))
    refused(r"img-mean-std-00000002.npy has shape \(8, 4, 4\), the first file has \(8, 8, 8\)")
    (folder / "img-mean-std-00000002.npy").write_bytes(b"junk")
    refused("img-mean-std-00000002.npy is damaged or not an array")
    (folder / "img-mean-std-00000002.npy").unlink()
    refused("1 files of .*dataset.json are missing, the first is .*img-mean-std-00000002.npy")
    (repa / "vae-sd" / "dataset.json").write_text('{"labels": null}')
    refused("dataset.json is missing, damaged, or has no list of")
    (repa / "vae-sd").rename(repa / "other")
    refused("has no folder vae-sd with REPA's latents")


def test_damaged_lightningdit_stores_are_named(tmp_path, lightningdit, raw):
    def refused(said, **columns):
        if columns:
            save_file({k: np.ascontiguousarray(v) for k, v in columns.items()}, second)
        with pytest.raises(ValueError, match=said):
            open_latents(configure("lightningdit-latents", lightningdit), "train", tmp_path / "latents")

    second = lightningdit / "latents_rank01_shard000.safetensors"
    good = {"latents": raw[:3, :4], "latents_flip": raw[:3, :4], "labels": np.zeros(3, np.int64)}
    refused("rank01_shard000.safetensors lacks latents_flip", **{k: good[k] for k in ("latents", "labels")})
    refused("rank01_shard000.safetensors must hold latents of 3 x", **{**good, "latents": raw[:2, :4]})
    refused("has a label -1", **{**good, "labels": np.array([0, -1, 2])})
    refused("is missing, damaged or not a safetensors file of", **{**good, "latents": raw[:3, :4].astype(np.float64)})
    second.write_bytes(b"junk")
    refused("rank01_shard000.safetensors is missing, damaged or not a safetensors file")
    for file in lightningdit.iterdir():
        file.unlink()
    refused("has no .safetensors files with LightningDiT's latents")
