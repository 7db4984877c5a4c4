"""REPA (Yu et al. 2025): a shallow layer predicts what a frozen outside encoder says of the clean image."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.config import refuse_unknown
from workbench.config.ranges import FromStep, Layer, NotNegative, Width
from workbench.objectives import base, heads

# Paper and code agree. The encoder runs at each step, as published: stored tokens of DINOv2-B for ImageNet would fill
# 500 GB.
_PUBLISHED = {
    "objective.encoder": "dinov2-b",
    "objective.stored": False,
    "objective.head_width": 2048,
    "backbone.qk_norm": False,
}
RECIPES = {"paper": _PUBLISHED, "released": _PUBLISHED}

# Published for SiT; for LightningDiT there is no code, and the layer is SiT's, as for any other backbone.
PLACEMENT = {depth: {"layer": layer, "weight": 0.5, "stop_step": None} for depth, layer in ((12, 4), (24, 8), (28, 8))}


class Objective(base.Objective):
    """Minus the cosine between head(f_layer) and the encoder's token, mean over tokens, then over encoders.

    ``encoder`` names one encoder or several joined by commas; each has a head of its own. ``stored`` is of no
    concern here: it tells the data side to encode the images once and keep the tokens, or to run the encoder at each
    step. With ``stop_step`` set this is the early stop of HASTE (250,000 steps for XL), without HASTE's alignment of
    attention maps. The loss lies in -1..1 and is -1 for equal directions.

    Raises ValueError for an encoder without target tokens, and for target tokens that are not as many as the
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
                f"objective.encoder {name!r} gives {target.shape[1]} tokens an image, the student has {f.shape[1]}; "
                f"they must be the same grid"
            )
        predicted = self.heads[name](f)
        # Squared norms overflow in half precision.
        with torch.autocast(f.device.type, enabled=False):
            return F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean(dim=1)
