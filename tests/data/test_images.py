"""Image sets: shapes, splits, and damaged files that are named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import DataConfig
from workbench.data import images as module
from workbench.data.images import load_images, read_idx, to_float, to_uint8

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_embedded_fashion_mnist():
    config = DataConfig(source="embedded")
    train, test = load_images(config, "train"), load_images(config, "test")
    assert (len(train), len(test)) == (20_000, 10_000)
    assert np.bincount(test.labels).tolist() == [1000] * 10  # as published
    batch = train.batch([0, 19_999])
    assert batch.shape == (2, 1, 32, 32) and batch.dtype == torch.uint8
    assert batch[:, :, :2].sum() == 0 and batch[:, :, :, -2:].sum() == 0 and batch[:, :, 2:30].sum() > 0


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the full set is not installed")
def test_embedded_is_the_start_of_the_full_set():
    full, part = (load_images(DataConfig(source=source), "train") for source in ("full", "embedded"))
    assert len(full) == 60_000
    chosen = [0, 777, 19_999]
    assert torch.equal(full.batch(chosen), part.batch(chosen))
    assert np.array_equal(full.labels[:20_000], part.labels)


def test_damaged_asset_is_named(tmp_path, monkeypatch):
    for name in ("fashion_mnist.npz", "fashion_mnist.sha256"):
        (tmp_path / name).write_bytes((module.ASSETS / name).read_bytes())
    raw = bytearray((tmp_path / "fashion_mnist.npz").read_bytes())
    raw[1000] ^= 1
    (tmp_path / "fashion_mnist.npz").write_bytes(raw)
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match="fashion_mnist.npz is damaged"):
        load_images(DataConfig(source="embedded"), "train")


def test_idx(tmp_path):
    body = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    good = tmp_path / "good"
    good.write_bytes(body)
    assert read_idx(good).tolist() == [[1, 2, 3], [4, 5, 6]]
    for name, content in (
        ("short", body[:-1]),
        ("other", b"\x00\x00\x09\x01" + body),
        ("cut.gz", gzip.compress(body)[:-9]),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_idx(file)


def test_digits_and_limit():
    train, test = (load_images(DataConfig(name="digits"), split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797 and train.size == 32
    few = load_images(DataConfig(name="digits", limit=10), "train")
    assert len(few) == 10 and few.content != train.content
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        load_images(DataConfig(name="digit"), "train")


def test_pixel_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_uint8(torch.tensor([[[[-2.0, 0.0, 2.0]]]])).flatten().tolist() == [0, 128, 255]


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (50, 40), (number, 0, 255)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_image_folder(folder):
    config = DataConfig(name="image-folder", path=str(folder), size=16)
    train, test = load_images(config, "train"), load_images(config, "test")
    assert (len(train), len(test), train.classes) == (18, 2, ("cat", "dog"))
    assert train.batch([0, 17]).shape == (2, 3, 16, 16)
    assert train.batch([3])[0, :, 8, 8].tolist() == [3, 0, 255]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("empty.png", b"", "is empty"), ("notes.txt", b"hello", "not an image file"), ("bad.png", b"junk", "damaged")],
)
def test_bad_files_are_named(folder, name, content, said):
    (folder / "cat" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{said}"):
        images = load_images(DataConfig(name="image-folder", path=str(folder), size=16), "train")
        images.batch(range(len(images)))


def test_sizes_are_named(folder):
    Image.new("RGB", (9, 9)).save(folder / "dog" / "0.png")
    for crop in ("adm", "none"):
        images = load_images(DataConfig(name="image-folder", path=str(folder), size=16, crop=crop), "train")
        with pytest.raises(ValueError, match="0.png is"):
            images.batch(range(len(images)))
