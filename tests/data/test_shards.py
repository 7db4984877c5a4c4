"""Shards: what is read is what was written, interruptions lose one shard at most, damage is named."""

import errno
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from workbench.data import shards as module
from workbench.data.shards import open_shards, write_shards

COUNT = 25


def rows(indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"value": np.stack([indices, indices**2], axis=1).astype(np.float32), "label": indices % 7}


def write(folder, **options):
    write_shards(folder, COUNT, rows, {"name": "squares"}, shard_rows=10, batch=4, **options)


def test_what_was_written_is_read(tmp_path):
    write(tmp_path)
    shards = open_shards(tmp_path)
    assert len(shards) == COUNT and shards.index["name"] == "squares"
    assert shards.rows("value", np.array([24, 3, 10])).tolist() == [[24, 576], [3, 9], [10, 100]]
    assert shards.column("label").tolist() == [i % 7 for i in range(COUNT)]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_interrupted_writing_goes_on_after_the_finished_shards(tmp_path):
    asked = []

    def interrupted(indices):
        asked.append(indices.tolist())
        if len(asked) == 5:
            raise KeyboardInterrupt
        return rows(indices)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, COUNT, interrupted, {}, shard_rows=10, batch=4)
    with pytest.raises(ValueError, match="index.json is missing"):
        open_shards(tmp_path)
    write_shards(tmp_path, COUNT, lambda i: asked.append(i.tolist()) or rows(i), {}, shard_rows=10, batch=4)
    assert [a[0] for a in asked] == [0, 4, 8, 10, 14, 10, 14, 18, 20, 24]
    assert open_shards(tmp_path).column("value")[:, 0].tolist() == list(range(COUNT))


def test_shares_together_write_the_whole(tmp_path):
    write(tmp_path, share=(1, 2))
    assert not (tmp_path / "index.json").exists()
    calls = []
    write(tmp_path, share=(0, 2), progress=lambda *done: calls.append(done))
    assert calls[-1] == (15, 15)  # the first and the third shard
    assert open_shards(tmp_path).column("value")[:, 0].tolist() == list(range(COUNT))


def test_finished_shards_are_not_written_again(tmp_path):
    write(tmp_path)
    calls = []
    write(tmp_path, progress=lambda *done: calls.append(done))
    assert calls == [(10, 25), (20, 25), (25, 25)]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named(tmp_path, damage):
    write(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 1
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(raw if damage == "flip" else raw[:-1])
    with pytest.raises(ValueError, match="shard .*shard-00001.safetensors .*delete .* to encode again"):
        open_shards(tmp_path)


def test_damaged_index_is_named(tmp_path):
    write(tmp_path)
    index = tmp_path / "index.json"
    index.write_text(index.read_text()[:-5])
    with pytest.raises(ValueError, match="index.json is missing or damaged; delete"):
        open_shards(tmp_path)


def test_shards_are_ordinary_safetensors_files(tmp_path):
    def mixed(indices):
        half = (indices[:, None] + np.zeros((1, 3))).astype(np.float16)
        return {"a": half, "b": indices, "c": rows(indices)["value"].astype(np.float32)}

    write_shards(tmp_path, COUNT, mixed, {}, shard_rows=10, batch=4)
    loaded = load_file(tmp_path / "shard-00001.safetensors")
    for name, values in mixed(np.arange(10, 20)).items():
        assert loaded[name].dtype == values.dtype and np.array_equal(loaded[name], values)


def test_rows_in_any_order_number_and_type(tmp_path):
    write(tmp_path)
    shards = open_shards(tmp_path)
    assert shards.rows("value", np.array([], dtype=np.int64)).shape == (0, 2)
    assert shards.rows("label", np.array([7, 7, 24, 0])).tolist() == [0, 0, 3, 0]
    again = pickle.loads(pickle.dumps(shards))
    assert again.index == shards.index and again.rows("value", np.array([11])).tolist() == [[11, 121]]


def test_forked_readers_do_not_disturb_each_other(tmp_path):
    write(tmp_path)
    shards, expected = open_shards(tmp_path), rows(np.arange(COUNT))["value"]
    assert np.array_equal(shards.rows("value", np.arange(COUNT)), expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(shards.rows("value", np.arange(COUNT)), expected) for _ in range(200)) else 1)
    assert all(np.array_equal(shards.rows("value", np.arange(COUNT)), expected) for _ in range(200))
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_cut_short_while_it_is_read_is_named(tmp_path):
    write(tmp_path)
    shards = open_shards(tmp_path)
    assert shards.rows("value", np.array([24])).tolist() == [[24, 576]]
    os.truncate(tmp_path / "shard-00002.safetensors", 200)
    with pytest.raises(ValueError, match="shard-00002.safetensors is damaged: it is truncated"):
        shards.rows("value", np.array([24]))


def test_shards_of_another_size_are_not_taken_for_finished(tmp_path):
    def interrupted(indices):
        if indices[0] >= 20:
            raise KeyboardInterrupt
        return rows(indices)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, COUNT, interrupted, {}, shard_rows=10, batch=4)
    write_shards(tmp_path, COUNT, rows, {}, shard_rows=5, batch=4)
    assert open_shards(tmp_path).column("label").tolist() == [i % 7 for i in range(COUNT)]


def test_a_full_disk_is_one_sentence_and_nothing_finished_is_lost(tmp_path, monkeypatch):
    writing = module.write_atomically

    def full(path, content):
        if path.name == "shard-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        writing(path, content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(ValueError, match="the disk of .* is full: 10 of 25 rows are written and kept; free space"):
        write(tmp_path)
    monkeypatch.setattr(module, "write_atomically", writing)
    before = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    write(tmp_path)
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == before
    assert open_shards(tmp_path).column("value")[:, 0].tolist() == list(range(COUNT))
