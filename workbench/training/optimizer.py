"""The optimizer."""

import torch
from torch import nn

from workbench.config import Config


def build_optimizer(student: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over every trained parameter, heads included, with the configuration's constants; fused kernels."""
    training = config.training
    trained = [p for p in student.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )
