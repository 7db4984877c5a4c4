"""The trained module: a backbone with its alignment objective, and the two losses of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, plugin_class
from workbench.data.latents import Latents
from workbench.data.targets import Targets
from workbench.objectives.base import Batch, Context, Inputs, Objective
from workbench.objectives.heads import initialize


@dataclass(frozen=True)
class Shape:
    """The properties of encoded images that a model depends on: latent channels and height, and the classes."""

    channels: int
    height: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Losses:
    """Losses of each sample, and scalar metrics; ``alignment`` is None while the objective is off."""

    denoise: Float[Tensor, "b"]
    alignment: Float[Tensor, "b"] | None
    metrics: dict[str, Tensor]

    def detached(self) -> "Losses":
        """The losses without their autograd graph."""
        alignment = None if self.alignment is None else self.alignment.detach()
        return Losses(self.denoise.detach(), alignment, {name: value.detach() for name, value in self.metrics.items()})


class Student(nn.Module):
    """Backbone and objective as one module, so that DDP sees every trained parameter."""

    def __init__(self, backbone: TransformerBackbone, objective: Objective, cosine_weight: float = 0.0):
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.cosine_weight = cosine_weight

    def forward(self, batch: Batch, aligned: bool, ema: TransformerBackbone) -> Losses:
        """The denoising loss and, if ``aligned``, the objective's loss; ``ema`` is the model with EMA weights."""
        tapped = self.backbone.forward_tapped(batch.x_t, batch.t, batch.y, self.objective.taps if aligned else ())
        denoise = denoising_loss(tapped.v.float(), batch.v, self.cosine_weight)
        if not aligned:
            return Losses(denoise, None, {})
        alignment = self.objective.loss(Inputs(**batch.__dict__, features=tapped.features, ema=ema))
        return Losses(denoise, alignment.loss, alignment.metrics)


def denoising_loss(
    predicted: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], cosine_weight: float
) -> Float[Tensor, "b"]:
    """Mean over c, h, w of (predicted - v)^2, plus ``cosine_weight`` times LightningDiT's 1 - cosine over channels.

    A new model predicts a velocity of 0, which has no direction. As in the released code, the gradient of the cosine
    there is 1e8; without gradient clipping it stays in Adam's second moment for several hundred steps.
    """
    squares = (predicted - v).square().mean(dim=(1, 2, 3))
    if not cosine_weight:
        return squares
    return squares + cosine_weight * (1 - F.cosine_similarity(predicted, v, dim=1)).mean(dim=(1, 2))


def build_backbone(config: Config, latents: Latents | Shape) -> TransformerBackbone:
    """Build the backbone of ``config`` for these latents; its weights are not initialized."""
    return plugin_class("backbone", config.backbone.name)(
        **config.backbone.options,
        channels=latents.channels,
        height=latents.height,
        classes=len(latents.classes),
    )


def build_objective(
    config: Config, backbone: TransformerBackbone, teacher: TransformerBackbone | None, widths: Mapping[str, int]
) -> Objective:
    """Build the objective of ``config`` for a backbone; ``widths`` are the widths of its target tokens by encoder."""
    context = Context(
        depth=backbone.depth,
        width=backbone.width,
        patch=backbone.patch,
        channels=backbone.channels,
        height=backbone.height,
        path=config.diffusion.path,
        teacher=teacher,
        targets=widths,
    )
    return plugin_class("objective", config.objective.name)(context, **config.objective.options)


def build_student(
    config: Config, latents: Latents | Shape, teacher: TransformerBackbone | None, targets: Mapping[str, Targets]
) -> Student:
    """Build and initialize a student; the initial weights of the backbone depend on the seed only."""
    backbone = build_backbone(config, latents)
    backbone.initialize(torch.Generator().manual_seed(config.training.seed))
    objective = build_objective(config, backbone, teacher, {name: tokens.width for name, tokens in targets.items()})
    initialize(objective, torch.Generator().manual_seed(config.training.seed + 1))
    return Student(backbone, objective, config.diffusion.cosine_weight)
