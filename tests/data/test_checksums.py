"""Checksums are remembered, and no edit of a file goes unseen."""

import logging
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from workbench.config import load_config
from workbench.data import checksums as module
from workbench.data.checksums import Progress, checksums
from workbench.data.images import load_images
from workbench.data.latents import open_latents


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read."""
    names, one = [], module.file_checksum
    monkeypatch.setattr(module, "file_checksum", lambda file: names.append(file.name) or one(file))
    return names


def test_files_are_read_once_until_they_change(tmp_path, read):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    expected = [zlib.crc32(name.encode()) for name in "abc"]
    assert checksums(tmp_path, list("abc")).tolist() == expected and sorted(read) == ["a", "b", "c"]
    assert checksums(tmp_path, list("abc")).tolist() == expected and len(read) == 3
    (tmp_path / "b").write_bytes(b"x")  # at once, and of the same size
    assert checksums(tmp_path, list("abc")).tolist() == [expected[0], zlib.crc32(b"x"), expected[2]]
    assert read[3:] == ["b"]
    (tmp_path / "d").write_bytes(b"d")
    assert checksums(tmp_path, ["a", "c", "d"]).tolist() == [expected[0], expected[2], zlib.crc32(b"d")]
    assert read[4:] == ["d"]


def test_a_time_that_is_set_back_hides_nothing(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"a")
    before, status = checksums(tmp_path, ["a"]), os.stat(file)
    file.write_bytes(b"b")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(file).st_mtime_ns == status.st_mtime_ns
    assert checksums(tmp_path, ["a"]) != before


def test_a_damaged_cache_or_none_only_costs_time(tmp_path, cache, read, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")
    first = checksums(tmp_path, ["a"])
    (kept,) = (cache / "workbench" / "indexes").iterdir()
    for damage in (b"junk", kept.read_bytes()[:-40]):
        kept.write_bytes(damage)
        assert checksums(tmp_path, ["a"]) == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))  # where no folder can be made
    assert checksums(tmp_path, ["a"]) == first and len(read) == 4


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a cannot be read: Is a directory"):
        checksums(tmp_path, ["a"])
    with pytest.raises(ValueError, match="b cannot be read: No such file"):
        checksums(tmp_path, ["b"])


def test_progress_is_said_with_the_time_left(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    now = iter([0.0, 5.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    tell = Progress("files", 100)
    for done in (10, 20, 25, 50):
        tell(done)
    assert caplog.messages == ["files: 20 of 100, about 40 s left", "files: 50 of 100, about 20 s left"]


@pytest.fixture
def config(tmp_path):
    paint(tmp_path, 0)
    options = ["data.name=image-folder", f"data.path={tmp_path / 'set'}", "data.size=16", "vae.name=identity"]
    return load_config("demo/plain", options)


def paint(root, value):
    for name in ("cat", "dog"):
        (root / "set" / name).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            Image.new("RGB", (16, 16), (value, 0, 0)).save(root / "set" / name / f"{k}.bmp")


def test_edited_images_of_one_byte_size_are_encoded_again(tmp_path, config):
    first = open_latents(config, "train", tmp_path / "latents")
    paint(tmp_path, 255)
    second = open_latents(config, "train", tmp_path / "latents")
    assert first.moments(np.arange(6))[:, 0].mean() == -1 and second.moments(np.arange(6))[:, 0].mean() == 1
    paint(tmp_path, 0)  # what is as it was is known again
    assert open_latents(config, "train", tmp_path / "latents").shards.folder == first.shards.folder


def test_classes_are_part_of_the_content(config, tmp_path):
    before = load_images(config.data, "train")
    (tmp_path / "set" / "train").mkdir()
    for name in ("cat", "dog"):
        os.rename(tmp_path / "set" / name, tmp_path / "set" / "train" / name)
    for name in ("dog", "emu"):
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "set" / "test" / name / "0.bmp")
    after = load_images(config.data, "train")
    assert after.classes == ("cat", "dog", "emu") and after.labels.tolist() == before.labels.tolist()
    assert after.content != before.content  # stored latents know their classes
