"""Images in archives: a zip is the folder it was made of, tar samples are read by place, bad members are named."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.config import DataConfig
from workbench.data import archives
from workbench.data.images import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(folder / "weights"))
    return folder


def image(red: int, kind: str = "png", size: tuple[int, int] = (50, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 0, 255)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(image(number))
    return tmp_path / "set"


def pack(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(folder, prefix=""):
    return {f"{prefix}{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def load(path, split="train", name="image-folder", **options):
    return load_images(DataConfig(name=name, path=str(path), size=16, **options), split)


@pytest.mark.parametrize("prefix", ["", "imagenet/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_folder_it_was_made_of(folder, tmp_path, prefix, method):
    path = pack(tmp_path / "set.zip", members_of(folder, prefix), method)
    for split, count in (("train", 18), ("test", 2)):
        ours, theirs = load(path, split), load(folder, split)
        assert len(ours) == count and ours.content == theirs.content and ours.classes == ("cat", "dog")
        assert torch.equal(ours.batch(range(count)), theirs.batch(range(count)))
    assert load(path).batch([3])[0, :, 8, 8].tolist() == [3, 0, 255]


def test_split_folders_in_a_zip(tmp_path):
    members = {"train/cat/0.png": image(1), "train/dog/0.png": image(2), "val/cat/0.png": image(3)}
    path = pack(tmp_path / "set.zip", members)
    train, test = load(path), load(path, "test")
    assert (len(train), len(test), test.batch([0])[0, 0, 0, 0]) == (2, 1, 3)
    only = pack(tmp_path / "only.zip", {name: content for name, content in members.items() if "train" in name})
    assert len(load(only)) == 2
    with pytest.raises(ValueError, match="only.zip has no folder test or val or validation"):
        load(only, "test")


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("cat/cut.png", image(0)[:60], "damaged"),
        ("cat/empty.png", b"", "is empty"),
        ("cat/notes.txt", b"hello", "not an image file"),
    ],
    ids=["cut", "empty", "text"],
)
def test_bad_members_of_a_zip_are_named(tmp_path, member, content, said):
    path = pack(tmp_path / "set.zip", {"cat/0.png": image(0), member: content})
    with pytest.raises(ValueError, match=f"set.zip!{member}.*{said}"):
        load(path).batch(range(2))


def test_damaged_zips_are_named(tmp_path):
    path = pack(tmp_path / "set.zip", {"cat/0.png": image(0), "cat/1.png": image(1)}, zipfile.ZIP_STORED)
    raw = path.read_bytes()
    place = raw.index(image(1))
    path.write_bytes(raw[: place + 50] + bytes([raw[place + 50] ^ 1]) + raw[place + 51 :])
    images = load(path)
    assert images.batch([0]).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="set.zip!cat/1.png is damaged.*CRC"):
        images.batch([1])
    path.write_bytes(raw[:-30])
    with pytest.raises(ValueError, match="set.zip is damaged or not a zip archive"):
        load(path)
    with pytest.raises(ValueError, match="none.zip does not exist"):
        load(tmp_path / "none.zip")
    with pytest.raises(ValueError, match="bare.zip holds no class folders"):
        load(pack(tmp_path / "bare.zip", {"0.png": image(0)}))


def pack_tar(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, kind="png"):
    """Image k is red k, of class k modulo 3."""
    members = {}
    for k in numbers:
        members |= {f"{k:04d}.cls": b"%d\n" % (k % 3), f"{k:04d}.{kind}": image(k, kind), f"{k:04d}.json": b"{}"}
    return members


def web(path, split="train", **options):
    return load(path, split, "web-dataset", **options)


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        pack_tar(tmp_path / "wds" / f"part-{number}.tar", samples(range(20 * number, 20 * number + 20)))
    return tmp_path / "wds"


def test_samples_of_tar_shards(shards):
    train, test = web(shards), web(shards, "test")
    # Class c holds images c, c + 3, ...: every tenth of the class is c + 27 and c + 57.
    assert test.batch(range(6))[:, 0, 8, 8].tolist() == [27, 28, 29, 57, 58, 59]
    rest = [k for k in range(60) if k not in (27, 28, 29, 57, 58, 59)]
    assert train.batch(range(54))[:, 0, 8, 8].tolist() == rest and train.labels.tolist() == [k % 3 for k in rest]
    assert train.batch([53, 0])[:, 0, 8, 8].tolist() == [56, 0]  # at random, from two archives
    assert train.classes == ("0", "1", "2") and train.content != test.content
    assert len(web(shards, limit=5)) == 5


def test_shards_are_split_by_name_or_folder(tmp_path):
    for name, numbers in (("in-train-0.tar", range(5)), ("in-train-1.tar", range(5, 9)), ("in-val-0.tar", [9])):
        pack_tar(tmp_path / "named" / name, samples(numbers))
    train, test = web(tmp_path / "named"), web(tmp_path / "named", "test")
    assert (len(train), len(test)) == (9, 1) and test.batch([0])[0, 0, 0, 0] == 9
    assert web(tmp_path / "named" / "in-train-*.tar").content == train.content
    with pytest.raises(ValueError, match="no .tar file at .*train.* has test or val or validation in its name"):
        web(tmp_path / "named" / "in-train-*.tar", "test")
    for split in ("train", "val"):
        (tmp_path / "split").mkdir(exist_ok=True)
        pack_tar(tmp_path / "split" / split / "0.tar", samples(range(4 if split == "train" else 2)))
    assert (len(web(tmp_path / "split")), len(web(tmp_path / "split", "test"))) == (4, 2)
    with pytest.raises(ValueError, match="there are no .tar files at"):
        web(tmp_path / "nothing-*.tar")


def test_class_names_of_tar_shards(shards):
    (shards / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    assert web(shards).classes == ("ant", "bee", "cat", "dog")
    (shards / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match="classes.txt names 2 classes, but there is a label 2"):
        web(shards)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.cls": b"1"}, r"bad.tar!a.cls has no image"),
        ({"a.jpg": b"x"}, r"bad.tar!a.jpg has no label a.cls"),
        ({"a.jpg": b"", "a.cls": b"1"}, r"bad.tar!a.jpg is empty"),
        ({"a.jpg": b"x", "a.png": b"y", "a.cls": b"1"}, r"bad.tar!a.png is a second image"),
        ({"a.jpg": b"x", "a.cls": b"ant"}, r"bad.tar!a.cls holds 'ant', not a class number"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, r"bad.tar!a.cls holds '-1', not a class number"),
        ({"a.txt": b"x"}, "bad.tar has no samples"),
        ({"a.jpg": b"junk", "a.cls": b"1"}, r"bad.tar!a.jpg is damaged or not an image"),
    ],
    ids=["label only", "image only", "empty", "two images", "word", "negative", "neither", "junk"],
)
def test_bad_samples_are_named(tmp_path, members, said):
    path = pack_tar(tmp_path / "bad.tar", members)
    with pytest.raises(ValueError, match=said):
        web(path).batch([0])


@pytest.mark.parametrize("damage", ["cut", "packed", "junk"])
def test_damaged_tar_files_are_named(shards, damage):
    path = shards / "part-1.tar"
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[: len(raw) // 2 + 77], "packed": gzip.compress(raw), "junk": b"junk" * 300}[damage])
    with pytest.raises(ValueError, match="part-1.tar is damaged or not an uncompressed tar archive"):
        web(shards)


def test_archives_are_indexed_once_until_they_change(shards, cache, monkeypatch):
    scanned, scan = [], archives._scan_tar
    monkeypatch.setattr(archives, "_scan_tar", lambda path: scanned.append(path.name) or scan(path))
    first, again = web(shards), web(shards)
    assert scanned == ["part-0.tar", "part-1.tar", "part-2.tar"] and again.content == first.content
    assert len(list((cache / "workbench" / "indexes").iterdir())) == 3 and not (cache / "weights").exists()
    assert torch.equal(first.batch(range(54)), again.batch(range(54)))
    pack_tar(shards / "part-1.tar", samples(range(20, 39)))
    os.utime(shards / "part-1.tar", ns=(1, 1))
    assert web(shards).content != first.content and scanned[3:] == ["part-1.tar"]


def test_readers_survive_pickling_and_forking(folder, shards, tmp_path):
    zipped = load(pack(tmp_path / "set.zip", members_of(folder)))
    for images in (zipped, web(shards)):
        expected = images.batch(range(10))
        assert torch.equal(pickle.loads(pickle.dumps(images)).batch(range(10)), expected)
        child = os.fork()
        if child == 0:  # reads at the same time as its parent, which has the archive open
            same = all(np.array_equal(images.read(np.arange(10)), expected.numpy()) for _ in range(20))
            os._exit(0 if same else 1)
        assert all(torch.equal(images.batch(range(10)), expected) for _ in range(20))
        assert os.waitpid(child, 0)[1] == 0


def test_zips_that_were_joined_are_refused(tmp_path):
    first, second = (pack(tmp_path / f"{name}.zip", {f"{name}/0.png": image(0)}) for name in ("cat", "dog"))
    joined = tmp_path / "joined.zip"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match="joined.zip has another archive in its first"):
        load(joined)


def test_tar_files_that_were_joined_are_read_one_after_the_other(tmp_path):
    parts = [pack_tar(tmp_path / f"{k}.tar", samples(range(4 * k, 4 * k + 4))) for k in range(3)]
    pack_tar(tmp_path / "set" / "joined.tar", {}).write_bytes(b"".join(part.read_bytes() for part in parts))
    images = web(tmp_path / "set")
    assert images.batch(range(12))[:, 0, 8, 8].tolist() == list(range(12))
    (tmp_path / "set" / "joined.tar").write_bytes(parts[0].read_bytes() + b"rest" * 200)
    with pytest.raises(ValueError, match="joined.tar is damaged or not an uncompressed tar archive"):
        web(tmp_path / "set")


def test_shards_without_samples_are_passed_over_and_said(shards, tmp_path):
    before = web(shards)
    pack_tar(shards / "part-3.tar", {"notes.txt": b"nothing"})
    pack_tar(shards / "part-4.tar", {})
    after = web(shards)
    assert after.content == before.content and "2 shards without samples (part-3.tar)" in after.summary
    (shards / "part-5.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="part-5.tar is damaged .* it is empty"):
        web(shards)
    (shards / "part-5.tar").rename(shards / "part-5.tar.gz")
    with pytest.raises(ValueError, match="part-5.tar.gz is a compressed shard"):
        web(shards)


def test_labels_are_the_same_in_every_split_of_shards(tmp_path):
    pack_tar(tmp_path / "set" / "train-0.tar", samples(range(9)))
    pack_tar(tmp_path / "set" / "val-0.tar", samples([0, 3, 1]))
    train, test = web(tmp_path / "set"), web(tmp_path / "set", "test")
    assert train.classes == test.classes == ("0", "1", "2") and test.labels.tolist() == [0, 0, 1]
    assert "no test images of 1 class" in test.summary


@pytest.mark.parametrize("text", ["100000", "999999999", "9" * 60, "٣", "1.5", "1" + " " * 200])
def test_class_numbers_without_bound_are_refused(tmp_path, text):
    path = pack_tar(tmp_path / "bad.tar", {"a.png": image(0), "a.cls": text.encode()})
    with pytest.raises(ValueError, match="bad.tar!a.cls holds"):
        web(path)


def test_hidden_members_of_shards_are_left_alone(tmp_path):
    hidden = {
        f"{folder}{name}": b"x" for folder in ("", "__MACOSX/") for name in ("._0000.png", "._0000.cls", ".x.jpg")
    }
    plain = web(pack_tar(tmp_path / "plain" / "0.tar", samples(range(3))))
    mixed = web(pack_tar(tmp_path / "mixed" / "0.tar", {**hidden, **samples(range(3))}))
    assert mixed.content == plain.content


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_shards_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for name, data in samples([0]).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("0001.png")
        link.type, link.linkname = kind, "0000.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match="bad.tar!0001.png is not a regular file"):
        web(tmp_path / "bad.tar")


def test_headers_of_tar_files_that_lie_are_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 10**12
    giant = tarfile.TarInfo("x")
    giant.type, giant.size = tarfile.XHDTYPE, 10**10
    for name, header in (("long", info), ("giant", giant)):
        (tmp_path / f"{name}.tar").write_bytes(header.tobuf() + bytes(2048))
        with pytest.raises(ValueError, match=f"{name}.tar is damaged|{name}.tar!a.png has 1,000,000,000,000 bytes"):
            web(tmp_path / f"{name}.tar")
    with pytest.raises(ValueError, match="is not a file|there are no .tar files"):
        web("/dev/zero")


def test_names_in_zips_of_every_program(tmp_path):
    unmarked = "größe/1.png".encode()
    place_holder = "x" * len(unmarked)
    names = ["größe/0.png", place_holder, "dog\\0.png", "./dog/1.png"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0 if "\\" in name else 3
            archive.writestr(info, image(number))
    # Info-ZIP writes the bytes of UTF-8 without saying so.
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes().replace(place_holder.encode(), unmarked))
    images = load(tmp_path / "set.zip")
    assert images.classes == ("dog", "größe") and images.labels.tolist() == [0, 0, 1, 1]
    assert images.batch(range(4))[:, 0, 0, 0].tolist() == [2, 3, 0, 1]


def test_zips_that_lie_are_refused(tmp_path):
    pack(tmp_path / "twice.zip", {"cat/0.png": image(0)})
    with zipfile.ZipFile(tmp_path / "twice.zip", "a") as archive, pytest.warns(UserWarning):
        archive.writestr("cat/0.png", image(1))
    with pytest.raises(ValueError, match="twice.zip!cat/0.png is in the archive twice"):
        load(tmp_path / "twice.zip")
    with pytest.raises(ValueError, match="up.zip!../cat/0.png leads out of the archive"):
        load(pack(tmp_path / "up.zip", {"../cat/0.png": image(0)}))
    path = pack(tmp_path / "giant.zip", {"cat/0.png": image(0)}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\x01\x02") + 24
    raw[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="giant.zip!cat/0.png unpacks to 4,294,967,294 bytes, more than"):
        load(path)
    raw[place - 18 : place - 16] = (99).to_bytes(2, "little")  # the version that unpacking needs
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="giant.zip is damaged or not a zip archive: zip file version 9.9"):
        load(path)
