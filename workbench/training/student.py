"""The module that is trained: a backbone, the heads of its objective, and the two losses of a batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, plugin_class
from workbench.data.latents import Latents
from workbench.objectives.base import Batch, Context, Inputs, Objective
from workbench.objectives.heads import initialize


@dataclass(frozen=True)
class Losses:
    """Per-sample losses; ``alignment`` is None while the objective is off."""

    denoise: Float[Tensor, "b"]
    alignment: Float[Tensor, "b"] | None
    metrics: dict[str, Tensor]


class Student(nn.Module):
    """Backbone and objective as one module, so that DDP sees every trained parameter."""

    def __init__(self, backbone: TransformerBackbone, objective: Objective):
        super().__init__()
        self.backbone = backbone
        self.objective = objective

    def forward(self, batch: Batch, aligned: bool) -> Losses:
        """Denoising loss (mean over c, h, w of (v_hat - v)^2) and, if ``aligned``, the objective's loss."""
        tapped = self.backbone.forward_tapped(batch.x_t, batch.t, batch.y, self.objective.taps if aligned else ())
        denoise = (tapped.v.float() - batch.v).square().mean(dim=(1, 2, 3))
        if not aligned:
            return Losses(denoise, None, {})
        alignment = self.objective.loss(Inputs(**batch.__dict__, features=tapped.features))
        return Losses(denoise, alignment.loss, alignment.metrics)


def build_backbone(config: Config, latents: Latents) -> TransformerBackbone:
    """The backbone that ``config`` names for these latents; its weights are not set yet."""
    return plugin_class("backbone", config.backbone.name)(
        **config.backbone.options,
        channels=latents.channels,
        height=latents.height,
        classes=len(latents.classes),
    )


def build_student(config: Config, latents: Latents, teacher: TransformerBackbone | None) -> Student:
    """A freshly initialised student; the same seed gives the same backbone whatever the objective."""
    backbone = build_backbone(config, latents)
    backbone.initialize(torch.Generator().manual_seed(config.training.seed))
    context = Context(backbone.depth, backbone.width, backbone.patch, backbone.channels, backbone.height, teacher)
    objective = plugin_class("objective", config.objective.name)(context, **config.objective.options)
    initialize(objective, torch.Generator().manual_seed(config.training.seed + 1))
    return Student(backbone, objective)
