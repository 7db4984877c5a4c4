"""LayerSync (Haghighi et al. 2025): a shallow layer turns towards a deeper one of the same forward pass."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.objectives import base

RECIPES = {recipe: {"backbone.qk_norm": False} for recipe in ("paper", "released")}

# Published for depth 28 only; the other pairs are ours, twice as deep as well. The released code's own default pair,
# 8 and 8, trains nothing.
PLACEMENT = {
    (backbone, depth): {"pairs": pairs, "weight": 0.2, "stop_step": None}
    for backbone in ("sit", "lightningdit")
    for depth, pairs in ((12, [[4, 8]]), (24, [[7, 14]]), (28, [[8, 16]]))
}


class Objective(base.Objective):
    """Minus the cosine between f_shallow and f_deep, mean over tokens, summed over ``pairs`` of (shallow, deep).

    No head and no teacher; the deep side is detached. A pair lies in -1..1 and is -1 for equal directions, as at the
    start, where the blocks of a new model pass their tokens on unchanged (adaLN-zero).

    Raises ValueError unless each pair is two layers of the student, shallow before deep: a layer with itself would be
    a constant -1.
    """

    def __init__(
        self,
        context: base.Context,
        *,
        pairs: tuple[tuple[int, int], ...] = ((4, 8),),
        weight: float = 0.2,
        stop_step: int | None = None,
    ):
        super().__init__(context)
        if not pairs:
            raise ValueError("objective.pairs is empty; it is a list of [shallow, deep] layers, such as [[4, 8]]")
        for shallow, deep in pairs:
            self.check_layer("pairs", shallow)
            self.check_layer("pairs", deep)
            if shallow >= deep:
                raise ValueError(f"objective.pairs [{shallow}, {deep}] must be a shallow layer, then a deeper one")
        self.pairs = pairs
        self.taps = tuple(sorted({layer for pair in pairs for layer in pair}))
        self.weight, self.stop_step = weight, stop_step

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        f = inputs.features
        cosines = torch.stack([_cosine(f[shallow], f[deep].detach()) for shallow, deep in self.pairs])
        return base.Alignment(-cosines.sum(dim=0), {"cosine": cosines.detach().mean()})


def _cosine(a: Float[Tensor, "b n d"], b: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
    """Cosine along the channels, mean over tokens, in single precision: squared norms overflow in half."""
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(a.float(), b.float(), dim=-1).mean(dim=1)
