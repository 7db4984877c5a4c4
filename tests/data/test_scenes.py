"""Scenes: the same whatever the batch, the same at both sizes, objects where their masks say, splits apart."""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.config import DataConfig, load_config
from workbench.data import scenes as module
from workbench.data.images import ASSETS, Images, _limited, load_images, token_share
from workbench.data.latents import latent_source
from workbench.data.sets.scenes import _painted
from workbench.data.vae import load_vae
from workbench.training.vae import reconstruction_error

ROWS = [5, 0, 19_999, 300, 301]


@cache
def load(split: str = "train", **options) -> Images:
    return load_images(DataConfig(name="scenes", source="embedded", **{"size": 32, **options}), split)


@pytest.mark.fuzz
@given(st.lists(st.integers(0, 9_999), min_size=1, max_size=5))
def test_a_scene_depends_on_its_number_only(rows):
    images = load("test")
    together, masks, details = images.batch(rows), images.masks(rows), images.details(rows)
    for place, row in enumerate(rows):
        assert torch.equal(together[place], images.batch([row])[0])
        assert torch.equal(masks[place], images.masks([row])[0])
        assert all(np.array_equal(values[place], images.details([row])[name][0]) for name, values in details.items())


def test_a_batch_of_many_is_the_batches_of_few():
    images = load("test")
    many = images.batch(range(300))
    assert (
        many.dtype == torch.uint8 and many.shape == (300, 3, 32, 32) and images.masks(range(300)).shape == (300, 32, 32)
    )
    assert torch.equal(many[250:], images.batch(range(250, 300)))


def test_both_sizes_show_the_same():
    small, large = load(), load(size=64)
    averaged = torch.nn.functional.avg_pool2d(large.batch(ROWS).float(), 2)
    assert (averaged - small.batch(ROWS).float()).abs().max() <= 1  # rounded once and twice
    share = token_share(large.masks(ROWS), 32).reshape(-1, 32, 32)
    assert (share > 0.5)[small.masks(ROWS)].float().mean() > 0.9
    assert small.content != large.content and np.array_equal(small.labels, large.labels)


@pytest.mark.parametrize("size", module.SIZES)
def test_masks_boxes_and_colours(size):
    """The box is the mask's, inside the scene; the object has the hue of its colour, the background has not."""
    images = load(size=size)
    rows = range(200)
    pixels, masks, details = images.batch(rows).float(), images.masks(rows), images.details(rows)
    assert masks.dtype == torch.bool
    for mask, (top, left, bottom, right) in zip(masks, details["box"], strict=True):
        where = mask.nonzero()
        assert where.amin(0).tolist() == [top, left] and where.amax(0).tolist() == [bottom - 1, right - 1]
    assert masks.float().mean((1, 2)).min() > 0.03 and masks.float().mean((1, 2)).max() < 0.6
    shares = pixels / pixels.sum(1, keepdim=True).clamp(min=1)
    colours = torch.from_numpy(details["colour"]).float()
    wanted = (colours / colours.sum(1, keepdim=True))[:, :, None, None]
    apart = (shares - wanted).abs().sum(1)
    on, off = (apart[part].median() for part in (masks, ~masks))
    assert on < 0.03 and off > 0.2
    assert set(details["background"]) == {0, 1}


def test_place_size_and_side_are_spread():
    images = load()
    boxes = images.details(range(2000))["box"] / 32
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (abs(centres.mean(0) - 0.5) < 0.02).all() and (centres.std(0) > 0.09).all()
    edges = np.concatenate([boxes[:, :2], 1 - boxes[:, 2:]], axis=1)
    assert edges.min() >= 0 and (edges < 0.1).mean(0).min() > 0.1
    hues = images.details(range(2000))["colour"].argmax(1)
    assert np.bincount(hues).min() > 560  # 667 of 2000, four standard deviations of 21


def test_the_splits_share_no_background_and_no_garment():
    """The photographs are divided before they are reduced, so no pixel of one part is in the other."""
    for name, middle in module.PHOTOGRAPHS.items():
        photo = module.photograph(module.photograph_folder() / name)
        black = photo.copy()
        black[:, middle:] = 0
        levels = module._levels(photo[:, :middle])
        assert all(np.array_equal(one, two) for one, two in zip(levels, module._levels(black[:, :middle]), strict=True))
        assert all(min(level.shape[1:]) >= 64 for level in (*levels, *module._levels(photo[:, middle:])))
    train, test = load(), load("test")
    assert (len(train), len(test)) == (20_000, 10_000) and train.content != test.content
    assert not torch.equal(train.batch([0]), test.batch([0]))


def test_levels_keep_the_mean_and_flat_areas():
    flat = np.full((427, 432, 3), 77, np.uint8)
    assert all((level == 77).all() for level in module._levels(flat))
    photo = module.photograph(module.photograph_folder() / "china.jpg")
    whole = photo.mean((0, 1))
    assert all(abs(level.mean((1, 2)) - whole).max() < 1 for level in module._levels(photo))


def test_a_cut_out_is_where_it_is_placed():
    """A white square of half the cut-out's side, at three scales: its area and centre are those of the geometry."""
    square = np.zeros((3, 4, 28, 28), np.float32)
    square[:, :, 7:21, 7:21] = 1
    draws = np.full((3, module._OWN), 0.5, np.float32)
    draws[:, module._SIZE] = [0, 0.5, 1]
    alpha = module._placed(square, draws)[:, 3]
    assert alpha.sum((1, 2)) == pytest.approx((np.array([35, 44, 53]) / 2) ** 2, rel=3e-3)
    across = (alpha.sum(1) * (np.arange(64) + 0.5)).sum(1) / alpha.sum((1, 2))
    assert across == pytest.approx([32] * 3, abs=1e-3)


def test_a_garment_is_opaque_but_for_large_holes_and_faint_edges():
    grey = np.zeros((1, 28, 28), np.uint8)
    grey[0, 4:24, 4:24] = 200
    grey[0, 6:9, 6:9] = 0  # 9 pixels: a dark part
    grey[0, 12:20, 12:20] = 0  # 64 pixels: a handle
    grey[0, 4:24, 24] = 20  # a tenth of its neighbours
    painted, colours = _painted(grey, np.array([[0, 1, 0.25]], np.float32))
    opacity = painted[0, 3]
    assert opacity[7, 7] == 1 and opacity[15, 15] == 0 and opacity[10, 10] == 1 and opacity[0, 0] == 0
    assert opacity[10, 24] == pytest.approx(0.15)
    assert colours[0] == pytest.approx([1, 0.1, 0.1], abs=1e-6)  # red of saturation .9
    assert painted[0, 0, 22, 10] > painted[0, 0, 5, 10] > 5 * painted[0, 1, 5, 10]  # lit from below


def test_a_limit_keeps_masks_and_details_with_their_images():
    images, few = load(), load(limit=10)
    assert len(few) == 10 and few.content != images.content and few.has_masks
    assert torch.equal(few.masks([3, 9]), images.masks([3, 9]))
    sorted_by_class = replace(images, labels=np.sort(images.labels))
    every = _limited(sorted_by_class, 4)  # evenly spaced: 0, 5000, 10000, 15000
    assert torch.equal(every.batch([1, 3]), images.batch([5000, 15_000]))
    assert torch.equal(every.masks([1, 3]), images.masks([5000, 15_000]))
    assert np.array_equal(every.details([2])["box"], images.details([10_000])["box"])


def test_share_of_a_token():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 2], masks[0, 2:, :2] = True, True
    assert token_share(masks, 2).tolist() == [[0, 0.25, 1, 0]]
    with pytest.raises(ValueError, match="masks of 4 pixels cannot be divided into 3 x 3 tokens"):
        token_share(masks, 3)


def test_a_split_without_masks_is_named():
    images = load_images(DataConfig(name="digits"), "test")
    assert not images.has_masks and images.details([0]) == {}
    with pytest.raises(ValueError, match="the test split of data.name=digits has no masks"):
        images.masks([0])


@pytest.mark.parametrize("size", module.SIZES)
def test_the_shipped_autoencoder_has_its_recorded_error(size):
    images, vae = load("test", size=size), load_vae(f"kl-f4-scenes-{size}", 3)
    moments = vae.encode(images.batch(range(100)))
    assert moments.shape == (100, 8, size // 4, size // 4) and 0.8 < moments[:, :4].std() < 1.2
    recorded = vae.record["reconstruction"]["psnr"]  # on 2,000 test images
    assert reconstruction_error(vae, images, 100)["psnr"] == pytest.approx(recorded, abs=0.5)
    assert (ASSETS / vae.name / "vae.safetensors").stat().st_size < 4e6
    assert vae.record["training"]["content"] == load(size=size).content  # of the photographs as they are decoded here


@pytest.mark.parametrize("size", [1, 28, 63, 128, 256])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"data.size is {size}; data.name=scenes has scenes of 32 or 64 pixels"):
        load(size=size)


def test_a_missing_or_damaged_photograph_is_named(tmp_path, monkeypatch):
    shutil.copytree(module.photograph_folder(), tmp_path / "images")
    monkeypatch.setattr(module, "photograph_folder", lambda: tmp_path / "images")
    flower = tmp_path / "images" / "flower.jpg"
    whole = flower.read_bytes()
    for content, said in (
        (None, "is missing"),
        (b"", "is damaged"),
        (whole[:9000], "is damaged"),
        (b"GIF89a", "is damaged"),
    ):
        flower.unlink() if content is None else flower.write_bytes(content)
        with pytest.raises(ValueError, match=f"flower.jpg, a background of the scenes, {said}"):
            load_images(DataConfig(name="scenes", source="embedded", size=32), "test")
    flower.write_bytes((tmp_path / "images" / "china.jpg").read_bytes())
    assert load_images(DataConfig(name="scenes", source="embedded", size=32), "test").content != load("test").content


def test_grey_autoencoders_and_paths_are_refused():
    with pytest.raises(ValueError, match="VAE 'kl-f4' is for images of 1 channels; these have 3"):
        latent_source(load_config("demo/plain", ["data.name=scenes", "data.size=32"]), "train")
    with pytest.raises(ValueError, match="data.path /nowhere has nothing for data.name=scenes"):
        load(path="/nowhere")
