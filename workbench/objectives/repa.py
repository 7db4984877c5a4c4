"""REPA (Yu et al. 2025): a shallow layer predicts a frozen pretrained encoder's tokens of the clean image."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.config import refuse_unknown
from workbench.config.ranges import FromStep, Layer, NotNegative, Width
from workbench.objectives import base, heads

# Paper and code agree. The encoder runs at each step, as published: stored tokens of DINOv2-B for ImageNet would take
# 500 GB.
_PUBLISHED = {
    "objective.encoder": "dinov2-b",
    "objective.stored": False,
    "objective.head_width": 2048,
    "backbone.qk_norm": False,
}
RECIPES = {"paper": _PUBLISHED, "released": _PUBLISHED}

# Published for SiT. There is no code for LightningDiT; it uses SiT's layer, like any other backbone.
PLACEMENT = {depth: {"layer": layer, "weight": 0.5, "stop_step": None} for depth, layer in ((12, 4), (24, 8), (28, 8))}


class Objective(base.Objective):
    """Negative cosine between head(f_layer) and the encoder's tokens, mean over tokens, then over encoders.

    ``encoder`` is one encoder or several separated by commas; each has its own head. ``stored`` is not used here: it
    decides whether `data.targets` encodes the images once and stores the tokens, or runs the encoder at each step. With
    ``stop_step`` this is HASTE's early stopping (250,000 steps for XL), without its alignment of attention maps. The
    loss is in -1..1 and is -1 for equal directions.

    Raises ValueError for an encoder without target tokens, and if the number of target tokens differs from the
    student's.
    """

    def __init__(
        self,
        context: base.Context,
        *,
        encoder: str = "effnet-lite0",
        stored: bool = True,
        layer: Layer = 4,
        head_width: Width = 2048,
        weight: NotNegative = 0.5,
        stop_step: FromStep | None = None,
    ):
        super().__init__(context)
        self.layer = self.check_layer("layer", layer)
        self.taps = (layer,)
        self.weight, self.stop_step = weight, stop_step
        self.heads = nn.ModuleDict()
        for name in (part.strip() for part in encoder.split(",")):
            refuse_unknown("objective.encoder", name, context.targets)
            self.heads[name] = heads.mlp(context.width, head_width, context.targets[name])

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        cosine = torch.stack([self._cosine(name, inputs) for name in self.heads]).mean(dim=0)
        return base.Alignment(-cosine, {"cosine": cosine.detach().mean()})

    def _cosine(self, name: str, inputs: base.Inputs) -> Float[Tensor, "b"]:
        f, target = inputs.features[self.layer], inputs.targets[name]
        if target.shape[1] != f.shape[1]:
            raise ValueError(
                f"objective.encoder {name!r} gives {target.shape[1]} tokens per image, the student has {f.shape[1]}; "
                f"they must be the same grid"
            )
        predicted = self.heads[name](f)
        # Squared norms overflow in half precision.
        with torch.autocast(f.device.type, enabled=False):
            return F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean(dim=1)
