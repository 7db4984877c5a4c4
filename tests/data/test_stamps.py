"""Cut-outs of a folder on photographs: which are read, splits apart, masks, and mistakes that are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import DataConfig
from workbench.data.images import Images, load_images
from workbench.data.sets import stamps


def disc(side: tuple[int, int], colour: tuple[int, int, int], opacity: int = 255) -> Image.Image:
    """An ellipse that fills its rectangle, with other colours where it is transparent."""
    width, height = side
    y, x = np.ogrid[:height, :width]
    inside = ((x + 0.5) / width * 2 - 1) ** 2 + ((y + 0.5) / height * 2 - 1) ** 2 <= 1
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[:] = np.where(inside[:, :, None], (*colour, opacity), (0, 255, 0, 0))
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    for label, name in enumerate(("balls", "pills", "few")):
        for number in range(12 if name != "few" else 9):
            file = tmp_path / name / ("deep/er" if number % 2 else "") / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            disc((40, 40) if name == "balls" else (90, 30), (255, 20 * number, 255 * label)).save(file)
    for beside in ("symbols/a.png", "balls/cartoon/b.png", "pills/notes.txt", "pills/sound.ogg"):
        (tmp_path / beside).parent.mkdir(exist_ok=True)
        (tmp_path / beside).write_bytes(b"not read")
    return tmp_path


def load(folder: Path, split: str = "train", **options) -> Images:
    return load_images(DataConfig(**{"name": "stamps", "path": str(folder), "size": 64, **options}), split)


def test_cut_outs_become_scenes(folder):
    train, test = load(folder), load(folder, "test")
    assert train.classes == test.classes == ("balls", "pills")
    assert (len(train), len(test)) == (22 * 40, 2 * 40) and np.bincount(train.labels).tolist() == [440, 440]
    assert set(train.labels[:12]) == {0, 1}
    masks, details = train.masks(range(60)), train.details(range(60))
    height, width = np.diff(details["box"].reshape(-1, 2, 2), axis=1)[:, 0].T
    balls = train.labels[:60] == 0
    assert (abs(height - width)[balls] <= 1).all() and (abs(width / height - 3)[~balls] < 0.4).all()
    assert width.min() >= 34 and width.max() <= 54
    filled = masks.sum((1, 2)).numpy() / (height * width)
    assert (abs(filled - np.pi / 4) < 0.09).all()  # an ellipse in its box, of 12 pixels at least
    inside = train.batch(range(60)).permute(0, 2, 3, 1)[masks].float()
    assert (inside[:, 0] > 200).float().mean() > 0.95  # red, and never the green of what is transparent


def test_every_cut_out_is_in_one_split(folder):
    # Names in order are 00, 02, ... 10, deep/er/01, ... 07, ...: the tenth is number 7.
    greens = [
        {round(int(colour[1]) / 20) for colour in load(folder, split).details(range(24))["colour"]}
        for split in ("train", "test")
    ]
    assert greens[1] == {7} and 7 not in greens[0] and len(greens[0]) == 11


def test_faint_cut_outs_are_as_opaque_as_others(folder):
    for file in folder.rglob("*.png"):
        if file.parts[-2] in ("balls", "er"):
            disc((40, 40), (200, 100, 0), opacity=60).save(file)
    images = load(folder)
    row = int(np.flatnonzero(images.labels == 0)[0])
    assert images.details([row])["colour"][0].astype(int) == pytest.approx([200, 100, 0], abs=4)
    assert images.masks([row]).sum() > 400


def test_an_edit_is_noticed(folder):
    before = load(folder)
    again = load(folder)
    assert again.content == before.content and torch.equal(again.batch([3]), before.batch([3]))
    disc((41, 40), (1, 2, 3)).save(folder / "balls" / "00.png")
    assert load(folder).content != before.content


def test_what_cannot_be_read_is_named(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="no cut-outs at .*nowhere: apt-get install tuxpaint-stamps-default, or set"):
        load(folder / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="has no folder with 10 or more transparent PNG files"):
        load(empty)
    with pytest.raises(ValueError, match="data.size is 256; data.name=stamps has scenes of 32 or 64 pixels"):
        load(folder, size=256)
    file = folder / "balls" / "00.png"
    whole = file.read_bytes()
    for content, said in ((b"", "is damaged"), (whole[:100], "is damaged"), (b"junk", "is damaged")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"00.png {said}"):
            load(folder).batch([0])
    disc((40, 40), (1, 2, 3), opacity=0).save(file)
    with pytest.raises(ValueError, match="00.png is transparent everywhere: it shows no object"):
        load(folder).batch([0])


@pytest.mark.skipif(not Path(stamps._INSTALLED).is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_debians_package():
    images = load_images(DataConfig(name="stamps", size=32), "train")
    assert "animals" in images.classes and images.masks(range(len(images) // 40)).any()


@pytest.mark.skipif(Path(stamps._INSTALLED).is_dir(), reason="tuxpaint-stamps-default is installed")
def test_without_debians_package():
    with pytest.raises(ValueError, match="apt-get install tuxpaint-stamps-default"):
        load_images(DataConfig(name="stamps", size=32), "train")
