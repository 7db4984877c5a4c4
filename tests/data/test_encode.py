"""Encoding in several processes: the same latents, resumed after a kill, checked at the end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from workbench.config import load_config, to_yaml
from workbench.data.encode import encode
from workbench.data.latents import open_latents
from workbench.data.workers import device_of

COUNT = 400
DIGITS = load_config("demo/plain", ["data.name=digits", "data.limit=60", "vae.name=identity"])


@pytest.fixture
def many(tmp_path):
    """Images in a folder, each of its own colour: what reads them imports little."""
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    for k in range(COUNT):
        image = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / "train" / "cat" / f"{k:04d}.png")
    options = ["data.name=image-folder", f"data.path={tmp_path / 'set'}", "data.size=8", "data.flip=true"]
    return load_config("demo/plain", [*options, "vae.name=identity"])


def shards_of(folder):
    """When each finished shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/shard-*.json")}


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def test_killed_encoding_goes_on_in_several_processes(tmp_path, many):
    (tmp_path / "config.yaml").write_text(to_yaml(many))
    code = (
        "from pathlib import Path; from workbench.config import load_config; from workbench.data.encode import encode\n"
        f"encode(load_config({str(tmp_path / 'config.yaml')!r}), 'train', Path({str(tmp_path / 'latents')!r}), "
        "processes=2, shard_rows=2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(shards_of(tmp_path / "latents")) >= 3)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    time.sleep(0.3)
    finished = shards_of(tmp_path / "latents")
    assert not list(tmp_path.glob("latents/*/index.json"))
    time.sleep(0.3)
    assert shards_of(tmp_path / "latents") == finished  # its processes ended with it
    calls = []
    latents = encode(
        many, "train", tmp_path / "latents", processes=2, shard_rows=2, progress=lambda *done: calls.append(done)
    )
    after = shards_of(tmp_path / "latents")
    assert len(after) == COUNT // 2 and finished.items() <= after.items()
    assert calls[-1] == (COUNT, COUNT) and all(done <= total == COUNT for done, total in calls)
    kept = {path.suffix for path in latents.shards.folder.iterdir()}
    assert kept == {".safetensors", ".json", ""}  # and the lock: no half-written file
    alone, everything = open_latents(many, "train", tmp_path / "alone"), np.arange(COUNT)
    assert latents.content == alone.content and np.array_equal(latents.labels, alone.labels)
    for flipped in (everything < 0, everything >= 0):
        assert torch.equal(latents.moments(everything, flipped), alone.moments(everything, flipped))


def test_what_was_encoded_is_what_is_opened(tmp_path):
    encoded = encode(DIGITS, "train", tmp_path)
    before = shards_of(tmp_path)
    assert open_latents(DIGITS, "train", tmp_path).shards.folder == encoded.shards.folder
    assert shards_of(tmp_path) == before and len(before) == 1
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        encode(DIGITS, "train", tmp_path, processes=0)


def test_errors_of_a_process_reach_the_caller(tmp_path):
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"junk")
    config = load_config(
        "demo/plain", ["data.name=image-folder", f"data.path={folder.parent}", "data.size=8", "vae.name=identity"]
    )
    with pytest.raises(ValueError, match="0.png is damaged or not an image"):
        encode(config, "train", tmp_path / "latents", processes=2)


def test_processes_share_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [device_of(number) for number in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_of(4) == "cpu"


def test_a_process_that_was_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.data.encode._WORKER", "import os; input(); os.kill(os.getpid(), 9)")
    with pytest.raises(ValueError, match="encoding process . of 2 was killed by signal 9, .* run it again to continue"):
        encode(DIGITS, "train", tmp_path, processes=2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("label", r"has labels 0 to 10; its 10 classes allow 0 to 9"),
        ("order", "the labels in .* differ from those of the images"),
        ("bytes", "does not have the SHA-256"),
        ("content", r"holds 60 images of 00000000, not 60 of"),
    ],
)
def test_finished_latents_are_checked(tmp_path, damage, said, monkeypatch):
    monkeypatch.setattr("workbench.data.shards._VERIFIED_BYTES", 0)  # as for large tables
    folder = encode(DIGITS, "train", tmp_path).shards.folder
    file, index = folder / "shard-00000.safetensors", json.loads((folder / "index.json").read_text())
    columns = load_file(file)
    if damage == "label":
        columns["labels"][3] = 10
    elif damage == "order":
        columns["labels"] = columns["labels"][::-1].copy()
    elif damage == "content":
        index["content"] = "0" * 64
    if damage == "bytes":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:  # what a program that had gone wrong would have written
        save_file(columns, file)
        index["shards"][0] |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        (folder / "index.json").write_text(json.dumps(index))
    if damage != "label":  # opening looks at sizes and labels only
        open_latents(DIGITS, "train", tmp_path)
    with pytest.raises(ValueError, match=said):
        encode(DIGITS, "train", tmp_path)


def test_two_runs_that_want_the_same_latents_take_turns(tmp_path, many):
    (tmp_path / "config.yaml").write_text(to_yaml(many))
    code = (
        "import time; from pathlib import Path\n"
        "from workbench.config import load_config; from workbench.data.encode import encode\n"
        f"root = Path({str(tmp_path / 'latents')!r})\n"
        f"encode(load_config({str(tmp_path / 'config.yaml')!r}), 'train', root, "
        "progress=lambda done, total: (root / 'begun').touch() or time.sleep(0.3))"
    )
    other = subprocess.Popen([sys.executable, "-c", code])
    wait_for((tmp_path / "latents" / "begun").exists)
    calls = []
    encode(many, "train", tmp_path / "latents", progress=lambda *done: calls.append(done))
    assert calls == [] and other.wait() == 0
