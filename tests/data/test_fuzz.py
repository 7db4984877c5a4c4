"""Generated folders, archives and stores: read, or refused in a sentence, and never anything else."""

import io
import json
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workbench.config import DataConfig
from workbench.data.folder import read_image
from workbench.data.images import load_images
from workbench.data.sets.fashion_mnist import read_idx
from workbench.data.shards import ShardFile
from workbench.data.stores import open_store

pytestmark = pytest.mark.fuzz


@pytest.fixture(autouse=True, scope="module")
def cache():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
WORDS = st.sampled_from(
    ["cat", "dog", "train", "test", "val", "Train", ".git", "__MACOSX", "a b", "é", "..", ".", "", "0"]
)
FILES = st.sampled_from(
    ["0.png", "1.jpg", "2.cls", "2.png", "._0.png", "Thumbs.db", "notes.txt", "classes.txt", "x.PNG"]
)
NAMES = st.builds(lambda folders, file: "/".join([*folders, file]), st.lists(WORDS, max_size=4), FILES)
CONTENTS = st.one_of(st.sampled_from(IMAGES), st.binary(max_size=40), st.sampled_from([b"0", b"1\n", b"99999999", b""]))
MEMBERS = st.dictionaries(NAMES, CONTENTS, max_size=8)


def damaged(draw, raw: bytes) -> bytes:
    """A file with a few bytes changed, cut off or added."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw) + draw(st.binary(max_size=20))


def read_or_refuse(path: Path, name: str, split: str = "train") -> None:
    try:
        images = load_images(DataConfig(name=name, path=str(path), size=8), split)
        assert len(images) and images.labels.max() < len(images.classes) and images.summary.isprintable()
        assert images.batch(range(len(images))).shape == (len(images), 3, 8, 8)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


@given(st.data())
def test_images(data):
    raw = damaged(data.draw, data.draw(st.sampled_from(IMAGES)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert read_image(io.BytesIO(raw), "it", 8).shape == (3, 8, 8)
        except ValueError as error:
            assert "it is damaged or not an image" in str(error) or "too long to be scaled" in str(error)


@given(MEMBERS, st.sampled_from(["train", "test"]))
def test_folders(members, split):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            file = Path(folder, "set", *(part for part in name.split("/") if part != ".."))
            if not any(parent.is_file() for parent in file.parents) and not file.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        read_or_refuse(Path(folder, "set"), "image-folder", split)


@given(MEMBERS, st.sampled_from(["train", "test"]), st.data())
def test_zip_files(members, split, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", data.draw(st.sampled_from([0, 8]))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    raw = damaged(data.draw, buffer.getvalue()) if data.draw(st.booleans()) else buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "set.zip").write_bytes(raw)
        read_or_refuse(Path(folder, "set.zip"), "image-folder", split)


@given(MEMBERS, st.sampled_from(["train", "test"]), st.data())
def test_tar_files(members, split, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    raw = damaged(data.draw, buffer.getvalue()) if data.draw(st.booleans()) else buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, data.draw(st.sampled_from(["a.tar", "train-0.tar", "val.tar"]))).write_bytes(raw)
        read_or_refuse(Path(folder), "web-dataset", split)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.text(max_size=5))
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))


@given(st.one_of(TREES, st.fixed_dictionaries({"labels": TREES})), st.integers(0, 3))
def test_listings_of_repa_stores(tree, files):
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder, "vae-sd")
        latents.mkdir()
        for number in range(files):
            np.save(latents / f"{number}.npy", np.zeros((8, 2, 2), np.float32))
        (latents / "dataset.json").write_text(json.dumps(tree))
        with pytest.raises(ValueError):
            open_store(DataConfig(name="repa-latents", path=folder, size=16), "train")


@given(st.data())
def test_arrays_of_repa_stores(data):
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["f4", "f2", "c8", "i8", "O", "U3", "V2", "?"]))
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=4)))
    np.save(buffer, np.zeros(shape, kind), allow_pickle=True)
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder, "vae-sd")
        latents.mkdir()
        (latents / "0.npy").write_bytes(damaged(data.draw, buffer.getvalue()))
        (latents / "dataset.json").write_text('{"labels": [["0.npy", 1]]}')
        try:
            store = open_store(DataConfig(name="repa-latents", path=folder, size=16), "train")
            assert store.read(np.array([0]), False).shape[1:] == store.shape
        except ValueError as error:
            assert "0.npy" in str(error)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "I64", "BF16"]), TREES),
        "shape": st.one_of(st.lists(st.integers(-2, 2**63), max_size=4), TREES),
        "data_offsets": st.one_of(st.lists(st.integers(-9, 2**63), min_size=2, max_size=2), TREES),
    }
)


@given(st.one_of(TREES, st.dictionaries(st.sampled_from(["latents", "labels", "x"]), ENTRIES)), st.data())
def test_safetensors_headers(header, data):
    text = json.dumps(header).encode()
    length = data.draw(st.one_of(st.just(len(text)), st.integers(0, 2**64 - 1)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.safetensors")
        file.write_bytes(struct.pack("<Q", length) + text + bytes(64))
        try:
            opened = ShardFile(file)
            for name in opened.shapes:
                assert opened.column(name).shape == opened.shapes[name]
        except ValueError as error:
            assert "a.safetensors is missing, damaged or not a safetensors file" in str(error)


@given(st.data())
def test_idx_files(data):
    raw = damaged(data.draw, bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, data.draw(st.sampled_from(["a", "a.gz"])))
        file.write_bytes(raw)
        try:
            assert read_idx(file).ndim <= 255
        except ValueError as error:
            assert str(file) in str(error)
