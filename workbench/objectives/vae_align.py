"""VAE-based alignment, stage 1 of Self-Transcendence (Eq. 1): a shallow feature predicts the latent.

The paper aligns with the clean latent z. The released code aligns with the velocity, with another head and a time
window. Both are recipes. The layer (2) is only given in the released script.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from workbench.config.ranges import FromStep, Layer, NotNegative, Share, Width
from workbench.diffusion.tokens import patchify
from workbench.objectives import base, heads

RECIPES = {
    "paper": {
        "objective.target": "clean",
        "objective.head": "mlp",
        "objective.window": "none",
        "backbone.qk_norm": False,
    },
    "released": {
        "objective.target": "velocity",
        "objective.head": "mlp-norm-linear",
        "objective.window": "scale",
        "objective.window_low": 0.4,
        "objective.window_high": 0.7,
        "backbone.qk_norm": True,
    },
}

# Layer and weight are from the released script, which is for B only; for other sizes they are ours. The paper gives
# neither.
PLACEMENT = {None: {"layer": 2, "weight": 0.5}}

_HEADS = {"mlp": heads.mlp, "mlp-norm-linear": heads.mlp_norm_linear}


class Objective(base.Objective):
    """Mean squared error between head(f_layer) and the target, per sample (Eq. 1; the code's mean, not a sum)."""

    def __init__(
        self,
        context: base.Context,
        *,
        layer: Layer = 2,
        target: Literal["clean", "velocity"] = "clean",
        head: Literal["mlp", "mlp-norm-linear"] = "mlp",
        head_width: Width = 2048,
        weight: NotNegative = 0.5,
        stop_step: FromStep | None = None,
        window: Literal["none", "select", "scale"] = "none",
        window_low: Share = 0.4,
        window_high: Share = 0.7,
    ):
        super().__init__(context)
        base.check_window(window_low, window_high)
        self.layer = self.check_layer("layer", layer)
        self.taps = (layer,)
        self.target, self.weight, self.stop_step = target, weight, stop_step
        self.window = (window, window_low, window_high)
        self.head = _HEADS[head](context.width, head_width, context.patch**2 * context.channels)

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        return base.Alignment(base.windowed(self._error, inputs, *self.window), {})

    def _error(self, inputs: base.Inputs) -> Float[Tensor, "b"]:
        target = patchify(inputs.z if self.target == "clean" else inputs.v, self.context.patch)
        predicted = self.head(inputs.features[self.layer]).float()
        return (predicted - target).square().mean(dim=(1, 2))
