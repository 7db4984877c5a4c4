"""The benchmark of checkpoints runs, says what it measured, and leaves nothing behind."""

import math

import pytest
import torch
from saving import XL, bench_saving


def test_bench_saving(tmp_path):
    parts = {part: {"w": torch.rand(1000)} for part in ("model", "ema", "optimizer")}
    found = bench_saving(parts, tmp_path, repeats=1)
    assert found["gigabytes"] == 12_000 / 1e9
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert found["stop seconds"] <= found["save seconds"]
    assert found["stop at XL, seconds"] == pytest.approx(found["stop seconds"] * XL / found["gigabytes"])
    assert found["checkpoint / plain speed"] == pytest.approx(found["plain seconds"] / found["checkpoint seconds"])
