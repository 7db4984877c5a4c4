"""Scores of runs and of files, end to end."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench import plugins
from workbench.config import Plugin, to_yaml
from workbench.data.images import load_images
from workbench.evaluation import suite
from workbench.evaluation.archives import write_samples
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.generate import generate
from workbench.evaluation.reference import write_reference_of_data
from workbench.evaluation.scores import class_agreement
from workbench.evaluation.statistics import PROTOCOL, protocol
from workbench.evaluation.suite import probe_layers, score, score_file, supervisors
from workbench.runs.checkpoints import save_checkpoint, thin
from workbench.runs.store import Run

METRICS = ["fd-clf64", "sfd-clf64", "kid-clf64", "is-clf64", "precision-clf64", "recall-clf64", "density-clf64"]
METRICS += ["coverage-clf64", "memorisation-clf64", "class-agreement"]


def few(run):
    return replace(run.config.sampling, count=30)


@pytest.fixture
def copy(run, tmp_path):
    """A run of its own, beside the latents and references of the shared one."""
    shutil.copytree(run.folder, tmp_path / run.name)
    for name in (".latents", ".references"):
        if (run.folder.parent / name).is_dir():
            (tmp_path / name).symlink_to(run.folder.parent / name)
    return Run(tmp_path / run.name)


@pytest.fixture
def fresh(copy, monkeypatch):
    """A run of which nothing was scored or generated, against a reference that is not seen yet."""
    monkeypatch.setattr(suite, "_references", {})
    (copy.folder.parent / ".references").unlink(missing_ok=True)
    (copy.folder / "results.jsonl").unlink(missing_ok=True)
    shutil.rmtree(copy.folder / "samples", ignore_errors=True)
    return copy


def test_scores_say_how_they_were_measured(run):
    with pytest.raises(ValueError, match="got 30 rows of 64 dimensions.*--small-ok"):
        score(run, 4, few(run))
    stages = []
    records = score(run, 4, few(run), small_ok=True, progress=lambda *seen: stages.append(seen))
    assert [r["metric"] for r in records] == METRICS
    fd = records[0]
    assert fd["value"] > 3 * fd["floor"] > 0  # an untrained model is far from the data
    assert fd["small"] and fd["low"] < fd["value"] < fd["high"] and fd["n_floor"] == 30
    for key in ("detector_hash", "n_generated", "n_reference", "reference", "sampler", "nfe", "train_seed", "machine"):
        assert fd[key] not in (None, "")
    assert {stage for stage, _, _ in stages} >= {"detect"}
    assert score(run, 4, few(run), small_ok=True) == records and len(run.results) == len(METRICS)
    assert json.loads(json.dumps(records)) == records


def test_scores_of_a_detector_in_bfloat16_are_others(copy):
    single = score(copy, 4, few(copy), small_ok=True)
    half = score(copy, 4, few(copy), small_ok=True, detector_precision="bf16")
    assert {r["detector_precision"] for r in half} == {"bf16"} and "detector_precision" not in single[0]
    assert {protocol(r) for r in single}.isdisjoint(protocol(r) for r in half)
    assert half[0]["value"] != single[0]["value"] and half[0]["value"] == pytest.approx(single[0]["value"], rel=0.05)
    stored = len(copy.results)
    assert score(copy, 4, few(copy), small_ok=True, detector_precision="bf16") == half
    assert len(copy.results) == stored  # computed once


def test_what_a_killed_process_left_out_is_added(copy):
    records = score(copy, 4, few(copy), small_ok=True)
    (copy.folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:3]))
    assert score(copy, 4, few(copy), small_ok=True) == records
    assert [r["metric"] for r in copy.results] == METRICS


MEAN = """
from workbench.evaluation.metrics import Metric

def measure(of):
    return {"value": float(of.generated.features.mean())}

METRIC = Metric(title="Mean", better="lower", measure=measure)
"""


def test_a_score_of_a_new_file_is_measured_with_the_others(copy, monkeypatch):
    before = score(copy, 4, few(copy), small_ok=True)
    folder = copy.folder.parent / "scores_of_a_suite"
    folder.mkdir()
    (folder / "mean.py").write_text(MEAN)
    (folder / "gone.py").write_text(MEAN.replace('better="lower", ', ""))
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv(plugins.VARIABLE, "scores_of_a_suite.mean")
    found = score(copy, 4, few(copy), small_ok=True)
    assert [r for r in found if r["metric"] != "mean-clf64"] == before
    (added,) = [r for r in copy.results if r["metric"] == "mean-clf64"]
    assert added["detector_hash"] == before[0]["detector_hash"] and added["floor"] != added["value"]
    # What cannot be measured is refused before an image is drawn or seen.
    monkeypatch.setenv(plugins.VARIABLE, "scores_of_a_suite.mean,scores_of_a_suite.gone")
    for step in ("generated", "see", "load_detector"):
        monkeypatch.setattr(suite, step, None)
    with pytest.raises(ValueError, match="score 'scores_of_a_suite.gone' cannot be imported: .* argument: 'better'"):
        score(copy, 4, few(copy), small_ok=True)


def test_other_labels_are_another_protocol(copy):
    random = replace(few(copy), labels="random")
    found = score(copy, 4, random, small_ok=True)[0], score(copy, 4, few(copy), small_ok=True)[0]
    assert [r["label_scheme"] for r in found] == ["random", "balanced"]
    assert "label_scheme" in PROTOCOL and len(copy.results) == 2 * len(METRICS)


@pytest.mark.slow
def test_controls_and_reduced_detectors(copy):
    for detector in ("randomconv", "pixels-pca64"):
        records = score(copy, 4, few(copy), detector=detector, small_ok=True)
        assert records[0]["metric"] == f"fd-{detector}" and records[0]["d"] == 64
        assert "class-agreement" not in {r["metric"] for r in records}
    assert records[0]["explained"] > 0.5 and records[0]["reduction"] == 64


def test_a_detector_that_trained_a_run_does_not_score_it(copy):
    taught = replace(copy.config, objective=Plugin("repa", {"encoder": "effnet-lite0"}))
    (copy.folder / "config.yaml").write_text(to_yaml(taught))
    student = Run(copy.folder.parent / "student")
    shutil.copytree(copy.folder, student.folder)
    objective = Plugin("self_transcendence", {**copy.config.objective.options, "teacher": str(copy.folder)})
    (student.folder / "config.yaml").write_text(to_yaml(replace(taught, objective=objective)))
    for run in (Run(copy.folder), Run(student.folder)):
        assert supervisors(run) == {"effnet-lite0"}
        with pytest.raises(ValueError, match="was trained with effnet-lite0, so its scores would be biased"):
            score(run, 4, few(run), detector="effnet-lite0", small_ok=True)
    assert "supervised" not in score(Run(student.folder), 4, few(copy), small_ok=True)[0]
    assert "supervised" in PROTOCOL


def test_files_of_images_are_scored_like_runs(run, tmp_path):
    own = score(run, 4, few(run), small_ok=True)
    samples = generate(run, 4, few(run))
    write_samples(tmp_path / "samples.npz", samples.images, samples.labels)
    found = score_file(tmp_path / "samples.npz", run.config.data, run.folder.parent, small_ok=True)
    assert [(r["metric"], r["value"]) for r in found] == [(r["metric"], r["value"]) for r in own]
    write_samples(tmp_path / "bare.npz", samples.images)
    bare = score_file(tmp_path / "bare.npz", run.config.data, run.folder.parent, small_ok=True)
    assert [r["metric"] for r in bare] == METRICS[:-1]


def test_reference_files_stand_for_the_data(run, tmp_path):
    detector, file = load_detector("clf64"), tmp_path / "reference.npz"
    about = write_reference_of_data(run.config.data, "train", file, detector)
    assert about["count"] == 200 and about["detector_hash"] == detector.hash
    with np.load(file) as arrays:
        assert arrays["arr_0"].shape == (200, 32, 32, 1) and arrays["mu"].shape == (64,)
        assert {*arrays.files} == {"arr_0", "mu", "sigma", "mu_s", "sigma_s", "about"}
    by_data = {r["metric"]: r for r in score(run, 4, few(run), small_ok=True)}
    by_file = {r["metric"]: r for r in score(run, 4, few(run), reference=file, small_ok=True)}
    for metric in ("fd-clf64", "sfd-clf64", "precision-clf64", "coverage-clf64"):
        assert by_file[metric]["value"] == pytest.approx(by_data[metric]["value"], rel=1e-9)
    assert "memorisation-clf64" not in by_file and "floor" not in by_file["fd-clf64"]
    assert by_file["fd-clf64"]["reference"] != by_data["fd-clf64"]["reference"]
    with pytest.raises(ValueError, match="reference itself"):
        score_file(file, file, tmp_path, small_ok=True)


def test_training_images_as_samples_are_refused(run, tmp_path):
    images = load_images(run.config.data, "train").batch(range(200))
    write_samples(tmp_path / "train.npz", images)
    with pytest.raises(ValueError, match="those of the reference itself"):
        score_file(tmp_path / "train.npz", run.config.data, run.folder.parent)


def test_images_that_a_detector_does_not_take(run, tmp_path):
    write_samples(tmp_path / "large.npz", torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="clf64 takes"):
        score_file(tmp_path / "large.npz", run.config.data, run.folder.parent, small_ok=True)


def test_a_run_that_trains_on_is_scored_at_the_step_that_was_chosen(fresh):
    checkpoint, stages = fresh.checkpoint(4), []

    def meanwhile(stage, done, total):
        stages.append(stage)
        if stage == "reference" and done < total and len(fresh.checkpoints) == 1:
            assert fresh.checkpoint().step == 4
            parts = {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}
            save_checkpoint(fresh.folder / "checkpoints", 6, parts, checkpoint.state)
            thin(fresh.folder / "checkpoints", 1, None, 6)

    settings = replace(few(fresh), count=8)
    records = score(fresh, 4, settings, small_ok=True, progress=meanwhile)
    assert "reference" in stages and [c.step for c in fresh.checkpoints] == [6]
    assert {record["step"] for record in records} == {record["step"] for record in fresh.results} == {4}
    assert score(fresh, 4, settings, small_ok=True) == records  # known, though its weights are gone
    with pytest.raises(ValueError, match="has no checkpoint of step 4; it has: 6"):
        score(fresh, 4, replace(settings, count=9), small_ok=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": -3}, "steps"),
        ({"count": 0}, "count is 0; allowed are 1 to 10,000,000"),
        ({"count": 1}, "got 1 images; a score needs at least 2"),
        ({"count": 10**9}, "count is 1000000000; allowed are 1 to 10,000,000"),
        ({"count": 30}, "got 30 rows of 64 dimensions"),
        ({"guidance_scale": float("nan")}, "guidance scale must be finite"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_the_reference_is_seen(fresh, changes, said):
    with pytest.raises(ValueError, match=said):
        score(fresh, 4, replace(few(fresh), **changes), progress=lambda *seen: pytest.fail(str(seen)))
    assert not (fresh.folder.parent / ".references").exists() and not fresh.results


def test_too_few_images_for_spatial_features_are_refused_before_any_is_generated(fresh):
    stages = set()
    with pytest.raises(ValueError, match="got 150 rows of 112 dimensions; the spatial Frechet .* 224"):
        score(fresh, 4, replace(few(fresh), count=150), progress=lambda stage, done, total: stages.add(stage))
    assert "generate" not in stages and not (fresh.folder / "samples").exists()


def test_scores_that_are_not_finite_are_not_kept(fresh, monkeypatch):
    wrong = replace(class_agreement.METRIC, measure=lambda _: {"value": 0.5, "low": float("nan"), "high": 1.0})
    monkeypatch.setattr(class_agreement, "METRIC", wrong)
    with pytest.raises(ValueError, match="^class-agreement cannot hold low = nan: JSON only has finite numbers"):
        score(fresh, 4, few(fresh), small_ok=True)
    assert fresh.results == []


def test_probe_of_layers_is_recorded(run):
    records = probe_layers(run, 4, layers=range(1, 3), t=0.3, count=200)
    assert [r["layer"] for r in records] == [1, 2]
    assert all(r["low"] <= r["value"] <= r["high"] and r["label"] == "null" for r in records)
