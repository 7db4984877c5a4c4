"""Shards: what is read is what was written, interruptions lose one shard at most, damage is named."""

import numpy as np
import pytest

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
