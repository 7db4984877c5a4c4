"""The optimizer, and its state as named tensors for checkpoints."""

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


def optimizer_tensors(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name, e.g. ``backbone.blocks.0.attn.qkv.weight/exp_avg``."""
    return {
        f"{name}/{key}": value
        for name, parameter in student.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(student: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    parameters = dict(student.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)
