"""The shipped runs: what is in the package, and what becomes of it under a runs folder."""

from pathlib import Path

import pytest
import torch

import workbench
from workbench.config import load_config
from workbench.runs.models import load_backbone, load_weights
from workbench.runs.store import find_runs, find_teacher, prepare_run, run_fingerprint
from workbench.runs.zoo import PRESETS, pack, zoo

SHIPPED = Path(workbench.__file__).parent / "data" / "assets" / "zoo"


STEPS = {
    **{"teacher": [600, 1200, 1800, 3000], "plain": [1200, 2400, 3600, 6000], "guided": [1200, 2400, 3600, 6000]},
    **{"scenes-teacher": [2500], "scenes-plain": [5000], "scenes-guided": [5000]},
}

METRIC = {"fashion-mnist": "fd-clf64", "scenes": "fd-clf64-scenes"}


def test_all_weights_in_forty_megabytes():
    files = [SHIPPED / f"{name}.zip" for name in PRESETS]
    assert sorted(SHIPPED.iterdir()) == sorted(files)
    assert sum(file.stat().st_size for file in files) <= 40_000_000
    assert max(file.stat().st_size for file in files) <= 16_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_shipped_run_is_a_run(name, tmp_path):
    run = zoo(name, tmp_path)
    assert run.status["state"] == "finished" and run.config == load_config(PRESETS[name])
    assert [c.step for c in run.checkpoints] == STEPS[name]
    assert STEPS[name][-1] == run.config.training.steps
    for checkpoint in run.checkpoints:
        weights = checkpoint.load("ema")  # which checks the hash
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
        assert {(r["step"], r["metric"]) for r in run.results} >= {(checkpoint.step, METRIC[run.config.data.name])}
    assert next(load_backbone(run).parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="has no model weights; it has: ema"):
        load_weights(run, weights="raw")


@pytest.mark.parametrize(("name", "teacher"), [("guided", "teacher"), ("scenes-guided", "scenes-teacher")])
def test_it_is_copied_once_with_its_teacher_and_counts_as_trained(tmp_path, name, teacher):
    run = zoo(name, tmp_path)
    assert zoo(name, tmp_path).folder == run.folder and len(find_runs(tmp_path)) == 2
    assert find_teacher(run.config, tmp_path).folder == zoo(teacher, tmp_path).folder
    config = load_config(PRESETS[name])
    assert run_fingerprint(config, tmp_path) == run.fingerprint
    assert prepare_run(config, tmp_path).folder == run.folder
    assert {path.name for path in tmp_path.iterdir()} == {run.name, zoo(teacher, tmp_path).name, ".zoo-lock"}


def test_a_run_of_the_same_fingerprint_that_has_not_finished_is_left_alone(tmp_path):
    run = prepare_run(load_config("zoo/plain"), tmp_path)
    with pytest.raises(ValueError, match=rf"{run.name} .*is created at step 0.*workbench train zoo/plain"):
        zoo("plain", tmp_path)
    assert len(find_runs(tmp_path)) == 1


def test_another_name(tmp_path):
    with pytest.raises(ValueError, match="guided"):
        zoo("guide", tmp_path)


def test_packing_what_was_opened_gives_the_same_files(tmp_path):
    runs, packed = tmp_path / "runs", tmp_path / "packed"
    with pytest.raises(ValueError, match="zoo/teacher is missing.*workbench train zoo/teacher"):
        pack(runs, packed)
    assert not packed.exists()
    for name in PRESETS:
        zoo(name, runs)
    pack(runs, packed)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == {
        f"{name}.zip": (SHIPPED / f"{name}.zip").read_bytes() for name in PRESETS
    }
