"""Projection heads between a tapped feature and its target."""

import torch
from torch import nn


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """The three-layer SiLU MLP of REPA and Self-Transcendence: width -> hidden -> hidden -> out."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )


def mlp_norm_linear(width: int, hidden: int, out: int) -> nn.Sequential:
    """The head of the released first stage: an MLP back to ``width``, a plain layer norm, a linear layer."""
    return nn.Sequential(
        mlp(width, hidden, width),
        nn.LayerNorm(width, eps=1e-6, elementwise_affine=False),
        nn.Linear(width, out),
    )


@torch.no_grad()
def initialize(head: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform weights and zero biases, drawn from ``generator`` only, as in REPA's projectors."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
