"""Runs of the laptop's presets so short that nothing is learned: three methods and the teacher, two seeds."""

import pytest

from workbench.reporting.sweep.row import open_row

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
    for seed in SEEDS:
        for suffix in ("-plain", "-vae", ""):
            row = open_row(f"laptop/sit-nano-2{suffix}", shared=TINY, seed=seed, evaluate={"count": 20}, root=root)
            row.train()
            row.score()
    return root


@pytest.fixture
def where(root):
    """The arguments of every figure for these runs."""
    return {"scale": "laptop", "seeds": SEEDS, "root": root, "overrides": TINY}
