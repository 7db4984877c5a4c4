"""Self-Transcendence, stage 2 (Eqs. 3 and 4): a shallow layer predicts a frozen model's guided feature.

The teacher, a model trained in stage 1, is evaluated with the class and with the null class. The target
f_g = f_u + w (f_c - f_u) extrapolates along the difference due to the class. Alignment ends at ``stop_step``.
"""

import contextlib
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.config.ranges import FromStep, Layer, NotNegative, Share, Steps, Width
from workbench.diffusion.guidance import guide
from workbench.objectives import base, heads

RECIPES = {
    "paper": {
        "objective.window": "none",
        "objective.normalize": False,
        "objective.teacher_weights": "ema",  # the paper does not say
        "objective.teacher_labels": "original",
        "objective.teacher_precision": "ambient",
        "backbone.qk_norm": False,
    },
    "released": {
        "objective.window": "scale",
        "objective.window_low": 0.4,
        "objective.window_high": 0.7,
        "objective.normalize": False,
        "objective.teacher_weights": "raw",
        "objective.teacher_labels": "original",
        "objective.teacher_precision": "float32",
        "backbone.qk_norm": True,
    },
}

# The layer at half the depth is aligned with the layer at two thirds. The paper stops after 20 epochs for B and 10 for
# L and XL, with batch size 256 for SiT and 1024 for LightningDiT. For XL its rule allows 18 or 19.
# A backbone that is not listed uses the values of SiT with its depth.
PLACEMENT = {
    12: {"layer": 6, "teacher_layer": 8, "guidance_scale": 30.0, "weight": 0.5, "stop_step": 100_000},
    24: {"layer": 12, "teacher_layer": 16, "guidance_scale": 30.0, "weight": 0.5, "stop_step": 50_000},
    28: {"layer": 14, "teacher_layer": 18, "guidance_scale": 30.0, "weight": 0.5, "stop_step": 50_000},
    ("lightningdit", 12): {"layer": 6, "teacher_layer": 8, "guidance_scale": 10.0, "weight": 0.5, "stop_step": 25_020},
    ("lightningdit", 28): {
        "layer": 14,
        "teacher_layer": 18,
        "guidance_scale": 10.0,
        "weight": 0.5,
        "stop_step": 12_510,
    },
}


class Objective(base.Objective):
    """Mean squared error between head(f_layer) of the student and f_g of the teacher, per sample (Eq. 4).

    ``teacher`` is a run folder or a preset's name and ``teacher_step`` one of its checkpoints (the newest if None); the
    trainer loads and freezes the run, with its ``teacher_weights``. ``teacher_precision`` "ambient" is that of
    training. "bfloat16" multiplies matrices in bfloat16 and keeps the tokens between blocks in single precision, as w
    amplifies rounding errors of f_c - f_u (at w = 10 on a teacher of 175 steps, the error of f_g is 1.5 %, and 8 % with
    everything in bfloat16). ``teacher_labels`` selects the teacher's labels where the student's were dropped: the
    "original" ones, or the null class like the "student". ``normalize`` applies a layer norm without parameters to each
    target token.
    """

    def __init__(
        self,
        context: base.Context,
        *,
        teacher: str,
        teacher_step: Steps | None = None,
        teacher_weights: Literal["ema", "raw"] = "ema",
        teacher_precision: Literal["ambient", "float32", "bfloat16"] = "ambient",
        teacher_labels: Literal["original", "student"] = "original",
        teacher_layer: Layer = 8,
        layer: Layer = 6,
        guidance_scale: NotNegative = 30.0,
        normalize: bool = False,
        head_width: Width = 2048,
        weight: NotNegative = 0.5,
        stop_step: FromStep | None = 100_000,
        window: Literal["none", "select", "scale"] = "none",
        window_low: Share = 0.4,
        window_high: Share = 0.7,
    ):
        super().__init__(context)
        base.check_window(window_low, window_high)
        if context.teacher is None:
            raise ValueError(
                f"objective.teacher {teacher!r} was not loaded; pass the frozen teacher in context.teacher"
            )
        self.teacher_layer = self.check_layer("teacher_layer", teacher_layer)
        self.layer = self.check_layer("layer", layer)
        self.taps = (layer,)
        self.guidance_scale, self.normalize = guidance_scale, normalize
        self.teacher_labels, self.teacher_precision = teacher_labels, teacher_precision
        self.weight, self.stop_step = weight, stop_step
        self.window = (window, window_low, window_high)
        self.head = heads.mlp(context.width, head_width, context.teacher.width)

    def rule(self) -> str:
        depth = self.context.depth
        return f"; the paper's rule for depth {depth} is layer {depth // 2} aligned with layer {2 * depth // 3}"

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        metrics: dict[str, Tensor] = {}
        return base.Alignment(base.windowed(lambda part: self._error(part, metrics), inputs, *self.window), metrics)

    def _error(self, inputs: base.Inputs, metrics: dict[str, Tensor]) -> Float[Tensor, "b"]:
        target, difference = self.target(inputs)
        metrics["norm_guided"] = target.norm(dim=-1).mean()
        metrics["norm_difference"] = difference
        predicted = self.head(inputs.features[self.layer]).float()
        return (predicted - target).square().mean(dim=(1, 2))

    @torch.no_grad()
    def target(self, inputs: base.Inputs) -> tuple[Float[Tensor, "b n d"], Float[Tensor, ""]]:
        """The guided feature f_g (Eq. 3) and the mean norm of f_c - f_u, from one pass over both label branches."""
        teacher = self.context.teacher
        assert teacher is not None  # refused by the constructor
        if not len(inputs.t):  # no time in the window: attention kernels of GPUs may refuse an empty batch
            tokens = inputs.features[self.layer].shape[1]
            return inputs.x_t.new_zeros(0, tokens, teacher.width), inputs.x_t.new_full((), torch.nan)
        labels = inputs.labels if self.teacher_labels == "original" else inputs.y
        both = torch.cat([labels, torch.full_like(labels, teacher.null_label)])
        with self._precision(inputs.x_t.device.type):
            f = teacher.features(inputs.x_t.repeat(2, 1, 1, 1), inputs.t.repeat(2), both, (self.teacher_layer,))
        f_c, f_u = f[self.teacher_layer].float().chunk(2)
        f_g = guide(f_u, f_c, self.guidance_scale)
        if self.normalize:
            f_g = F.layer_norm(f_g, f_g.shape[-1:])
        return f_g, (f_c - f_u).norm(dim=-1).mean()

    def _precision(self, device: str) -> contextlib.AbstractContextManager:
        if self.teacher_precision == "ambient":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16, enabled=self.teacher_precision == "bfloat16")
