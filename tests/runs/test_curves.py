"""Curves: thinned without losing a spike, kept beside the run, right after a run took records back."""

import json
import math
import os
import time

import numpy as np
import pytest

from workbench.config import load_config
from workbench.runs import curves
from workbench.runs.curves import follow, read_curves, thin
from workbench.runs.store import prepare_run


@pytest.fixture
def run(tmp_path):
    return prepare_run(load_config("demo/plain"), tmp_path)


def line(step: int, seconds: float, **more) -> str:
    alignment = 0.25 if step <= 500 else None
    record = {"step": step, "loss": 1 / step, "alignment": alignment, "seconds": seconds, **more}
    return json.dumps(record) + "\n"


def write(run, steps: range, sitting: float = 0.0, mode: str = "a", **more) -> None:
    with (run.folder / "metrics.jsonl").open(mode) as file:
        file.write("".join(line(step, step + sitting, **more) for step in steps))


def test_lows_and_highs_stay():
    values = np.sin(np.arange(100_001) / 900)
    values[[12_345, 77_777]] = 50.0, -50.0
    values[5] = math.nan
    chosen = thin(values, 200)
    assert len(chosen) <= 200 and np.all(np.diff(chosen) > 0) and 5 not in chosen
    assert values[chosen].max() == 50.0 and values[chosen].min() == -50.0
    # Of the stretch 500 k .. 500 (k + 1) both ends of the range are there; by hand: two of each three, and a pair.
    assert thin(np.array([3.0, 1.0, 2.0, 0.0, 7.0, 5.0]), 4).tolist() == [0, 1, 3, 4]
    assert thin(np.array([math.nan, 1.0]), 4).tolist() == [1]


def test_curves_are_the_records(run):
    write(run, range(1, 1001))
    drawn = read_curves(run)
    assert (drawn.records, drawn.complete, sorted(drawn.curves)) == (1000, True, ["alignment", "loss", "seconds"])
    steps, loss = drawn.curves["loss"]
    assert steps.tolist() == list(range(1, 1001)) and loss.tolist() == [1 / step for step in range(1, 1001)]
    assert drawn.curves["alignment"][0].max() == 500  # None is left out
    assert read_curves(run, since=900).curves["loss"][0].tolist() == list(range(900, 1001))
    assert len(read_curves(run, points=100).curves["loss"][0]) <= 100


def test_what_is_kept_is_extended_and_not_needed(run, monkeypatch):
    write(run, range(1, 1001))
    read_curves(run)
    write(run, range(1001, 1101))
    write(run, range(1101, 1111), gradient_norm=2.0)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1111, "lo')
    parsed = []
    monkeypatch.setattr(curves, "_parse", lambda *given, parse=curves._parse: parsed.append(given) or parse(*given))
    extended = read_curves(run)
    assert len(parsed) == 1 and parsed[0][0].startswith(b'{"step": 1001,')
    assert extended.records == 1110 and extended.curves["gradient_norm"][0].tolist() == list(range(1101, 1111))
    assert read_curves(run).records == 1110 and len(parsed) == 1
    for damage in (b"", b"[", (run.folder / ".curves").read_bytes()[:-5]):
        (run.folder / ".curves").write_bytes(damage)
        fresh = read_curves(run)
        assert all(np.array_equal(fresh.curves[name], extended.curves[name]) for name in extended.curves)
    (run.folder / ".curves").unlink()
    (run.folder / ".curves-lock").unlink()
    (run.folder / ".curves-lock").mkdir()  # a folder that cannot be written
    assert read_curves(run).records == 1110 and not (run.folder / ".curves").exists()


def test_records_taken_back_and_logged_anew(run):
    write(run, range(1, 1001))
    follower = follow(run)
    assert read_curves(run).records == 1000
    run.rewind(700)
    assert follower.new().rewound
    assert [r["step"] for r in run.metrics[-2:]] == [699, 700]
    write(run, range(701, 1201), sitting=0.5)
    assert [record["step"] for record in follower.new().records] == list(range(701, 1201))
    drawn = read_curves(run)
    steps, seconds = drawn.curves["seconds"]
    assert steps.tolist() == list(range(1, 1201))
    assert seconds.tolist() == [step + (0.5 if step > 700 else 0.0) for step in range(1, 1201)]


def test_a_long_file_is_sampled_at_first_and_read_over_several_looks(run, monkeypatch):
    monkeypatch.setattr(curves, "_CHUNK", 20_000)
    write(run, range(1, 5001))
    first = read_curves(run, patience=0.0)
    assert not first.complete and first.curves["loss"][0].max() > 4800
    looks = 1
    while not (drawn := read_curves(run, patience=0.0)).complete:
        looks += 1
    assert looks > 5 and drawn.records == 5000
    with pytest.raises(ValueError, match="points must be at least 2; got 1"):
        read_curves(run, points=1)


def test_a_follower_gives_whole_lines_only(run):
    follower = follow(run)  # before anything was logged
    assert follower.new() == curves.News([])
    write(run, range(1, 3))
    half = line(3, 3.0)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(half[:10])
        file.flush()
        assert [record["step"] for record in follower.new().records] == [1, 2]
        assert follower.new().records == []
        file.write(half[10:])
    assert [record["step"] for record in follower.new().records] == [3]


def test_a_million_numbers_open_within_a_second(run):
    write(run, range(1, 2))
    read_curves(run)
    columns = json.loads((run.folder / ".curves").open("rb").readline())
    one, count = (run.folder / "metrics.jsonl").read_bytes(), 1_000_000
    with (run.folder / "metrics.jsonl").open("wb") as file:
        file.write(one * count)  # the last line agrees with the last row, which is all that is looked at
    rows = np.tile([float(len(one)), 1.0, 1.0, 0.25, 1.0], (count, 1))
    rows[:, 0] *= np.arange(1, count + 1)
    assert columns == ["end", "step", "loss", "alignment", "seconds"]
    (run.folder / ".curves").write_bytes(json.dumps(columns).encode() + b"\n" + rows.tobytes())
    since = time.perf_counter()
    drawn = read_curves(run)
    assert time.perf_counter() - since < 1.0
    assert drawn.records == count and drawn.complete
    os.truncate(run.folder / "metrics.jsonl", 0)
    assert read_curves(run).records == 0
