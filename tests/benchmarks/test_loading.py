"""The loader benchmark runs, says what it measured, and leaves nothing behind."""

import math

import pytest
from loading import bench_loading


def test_bench_loading(tmp_path):
    result = bench_loading(count=40, shape=(2, 4, 4), batch=8, repeats=2, folder=tmp_path)
    assert (result["images"], result["batch"], result["megabytes"]) == (40, 8, 40 * 32 * 4 / 1e6)
    rates = {name: value for name, value in result.items() if name not in ("images", "batch", "megabytes")}
    assert {"shards warm", "files warm", "copy warm", "shards / files warm", "shards / copy warm"} <= rates.keys()
    assert all(math.isfinite(value) and value > 0 for value in rates.values())
    assert result["shards / copy warm"] == pytest.approx(result["shards warm"] / result["copy warm"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="batch 8 is larger than count 4"):
        bench_loading(count=4, shape=(2, 4, 4), batch=8, folder=tmp_path)
