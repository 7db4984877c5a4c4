"""Runs of the laptop's presets so short that nothing is learned: three methods and the teacher, two seeds."""

import pytest

from workbench.reporting.methods import compare_methods

TINY = (
    "data.limit=150",
    "training.steps=4",
    "training.batch=4",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "training.milestone_every=2",
    "sampling.steps=2",
    "sampling.count=20",
)
SEEDS = (0, 1)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper-runs")
    names = [f"laptop/sit-nano-2{suffix}" for suffix in ("-plain", "-vae", "")]
    list(compare_methods(names, SEEDS, root, TINY))
    return root


@pytest.fixture
def where(root):
    """What every exhibit is told of them."""
    return {"scale": "laptop", "seeds": SEEDS, "root": root, "overrides": TINY}
