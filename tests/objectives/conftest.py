"""What the tests of the objectives share: a small network, a batch it has seen, a short training run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench.backbones.sit import Backbone
from workbench.config import load_config
from workbench.objectives.base import Context, Inputs
from workbench.training.loop import fit

SHAPE = {"channels": 2, "height": 4, "classes": 5}
LAYERS = (2, 3, 4, 5, 6, 8)
SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=16",
    "vae.name=identity",
    "backbone.patch=8",
    "training.batch=8",
    "training.optimizer=adamw",
    "training.learning_rate=1e-3",
    "training.warmup_steps=0",
    "training.log_every=1",
)


def random_backbone(seed: int) -> Backbone:
    """A nano SiT whose zero-initialised parts are random too, so that labels and times matter."""
    model = Backbone(size="nano", patch=1, **SHAPE)
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN" in name or "final" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def backbone() -> Callable[[int], Backbone]:
    return random_backbone


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    return random_backbone(1).eval().requires_grad_(False)


@pytest.fixture
def context() -> Context:
    """Depth 12, width 128, sixteen tokens, two encoders."""
    return Context(12, 128, 1, 2, 4, "linear", {"first": 7, "second": 5})


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(6, 2, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.5, 0.7, 0.71, 0.9])
    x_t = z + t.reshape(-1, 1, 1, 1) * (eps - z)
    labels = torch.arange(6) % 5
    y = labels.masked_fill(torch.arange(6) == 2, 5)
    features = {layer: f.detach() for layer, f in random_backbone(2).features(x_t, t, y, LAYERS).items()}
    return Inputs(
        z=z,
        eps=eps,
        t=t,
        x_t=x_t,
        v=eps - z,
        y=y,
        labels=labels,
        u=torch.rand(6, generator=generator),
        targets={name: torch.randn(6, 16, k, generator=generator) for name, k in (("first", 7), ("second", 5))},
        features=features,
        ema=random_backbone(4),
    )


@pytest.fixture
def train(tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """Train a few steps on sixteen digits, one token each, and give the records of all steps."""

    def run(*overrides: str) -> list[dict[str, Any]]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return list(fit(load_config("demo/plain", (*SMALL, *overrides)), tmp_path))
        finally:
            torch.set_num_threads(threads)

    return run
