"""Methods side by side: trained once, told apart by seed, written as data, table and picture."""

import json
from dataclasses import replace

import pytest

from workbench.reporting.methods import Row, compare_methods, markdown, methods_figure, write_comparison
from workbench.runs.store import find_runs

TINY = ("data.limit=60", "training.steps=4", "training.batch=8", "sampling.steps=2", "sampling.count=12")
NAMES = ("laptop/sit-nano-2-plain", "laptop/sit-nano-2", "laptop/lightningdit-nano-2-layersync")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("methods")
    return root, list(compare_methods(NAMES, (0, 1), root, TINY))


def test_every_preset_and_seed_with_its_teacher(compared):
    root, progress = compared
    rows = progress[-1].rows
    assert [row.preset for row in rows] == list(NAMES) and all(row.seeds == (0, 1) for row in rows)
    assert len(find_runs(root)) == 8  # three presets and one teacher, two seeds
    assert rows[1].seconds_with_teacher > rows[1].seconds and rows[0].seconds_with_teacher == rows[0].seconds
    assert all(len(set(row.scores["fd-clf64"])) == 2 for row in rows)
    assert (progress[-1].done, progress[-1].total) == (6, 6)


def test_nothing_is_trained_twice(compared):
    root, progress = compared
    again = list(compare_methods(NAMES, (0, 1), root, TINY))
    assert again[-1].rows == progress[-1].rows and len(find_runs(root)) == 8
    assert len(again) < len(progress)


def test_what_is_written(compared, tmp_path):
    rows = compared[1][-1].rows
    write_comparison(rows, tmp_path, "workbench methods", {"images": 12})
    data = json.loads((tmp_path / "methods.json").read_text())
    assert data["rows"][0]["preset"] == NAMES[0] and data["images"] == 12 and data["versions"]["torch"]
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_mean_and_spread():
    scores = {"fd-clf64": (1.0, 3.0), "kid-clf64": (0.5, 0.5), "class-agreement": (0.25, 0.75)}
    row = Row("a/b", "sit", "repa", 9, (0, 1), scores, 10.0, 14.4)
    page = markdown([row], "workbench methods", {"images": 5})
    assert "| a/b | repa | 9 | 2 | 2 ± 1.4 | 0.5 ± 0 | – | – | 0.5 ± 0.35 | – | 10 | 14 |" in page
    # Differences to plain by seed: -1 and -2, mean -1.5, t interval -1.5 ± 12.706 * .7071 / sqrt(2).
    plain = replace(row, preset="a/plain", method="denoise", seeds=(1, 0), scores={"fd-clf64": (5.0, 2.0)})
    page = markdown([plain, row], "workbench methods", {"images": 5})
    assert "| -1.5 (-7.9 .. +4.9) | 10 | 14 |" in page and page.count("| – | 10 | 14 |") == 1
    assert len(methods_figure([row]).axes[0].lines) == 2
