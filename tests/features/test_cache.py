"""Kept features: damaged files are known, and the longest unused make room."""

import os
import shutil
from collections import namedtuple

import pytest
import torch

from workbench.features.extract import extract

ROWS = (5, 3, 40, 12)
BYTES = 4 * 16 * 32 * 4  # of one layer, time and label mode of four images: 16 tokens of width 32


def everything(grid):
    """All features of a grid, in memory."""
    keys = [(layer, t, label) for layer in grid.layers for t in grid.times for label in grid.labels]
    return {key: grid.read(*key).clone() for key in keys}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, change, empty])
def test_a_damaged_file_is_computed_again(run, root, passes, harm):
    grid = extract(run, ROWS, [2, 3], [0.2], root=root)
    whole = everything(grid)
    harm(grid.folder / "true-t0.2-layer03-features.npy")
    passes.clear()
    with pytest.warns(UserWarning, match="true-t0.2-layer03-features.npy is damaged and computed again"):
        again = extract(run, ROWS, [2, 3], [0.2], root=root)
    assert passes == 2 * [(2, (3,))] and same(everything(again), whole)


def test_a_file_damaged_or_deleted_since_is_named(run, root, passes):
    grid = extract(run, ROWS, [2, 3], [0.2], root=root)
    cut(grid.folder / "null-t0.2-layer02-features.npy")
    with pytest.raises(ValueError, match="null-t0.2-layer02-features.npy is damaged: .*extract its features again"):
        for _ in range(2):  # a file may be cut short by less than its checksum
            cut(grid.folder / "null-t0.2-layer02-features.npy")
            grid.read(2, 0.2)
    (grid.folder / "true-t0.2-layer03-features.npy").unlink()
    with pytest.raises(ValueError, match="layer03-features.npy no longer exists.*extract its features again"):
        grid.read(3, 0.2, "true")


def test_reading_changes_no_file(run, root, passes):
    grid = extract(run, ROWS, [2], [0.2], root=root)
    before = grid.read(2, 0.2).clone()
    grid.read(2, 0.2).zero_()
    assert torch.equal(grid.read(2, 0.2), before)


def test_the_longest_unused_make_room(run, root, passes, monkeypatch):
    monkeypatch.setenv("WORKBENCH_FEATURES_GB", str(7 * BYTES / 1e9))
    old = extract(run, ROWS, [1, 2, 3], [0.2], labels=("null",), root=root)
    new = extract(run, ROWS, [1, 2, 3], [0.2], labels=("null",), seed=1, root=root)
    for age, (grid, layer) in enumerate([(old, 2), (new, 1), (old, 1), (new, 3), (old, 3), (new, 2)]):
        os.utime(grid.folder / f"null-t0.2-layer{layer:02d}-features.npy", (1e9 + age, 1e9 + age))
    old.read(2, 0.2)  # the first becomes the last by being used
    extract(run, ROWS, [1, 4, 5], [0.2], labels=("null",), seed=1, root=root)
    # Eight files and their headers fill more than 7, six fit: of those not asked for again, the two used longest ago
    # are layer 1 of the old and layer 3 of the new.
    kept = {(path.parent == new.folder, path.name.split("-")[2]) for path in (root / ".features").glob("*/*.npy")}
    assert kept == {(False, "layer02"), (False, "layer03"), *((True, f"layer0{layer}") for layer in (1, 2, 4, 5))}


def test_what_cannot_fit_is_refused_with_the_numbers(run, root, passes, monkeypatch):
    extract(run, ROWS, [1], [0.2], root=root)
    monkeypatch.setenv("WORKBENCH_FEATURES_GB", str(3 * BYTES / 1e9))
    with pytest.raises(ValueError, match=r"take 3.28e-05 GB, more than the 2.46e-05 GB that WORKBENCH_FEATURES_GB"):
        extract(run, ROWS, [2, 3], [0.2], root=root)
    monkeypatch.setenv("WORKBENCH_FEATURES_GB", "20")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(ValueError, match=r"need 8.19e-05 GB more; the disk of .* has 1e-06 GB free, .* take 1.\d+e-05"):
        extract(run, ROWS, [2, 3, 4, 5, 6], [0.2], root=root)
    assert len(list((root / ".features").glob("*/*.npy"))) == 2  # nothing was deleted for nothing
    for said in ("twenty", "-1", "nan"):
        monkeypatch.setenv("WORKBENCH_FEATURES_GB", said)
        with pytest.raises(ValueError, match=f"WORKBENCH_FEATURES_GB is '{said}'"):
            extract(run, ROWS, [2], [0.2], root=root)
