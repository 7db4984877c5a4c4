"""Folders and zip files as people have them: what is a class, a split, left out or refused, and what is said of it."""

import io
import os
import shutil
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image

from workbench.config import DataConfig
from workbench.data import tree as module
from workbench.data.images import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def image(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (red, 0, 255)).save(buffer, "png")
    return buffer.getvalue()


def members(*names, count=3):
    """``count`` images in each folder, image k of red k; a name with a dot is a file of a few bytes."""
    made = {}
    for name in names:
        if "." in name.rsplit("/", 1)[-1].lstrip("."):
            made[name] = b"some text"
        else:
            made |= {f"{name}/{k}.png": image(k) for k in range(count)}
    return made


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path):
    """Puts members into a folder or a zip file; both must be read alike."""

    made = []

    def put(content):
        made.append(tmp_path / str(len(made)))
        made[-1].mkdir()
        if request.param == "zip":
            with zipfile.ZipFile(made[-1] / "set.zip", "w") as archive:
                for name, data in content.items():
                    archive.writestr(name, data)
            return made[-1] / "set.zip"
        for name, data in content.items():
            file = made[-1] / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return made[-1] / "set"

    return put


def load(path, split="train", name="image-folder", **options):
    return load_images(DataConfig(name=name, path=str(path), size=16, **options), split)


def test_hidden_and_system_names_are_left_out_and_said(place):
    extra = (".ipynb_checkpoints", ".git/objects", "__MACOSX/cat", "@eaDir", "cat/@eaDir", "cat/.thumbnails")
    names = ("cat/.DS_Store", "dog/Thumbs.db", "cat/._0.png", "desktop.ini", "README.txt")
    images = load(place(members("cat", "dog", *extra) | {name: b"some bytes" for name in names}))
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.summary.startswith("6 train images of 2 classes, cat to dog, from ")
    for part in ("hidden folder", ".ipynb_checkpoints", "system folder", "hidden file", "system file", "stray file"):
        assert part in images.summary
    assert "2 hidden files (cat/.DS_Store, cat/._0.png)" in images.summary and "README.txt" in images.summary


def test_one_name_is_one_label_in_every_split(place):
    content = members("train/cat", "train/dog", "train/emu", "val/cat", "val/emu", "val/fox")
    path = place(content)
    train, test = load(path), load(path, "test")
    assert train.classes == test.classes == ("cat", "dog", "emu", "fox")
    assert sorted(set(train.labels.tolist())) == [0, 1, 2] and sorted(set(test.labels.tolist())) == [0, 2, 3]
    assert "no train images of 1 class (fox)" in train.summary and "no test images of 1 class (dog)" in test.summary


def test_splits_that_share_no_class_are_refused(place):
    path = place(members("train/cat", "train/dog", "val/images"))  # Tiny ImageNet's validation images
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"\(images\).*no name in common|no name in common"):
            load(path, split)


@pytest.mark.parametrize("names", ["Train Test", "TRAIN VAL", "training testing", "train valid", "train dev"])
def test_splits_by_other_names(place, names):
    train, test = names.split()
    path = place(members(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog", "annotations"))
    assert (len(load(path)), len(load(path, "test"))) == (6, 6)
    assert "folder beside the splits (annotations)" in load(path).summary


def test_a_class_may_be_called_train(place):
    path = place(members("bus", "car", "train", count=10))
    assert load(path).classes == ("bus", "car", "train") and len(load(path)) == 27
    images = place(members("bus", "car", "train/old", "train/new"))
    with pytest.raises(ValueError, match=r"a folder train, as for the train split, and folders of images .*\(bus, car"):
        load(images)


def test_one_folder_too_high(tmp_path, place):
    content = members("dataset/cat", "dataset/dog", "dataset/emu") | {"README.txt": b"hello"}
    path = place(content)
    if path.suffix == ".zip":  # what encloses all of an archive is taken off
        assert load(path).classes == ("cat", "dog", "emu") and "README.txt" in load(path).summary
    else:
        with pytest.raises(ValueError, match=r"one class, dataset, .* folders cat, dog, emu: is data.path one"):
            load(path)
        assert load(path / "dataset").classes == ("cat", "dog", "emu")


def test_two_folders_too_high(place):
    path = place(members("a/b/cat", "a/b/dog"))
    if path.suffix == ".zip":
        assert load(path).classes == ("cat", "dog")
    else:
        with pytest.raises(ValueError, match="one class, a, .* folders cat, dog: is data.path"):
            load(path)


def test_folders_that_each_hold_the_classes_are_refused(place):
    with pytest.raises(ValueError, match="the classes holdout, part1, .* folders cat, dog: is data.path"):
        load(place(members("part1/cat", "part1/dog", "holdout/cat", "holdout/dog")))


@pytest.mark.parametrize("below", ["images", "session/one"])
def test_images_may_lie_deeper_than_their_class(place, below):
    images = load(place(members(f"cat/{below}", f"dog/{below}", "dog")))
    assert images.classes == ("cat", "dog") and np.bincount(images.labels).tolist() == [3, 6]


def test_an_enclosed_split(place):
    content = members("set/train/cat", "set/train/dog", "set/test/cat", "set/test/dog") | {"set/LICENSE.txt": b"x"}
    path = place(content)
    root = path if path.suffix == ".zip" else path / "set"
    assert load(root).classes == ("cat", "dog") and len(load(root, "test")) == 6
    if path.suffix != ".zip":
        with pytest.raises(ValueError, match="one class, set.* is data.path one folder too high"):
            load(path)


def test_folders_of_numbers_are_labelled_by_text_and_said(place):
    images = load(place(members(*map(str, range(11)))))
    assert images.classes[:3] == ("0", "1", "10") and "folder 10 is 2" in images.summary
    assert "alphabetical order" not in load(place(members("0", "1", "2"))).summary


def test_names_in_any_writing(place):
    images = load(place(members("größe", "猫", "a b", "[x]", "-n")))
    assert images.classes == ("-n", "[x]", "a b", "größe", "猫")
    assert images.batch([0, len(images) - 1]).shape == (2, 3, 16, 16)


def test_accents_in_two_forms_are_one_class(place):
    path = place(members("train/caf\u00e9", "train/dog", "test/cafe\u0301", "test/dog"))
    assert load(path).classes == load(path, "test").classes == ("caf\u00e9", "dog")


def test_a_class_folder_without_images_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set" / "cat" / "0.png").write_bytes(image(0))
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    for path in ("set", "set.zip"):
        with pytest.raises(ValueError, match="dog is a class folder without images"):
            load(tmp_path / path)


def test_images_without_a_class_folder_are_refused(place):
    with pytest.raises(ValueError, match="holds no class folders, only images such as 0.png; each class"):
        load(place({"0.png": image(0), "1.png": image(1)}))


def test_a_folder_and_its_zip_are_one_set(tmp_path):
    content = members("train/cat", "train/dog", "val/cat") | {".git/x.png": image(1), "train/cat/.DS_Store": b"x"}
    for name, data in content.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(f"outer/{name}", data)
    for split in ("train", "test"):
        assert load(tmp_path / "set", split).content == load(tmp_path / "set.zip", split).content


def test_links_are_followed(tmp_path):
    root = tmp_path / "set"
    for name, data in members("set/cat", "set/dog", "other", "emus").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (root / "cat" / "more").symlink_to(tmp_path / "other")
    (root / "emu").symlink_to(tmp_path / "emus")
    (root / "dog" / "9.png").symlink_to(tmp_path / "other" / "1.png")
    images = load(root)
    assert images.classes == ("cat", "dog", "emu") and np.bincount(images.labels).tolist() == [6, 4, 3]
    (root / "dog" / "loop").symlink_to(root)
    with pytest.raises(ValueError, match="a link to one of its parent folders"):
        load(root)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    for name, data in members("cat", "dog").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "cat" / "9.png")
    with pytest.raises(ValueError, match="9.png is neither a file nor a folder"):
        load(tmp_path)
    (tmp_path / "cat" / "9.png").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path / "cat")  # the paths of sockets are short
        server.bind("9.png")
        os.chdir(here)
        with pytest.raises(ValueError, match="9.png is neither a file nor a folder"):
            load(tmp_path)
    os.mkfifo(tmp_path / "set.zip")
    with pytest.raises(ValueError, match="set.zip is not a file"):
        load(tmp_path / "set.zip")


def test_names_that_are_not_utf8(tmp_path):
    for name in (b"cat", b"dog", b"\xe9mu"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        for k in range(3):
            with open(os.fsencode(tmp_path) + b"/" + name + b"/caf\xe9%d.png" % k, "wb") as file:
                file.write(image(k))
    images = load(tmp_path)
    assert images.classes == ("\\xe9mu", "cat", "dog")
    assert len(images) == 9 and images.batch(range(9)).shape == (9, 3, 16, 16)
    with open(os.fsencode(tmp_path) + b"/cat/caf\xe90.png", "wb") as file:
        file.write(b"junk")
    with pytest.raises(ValueError, match=r"cat/caf\\xe90.png is damaged"):
        load(tmp_path).batch(range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"cat\n\ndog\n", "classes.txt has an empty line 2"),
        (b"caf\xe9\ndog\nemu\n", "classes.txt is not UTF-8: line 1 has the byte 0xe9"),
        (b"cat\n", "classes.txt names 1 classes, but there is a label 1"),
    ],
)
def test_bad_class_names(tmp_path, text, said):
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(ValueError, match=said):
        module.class_names([tmp_path], 1)


def test_class_names_with_a_byte_order_mark(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffgröße\r\ndog\r\n\r\n".encode())
    assert module.class_names([tmp_path], 1) == ("größe", "dog")
    with pytest.raises(ValueError, match="has a label 999999999; labels count from 0 to at most 99,999"):
        module.class_names([tmp_path / "elsewhere"], 999_999_999)


def test_a_path_for_a_set_that_needs_none_is_refused(tmp_path):
    for name in ("fashion-mnist", "digits"):
        with pytest.raises(ValueError, match=f"nothing for data.name={name}; .* data.name=image-folder"):
            load(tmp_path, name=name)
    with pytest.raises(ValueError, match="needs data.path"):
        load(" ")
