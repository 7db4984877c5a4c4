"""A tiny trained run, a place for its features, and a count of what runs through its network."""

import shutil

import pytest
import torch

from workbench.backbones.base import Size
from workbench.config import load_config, plugin_class
from workbench.features import extract as module
from workbench.runs.models import load_backbone
from workbench.runs.store import prepare_run
from workbench.training.loop import fit

# As tests/training trains: digits of 32 x 32 pixels, no VAE, patches of 8: 16 tokens.
SMALL = ("data.name=digits", "data.source=auto", "data.limit=64", "vae.name=identity", "backbone.patch=8")
SHORT = ("training.steps=2", "training.batch=8", "training.log_every=1", "objective.head_width=16")


@pytest.fixture(scope="module")
def thin_nano():
    """The size nano with a fourth of its width: these tests are about files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plugin_class("backbone", "sit").sizes, "nano", Size(depth=12, width=32, heads=2))
        yield


@pytest.fixture(scope="module")
def run(thin_nano, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config = load_config("demo/teacher", (*SMALL, *SHORT))
    for _ in fit(config, root):
        pass
    return prepare_run(config, root)


@pytest.fixture(scope="module")
def backbone(run):
    """The run's, shaken: so early its gates are shut, and no label matters."""
    backbone, generator = load_backbone(run), torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone


@pytest.fixture
def root(run, tmp_path):
    """A place for features with the run's latents and nothing else."""
    shutil.copytree(run.folder.parent / ".latents", tmp_path / ".latents")
    return tmp_path


@pytest.fixture
def passes(backbone, monkeypatch):
    """What runs through the network: (number of images, layers) of each call. Extraction takes batches of two."""
    seen, features = [], backbone.features

    def counted(x_t, t, y, layers):
        seen.append((len(x_t), layers))
        return features(x_t, t, y, layers)

    monkeypatch.setattr(backbone, "features", counted)
    monkeypatch.setattr(module, "load_backbone", lambda *_: backbone)
    monkeypatch.setattr(module, "_BATCH", 2)
    return seen
