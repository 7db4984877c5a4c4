"""A run's samples, features and scores, on a tiny trained run."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.config import load_config, to_yaml
from workbench.data.latents import open_latents
from workbench.evaluation.generate import _generate, generate
from workbench.evaluation.suite import probe_layers, score
from workbench.features.extract import extract
from workbench.features.maps import layer_and_guided_maps
from workbench.runs.models import load_backbone
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    options = ("data.limit=200", "training.steps=4", "training.batch=8", "sampling.steps=2", "sampling.count=30")
    config = load_config("demo/plain", options)
    list(fit(config, root))
    return prepare_run(config, root)


@pytest.fixture(scope="module")
def latents(run):
    return open_latents(run.config, "train", run.folder.parent / ".latents")


def test_sample_does_not_depend_on_count(run):
    few, many = (_generate(run, 4, replace(run.config.sampling, count=n), None).images for n in (3, 30))
    # The convolutions of another batch size may round differently in the last bit before quantisation.
    assert (few.int() - many[:3].int()).abs().max() <= 1


def test_samples_are_kept(run):
    first = generate(run, 4, run.config.sampling)
    assert len(list((run.folder / "samples").glob("*.npz"))) == 1
    again = generate(run, 4, run.config.sampling)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert first.images.stride() == again.images.stride()  # strides choose the detector's kernels, and so its rounding
    assert first.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_an_untrained_null_class_guides_nothing(run, tmp_path):
    always = Run(tmp_path / "always")
    shutil.copytree(run.folder, always.folder)
    config = replace(run.config, diffusion=replace(run.config.diffusion, label_dropout=0.0))
    (always.folder / "config.yaml").write_text(to_yaml(config))
    settings = replace(config.sampling, count=3)
    with pytest.raises(ValueError, match="label_dropout 0, so its null class is untrained; it cannot be guided: set"):
        generate(always, 4, replace(settings, guidance_scale=2.0))
    assert generate(always, 4, settings).images.shape == (3, 1, 32, 32)
    assert generate(run, 4, replace(settings, guidance_scale=2.0)).images.shape == (3, 1, 32, 32)


def test_scores_say_how_they_were_measured(run):
    records = score(run, 4, run.config.sampling)
    assert [r["metric"] for r in records] == ["fd-clf64", "kid-clf64", "class-agreement"]
    fd = records[0]
    assert fd["value"] > 3 * fd["floor"] > 0  # an untrained model is far from the data
    for key in ("detector_hash", "n_generated", "n_reference", "reference", "sampler", "nfe", "train_seed", "machine"):
        assert fd[key] not in (None, "")
    assert score(run, 4, run.config.sampling) == records and len(run.results) == 3


def test_guided_features_and_their_maps(run, latents):
    features = extract(load_backbone(run), latents, range(4), [2, 8], 0.4)
    assert torch.equal(features.guided(8, 1.0), features.f_c[8])
    assert torch.equal(features.guided(8, 0.0), features.f_u[8])
    alone = extract(load_backbone(run), latents, [3], [8], 0.4)
    torch.testing.assert_close(alone.f_c[8], features.f_c[8][3:], rtol=1e-4, atol=1e-5)
    maps = layer_and_guided_maps("a run", features, np.zeros((4, 1, 32, 32), np.uint8), [2, 8], 8, [1.0, 30.0])
    assert len(maps.panels) == 4
    for _, colours in maps.panels:
        assert colours.shape == (4, 8, 8, 3) and colours.min() >= 0 and colours.max() <= 1


def test_probe_of_layers_is_recorded(run, latents):
    records = probe_layers(run, latents, 4, layers=range(1, 3), t=0.3, count=200)
    assert [r["layer"] for r in records] == [1, 2]
    assert all(r["low"] <= r["value"] <= r["high"] and r["label"] == "null" for r in records)
