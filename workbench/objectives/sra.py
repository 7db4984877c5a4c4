"""SRA (Jiang et al. 2025): a shallow layer predicts a deep layer of the EMA model at a less noisy time.

The teacher is the EMA of the student's weights. It gets the same image and noise, at a time that is smaller by a random
offset.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.config.ranges import FromStep, Layer, NotNegative, Positive, Share, Steps
from workbench.diffusion.paths import get_path, interpolate
from workbench.objectives import base

_EPOCH = 5004  # steps at batch 256 on ImageNet

# The released code now defaults to a cosine loss with constant weight, computed along the tokens.
RECIPES = {
    "paper": {
        "objective.loss": "smooth-l1",
        "objective.beta": 0.05,
        "objective.offset": 0.2,
        "objective.weight": 0.2,
        "objective.decay_start": 149 * _EPOCH,
        "objective.decay_length": 1000 * _EPOCH,
        "objective.stop_step": None,
        "backbone.qk_norm": False,
    },
    "released": {
        "objective.loss": "cosine",
        "objective.axis": "tokens",
        "objective.offset": 0.2,
        "objective.weight": 0.5,
        "objective.decay_start": None,
        "objective.stop_step": None,
        "backbone.qk_norm": False,
    },
}

# Published for B and XL; there is none for depth 24.
PLACEMENT = {
    12: {"layer": 3, "teacher_layer": 8},
    28: {"layer": 8, "teacher_layer": 20},
}


class Objective(base.Objective):
    """Distance between head(f_layer) at (x_t, t) and the EMA model's f_teacher_layer at (x_t', t'), per sample.

    t' = max(0, t - ``offset`` u) with u uniform in 0..1. Labels dropped for the student are dropped for the teacher.
    ``loss`` "smooth-l1", with parameter ``beta``, is averaged over tokens and channels. "cosine" is the mean of 1 - cos
    along ``axis``: the channels of each token or, as released, the tokens of each channel. From ``decay_start`` on the
    weight decays by a factor of ten in ``decay_length`` steps and never reaches 0: 149 and 1000 epochs in the paper at
    256 pixels, 99 and 800 at 512. The published code reduces it once per epoch; here it decays at each step and is
    equal at the beginning of an epoch.
    """

    def __init__(
        self,
        context: base.Context,
        *,
        layer: Layer = 3,
        teacher_layer: Layer = 8,
        loss: Literal["smooth-l1", "cosine"] = "smooth-l1",
        beta: Positive = 0.05,
        axis: Literal["channels", "tokens"] = "channels",
        offset: Share = 0.2,
        weight: NotNegative = 0.2,
        decay_start: FromStep | None = None,
        decay_length: Steps = 1000 * _EPOCH,
        stop_step: FromStep | None = None,
    ):
        super().__init__(context)
        if not 0 <= offset <= 1:
            raise ValueError(f"objective.offset must be in [0, 1]; got {offset}")
        if beta <= 0 or decay_length < 1:
            raise ValueError(
                f"objective.beta must be above 0 and objective.decay_length at least 1; got {beta} and {decay_length}"
            )
        self.layer = self.check_layer("layer", layer)
        self.teacher_layer = self.check_layer("teacher_layer", teacher_layer)
        self.taps = (layer,)
        self.kind, self.beta, self.axis, self.offset = loss, beta, axis, offset
        self.weight, self.stop_step = weight, stop_step
        self.decay_start, self.decay_length = decay_start, decay_length
        width = context.width
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def weight_at(self, step: int) -> float:
        """weight * 0.1^((step - decay_start) / decay_length) from ``decay_start`` on."""
        late = 0 if self.decay_start is None else max(0, step - self.decay_start)
        return super().weight_at(step) * 0.1 ** (late / self.decay_length)

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        target = self.target(inputs)
        predicted = self.head(inputs.features[self.layer])
        with torch.autocast(target.device.type, enabled=False):
            predicted = predicted.float()
            metrics = {
                "cosine": F.cosine_similarity(predicted.detach(), target, dim=-1).mean(),
                "norm_target": target.norm(dim=-1).mean(),
            }
            return base.Alignment(self._error(predicted, target), metrics)

    @torch.no_grad()
    def target(self, inputs: base.Inputs) -> Float[Tensor, "b n d"]:
        """The EMA model's tokens at t', not normalized and in single precision, as published."""
        t = (inputs.t - self.offset * inputs.u).clamp(0, 1)
        x_t = interpolate(get_path(self.context.path), inputs.z, inputs.eps, t).x_t
        with torch.autocast(x_t.device.type, enabled=False):
            return inputs.ema.features(x_t, t, inputs.y, (self.teacher_layer,))[self.teacher_layer]

    def _error(self, predicted: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
        if self.kind == "smooth-l1":
            return F.smooth_l1_loss(predicted, target, reduction="none", beta=self.beta).mean(dim=(1, 2))
        cosine = F.cosine_similarity(predicted, target, dim=1 if self.axis == "tokens" else 2)
        return (1 - cosine).mean(dim=1)
