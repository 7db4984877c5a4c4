"""Masks beside the images of a folder: cropped as the images are, and every mistake named."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workbench.cli.arguments import check_data_path
from workbench.config import DataConfig, fingerprint, load_config
from workbench.data.folder import _read_mask
from workbench.data.images import from_arrays, load_images


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photographs of 60 x 40 pixels, in which a red square is the object and all else is blue; four of each class."""
    for name in ("cat", "dog"):
        for number in range(4):
            picture = np.zeros((40, 60, 3), np.uint8)
            picture[:, :, 2] = 255
            top, left = 4 + 4 * number, 12 + 5 * number
            picture[top : top + 16, left : left + 16] = (255, 0, 0)
            for part, pixels in (("train", picture), ("masks/train", 255 * (picture[:, :, 0] == 255).astype(np.uint8))):
                file = tmp_path / ("photos" if part == "train" else "") / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return tmp_path / "photos"


def config_of(photos: Path, **options) -> DataConfig:
    masks = str(photos.parent / "masks")
    return DataConfig(**{"name": "image-folder", "path": str(photos), "masks": masks, "size": 20, **options})


def test_masks_are_cropped_as_their_images(photos):
    images = load_images(config_of(photos), "train")
    rows = range(8)
    assert images.has_masks
    red = images.batch(rows)[:, 0] >= 128
    masks = images.masks(rows)
    assert masks.shape == (8, 20, 20) and masks.dtype == torch.bool
    # Squares of 8 pixels; every second one begins in the middle of a pixel and covers half of nine columns' outer two.
    assert torch.equal(masks, red) and masks.sum((1, 2)).tolist() == 4 * [8 * 8, 9 * 8]
    assert torch.equal(load_images(config_of(photos, limit=3), "train").masks([2]), masks[[5]])  # of 8 in order


def test_a_zip_file_of_the_folder_has_the_same_masks(photos):
    archive = photos.parent / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(photos.rglob("*.png")):
            packed.write(file, file.relative_to(photos))
    folder, packed = (load_images(config_of(path), "train") for path in (photos, archive))
    assert torch.equal(folder.masks(range(8)), packed.masks(range(8))) and folder.content == packed.content


def test_masks_decide_no_training(photos):
    images = [load_images(config_of(photos, masks=masks), "train") for masks in (None, str(photos.parent / "masks"))]
    assert images[0].content == images[1].content and not images[0].has_masks
    config = load_config("demo/plain", ["data.name=image-folder", f"data.path={photos}"])
    with_masks = replace(config, data=replace(config.data, masks="masks"))
    assert fingerprint(config) == fingerprint(with_masks)


def test_any_kind_of_white_is_the_object(photos):
    file = photos.parent / "masks" / "train" / "cat" / "0.png"
    before = load_images(config_of(photos), "train").masks([0])
    with Image.open(file) as opened:
        grey = opened.copy()
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for other in (grey.convert("1"), grey.convert("P"), grey.convert("RGB"), grey.convert("RGBA"), sixteen):
        other.save(file)
        assert torch.equal(load_images(config_of(photos), "train").masks([0]), before), other.mode


def test_missing_masks_are_named(photos):
    gone = photos.parent / "masks" / "train" / "dog" / "1.png"
    gone.unlink()
    with pytest.raises(ValueError, match=rf"lacks the masks of 1 of 8 images; that of train/dog/1.png would be {gone}"):
        load_images(config_of(photos), "train")
    with pytest.raises(ValueError, match="data.masks .*nowhere is not a folder"):
        load_images(config_of(photos, masks=str(photos / "nowhere")), "train")
    with pytest.raises(ValueError, match=r"data.masks .*train is inside data.path .*, where a folder is a class"):
        load_images(config_of(photos, masks=str(photos / "train")), "train")
    with pytest.raises(ValueError, match="there is no file or folder data.masks /nowhere"):
        check_data_path(load_config("demo/plain", ["data.masks=/nowhere"]))


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_other_sets_do_not_read_masks(name):
    with pytest.raises(ValueError, match=f"data.name={name} does not read data.masks; data.name=image-folder does"):
        load_images(DataConfig(name=name, masks="masks"), "train")


def test_scenes_have_their_own():
    with pytest.raises(ValueError, match="data.name=scenes knows the masks of its objects; leave out data.masks"):
        load_images(DataConfig(name="scenes", size=32, masks="masks"), "train")


def test_unusable_masks_are_named(photos):
    file = photos.parent / "masks" / "train" / "cat" / "0.png"
    images = load_images(config_of(photos), "train")
    whole = file.read_bytes()

    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=rf"cat/0.png {said}"):
            images.masks([0])

    for content in (b"", whole[:60], b"junk"):
        file.write_bytes(content)
        refused(r"is damaged or not a mask \(PNG\)")
    Image.new("L", (60, 40)).save(file, format="JPEG")
    refused(r"is damaged or not a mask \(PNG\)")
    Image.new("L", (20, 20)).save(file)
    refused("is 20x20; its image is 60x40")
    Image.new("L", (60, 40), 1).save(file)
    refused("has grey levels up to 1 only; the object must be white, 128 to 255")
    Image.new("L", (60, 40)).save(file)
    assert not images.masks([0]).any()  # a photograph without the object


def test_without_a_crop_image_and_mask_have_the_size(photos):
    images = load_images(config_of(photos, crop="none"), "train")
    with pytest.raises(ValueError, match="0.png is 60x40; with data.crop=none all must be 20x20"):
        images.masks([0])


@pytest.mark.fuzz
@given(st.data())
def test_a_damaged_mask_is_read_or_named(tmp_path_factory, data):
    buffer = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(buffer, format="PNG")
    whole = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "mask.png"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        mask = _read_mask(file, io.BytesIO(buffer.getvalue()), 8, "adm")
    except ValueError as error:
        assert "mask.png" in str(error)
    else:
        assert mask.shape == (8, 8) and mask.dtype == bool


def test_arrays_may_have_masks():
    pixels, labels = np.zeros((3, 1, 4, 4), np.uint8), np.array([0, 0, 1])
    masks = np.arange(48).reshape(3, 4, 4) % 5 == 0
    images = from_arrays("mine", "train", pixels, labels, "ab", "here", masks)
    assert torch.equal(images.masks([2, 0]), torch.from_numpy(masks[[2, 0]]))
    assert images.content == from_arrays("mine", "train", pixels, labels, "ab", "here").content
    for wrong in (masks[:2], masks.astype(np.uint8), masks[:, :3]):
        with pytest.raises(ValueError, match="train images of mine of shape .* need bool masks n h h; got"):
            from_arrays("mine", "train", pixels, labels, "ab", "here", wrong)
