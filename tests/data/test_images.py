"""Image sets: shapes, splits, and damaged files that are named."""

import gzip
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import DataConfig
from workbench.data import folder as folder_module
from workbench.data import images as module
from workbench.data.folder import adm_center_crop, read_files
from workbench.data.images import load_images, to_float, to_uint8
from workbench.data.sets import fashion_mnist
from workbench.data.sets.fashion_mnist import read_idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_embedded_fashion_mnist():
    config = DataConfig(source="embedded")
    train, test = load_images(config, "train"), load_images(config, "test")
    assert (len(train), len(test)) == (20_000, 10_000)
    assert np.bincount(test.labels).tolist() == [1000] * 10  # as published
    counts = np.bincount(train.labels)
    assert len(counts) == 10 and abs(counts - 2000).max() < 200  # 4.7 standard deviations of a random third
    batch = train.batch([0, 19_999])
    assert batch.shape == (2, 1, 32, 32) and batch.dtype == torch.uint8
    assert batch[:, :, :2].sum() == 0 and batch[:, :, :, -2:].sum() == 0 and batch[:, :, 2:30].sum() > 0


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the full set is not installed")
def test_embedded_is_the_start_of_the_full_set():
    full, part = (load_images(DataConfig(source=source), "train") for source in ("full", "embedded"))
    assert len(full) == 60_000
    chosen = np.arange(20_000)
    assert torch.equal(full.batch(chosen), part.batch(chosen))
    assert np.array_equal(full.labels[:20_000], part.labels)


def test_damaged_asset_is_named(tmp_path, monkeypatch):
    for name in ("fashion_mnist.npz", "fashion_mnist.sha256"):
        (tmp_path / name).write_bytes((module.ASSETS / name).read_bytes())
    raw = bytearray((tmp_path / "fashion_mnist.npz").read_bytes())
    raw[1000] ^= 1
    (tmp_path / "fashion_mnist.npz").write_bytes(raw)
    monkeypatch.setattr(fashion_mnist, "ASSETS", tmp_path)
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
        ("header", body[:7]),
        ("nothing", b""),
        ("cut.gz", gzip.compress(body)[:-9]),
        ("plain.gz", body),
        ("stream.gz", gzip.compress(body)[:10] + b"\xff" * 20),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_idx(file)


def test_digits_and_limit():
    train, test = (load_images(DataConfig(name="digits"), split) for split in ("train", "test"))
    assert (len(train), len(test), train.size, train.channels) == (1438, 359, 32, 1)  # every fifth is held out
    assert set(train.labels) == set(test.labels) == set(range(10))
    image = train.batch([0])[0, 0]
    assert torch.equal(image, image[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1)) and image.max() > 200
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
    [
        ("cut.png", None, "damaged"),
        ("empty.png", b"", "is empty"),
        ("notes.txt", b"hello", "not an image file"),
        ("bad.png", b"junk", "damaged"),
    ],
)
def test_bad_files_are_named(folder, name, content, said):
    half = (folder / "dog" / "0.png").read_bytes()[:60]
    (folder / "cat" / name).write_bytes(half if content is None else content)
    with pytest.raises(ValueError, match=f"{name}.*{said}"):
        images = load_images(DataConfig(name="image-folder", path=str(folder), size=16), "train")
        images.batch(range(len(images)))


def test_a_link_to_nowhere_is_named(folder):
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(ValueError, match="gone.png cannot be read: No such file"):
        load_images(DataConfig(name="image-folder", path=str(folder), size=16), "train")


def test_sizes_are_named(folder):
    Image.new("RGB", (16, 16)).save(folder / "cat" / "0.png")
    Image.new("RGB", (9, 9)).save(folder / "cat" / "1.png")
    images = load_images(DataConfig(name="image-folder", path=str(folder), size=16, crop="none"), "train")
    assert images.batch([0]).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="1.png is 9x9; with data.crop=none all must be 16x16"):
        images.batch([1])


def test_an_image_below_the_size_is_enlarged_as_adm_does_it(folder):
    # 12 x 8 becomes 24 x 16, of which the middle 16 columns stay: 4 to 19, the old columns 2 to 9.
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :, 0], pixels[:, 6:, 1], pixels[:, :, 2] = 20 * np.arange(12), 255, 7
    Image.fromarray(pixels).save(folder / "dog" / "0.png")
    images = load_images(DataConfig(name="image-folder", path=str(folder), size=16), "train")
    red, green, blue = images.batch([9])[0].int()
    expected = 20 * (torch.arange(4, 20) + 0.5) / 2 - 10  # the ramp at the centres of the new columns
    assert (red - expected).abs().max() <= 1 and (blue == 7).all()
    assert (green[:, :6] == 0).all() and (green[:, 10:] == 255).all() and (green[:, 8:] > green[:, :8]).all()


def test_damaged_full_set_is_named(tmp_path):
    body = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784)
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(body)
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    config = DataConfig(source="full", path=str(tmp_path))
    assert load_images(config, "train").labels.tolist() == [7]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(body[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged"):
        load_images(config, "train")


def test_split_folders(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("divided")
    (root / "train").mkdir()
    (folder / "cat").rename(root / "train" / "cat")
    (root / "val" / "cat").mkdir(parents=True)
    (folder / "dog" / "3.png").rename(root / "val" / "cat" / "3.png")
    config = DataConfig(name="image-folder", path=str(root), size=16)
    train, test = load_images(config, "train"), load_images(config, "test")
    assert (len(train), len(test)) == (10, 1) and test.batch([0])[0, 0, 0, 0] == 3
    (root / "val").rename(root / "other")
    with pytest.raises(ValueError, match="has no folder test or val or validation for the test split"):
        load_images(config, "test")


def test_folders_that_hold_nothing(tmp_path):
    def load() -> None:
        load_images(DataConfig(name="image-folder", path=str(tmp_path / "set"), size=16), "train")

    with pytest.raises(ValueError, match="needs data.path"):
        load_images(DataConfig(name="image-folder"), "train")
    with pytest.raises(ValueError, match="set is not a folder"):
        load()
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="set holds no class folders"):
        load()
    (tmp_path / "set" / "cat").mkdir()
    with pytest.raises(ValueError, match="set holds no images for the train split"):
        load()


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (33, 31), (200, 64), (64, 65)])
def test_adm_crop_is_the_middle_square(shape):
    width, height = shape
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(0, 255, width)[None].round()
    ramp[:, :, 1] = np.linspace(0, 255, height)[:, None].round()
    cropped = np.asarray(adm_center_crop(Image.fromarray(ramp), 16)).astype(float)
    assert cropped.shape == (16, 16, 3)
    assert abs(cropped[7:9, 7:9, :2].mean() - 127.5) < 8  # half a pixel of 16 is 8 grey levels
    short = min(shape)
    for axis, length in ((1, width), (0, height)):  # the longer side loses what exceeds the square
        span = np.ptp(cropped[:, :, 1 - axis].mean(axis=1 - axis))
        assert abs(span - 255 * (short / length) * 15 / 16) < 17  # one pixel of 16


def test_a_limit_keeps_every_class_of_a_set_listed_by_class():
    labels = np.repeat([0, 1, 2], [6, 3, 3])
    pixels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    images = module._limited(module.from_arrays("toy", "train", pixels, labels, "abc", "here"), 6)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert images.batch(range(6)).flatten().tolist() == [0, 2, 4, 6, 8, 10]
    mixed = module._limited(module.from_arrays("toy", "train", pixels, labels[::-1].copy(), "abc", "here"), 6)
    assert mixed.batch(range(6)).flatten().tolist() == list(range(6)) and mixed.content != images.content
    rows, content = module.limited_rows(labels, "whole", 12)
    assert rows.tolist() == list(range(12)) and content == "whole"


def test_full_set_with_fewer_labels_than_images(tmp_path):
    for prefix in ("train", "t10k"):
        images = np.zeros((3, 28, 28), np.uint8)
        header = b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = b"\x00\x00\x08\x01" + np.array([2], ">u4").tobytes() + bytes(2)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match="3 train images but 2 labels"):
        load_images(DataConfig(source="full", path=str(tmp_path)), "train")


def test_what_is_not_finite_is_no_grey():
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="image 1 of 3 is not finite"):
        to_uint8(images)
    assert to_uint8(images[:1]).unique().tolist() == [128]


def test_several_files_are_decoded_at_a_time_and_come_in_order(tmp_path, monkeypatch):
    files, inside = [tmp_path / f"{number}.png" for number in range(16)], threading.Barrier(2, timeout=30)
    for number, file in enumerate(files):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(file)
    read = folder_module.read_image

    def reads_beside_another(*given):
        inside.wait()  # until a second thread is here too
        return read(*given)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(folder_module, "read_image", reads_beside_another)
    found = read_files(files, 32, "adm", np.arange(15, -1, -1))
    assert found[:, 0, 0, 0].tolist() == list(range(15, -1, -1))
