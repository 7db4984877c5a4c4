"""LayerSync (Haghighi et al. 2025): a shallow layer is aligned with a deeper layer of the same forward pass."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.config.ranges import FromStep, Layer, NotNegative
from workbench.objectives import base

# With several pairs the released code overwrites the loss of each pair with the next, so only the last one counts.
RECIPES = {
    "paper": {"objective.counted": "all", "backbone.qk_norm": False},
    "released": {"objective.counted": "last", "backbone.qk_norm": False},
}

# Published for depth 28 only; the other pairs are ours, with the same ratio of two. The released code's default pair,
# 8 and 8, trains nothing.
PLACEMENT = {
    depth: {"pairs": pairs, "weight": 0.2, "stop_step": None}
    for depth, pairs in ((12, [[4, 8]]), (24, [[7, 14]]), (28, [[8, 16]]))
}


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the option ``counted`` where it has no effect, so that older runs keep their fingerprint."""
    same = options["counted"] == "all" or len(options["pairs"]) == 1
    return {key: value for key, value in options.items() if key != "counted" or not same}


class Objective(base.Objective):
    """Negative cosine between f_shallow and f_deep, mean over tokens, summed over ``pairs`` of (shallow, deep).

    ``counted`` "last" only uses the last pair, as the released code does; with one pair there is no difference. There
    is no head and no teacher; the deep side is detached. The term of a pair is in -1..1 and is -1 for equal directions,
    as at initialization, when all blocks are the identity (adaLN-zero).

    Raises ValueError unless each pair is two layers of the student, shallow before deep; a layer with itself would give
    a constant -1.
    """

    def __init__(
        self,
        context: base.Context,
        *,
        pairs: tuple[tuple[Layer, Layer], ...] = ((4, 8),),
        counted: Literal["all", "last"] = "all",
        weight: NotNegative = 0.2,
        stop_step: FromStep | None = None,
    ):
        super().__init__(context)
        if not pairs:
            raise ValueError("objective.pairs is empty; it is a list of [shallow, deep] layers, such as [[4, 8]]")
        for shallow, deep in pairs:
            self.check_layer("pairs", shallow)
            self.check_layer("pairs", deep)
            if shallow >= deep:
                raise ValueError(f"objective.pairs [{shallow}, {deep}] must be a shallow layer, then a deeper one")
        self.pairs = pairs if counted == "all" else pairs[-1:]
        self.taps = tuple(sorted({layer for pair in self.pairs for layer in pair}))
        self.weight, self.stop_step = weight, stop_step

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        f = inputs.features
        cosines = torch.stack([_cosine(f[shallow], f[deep].detach()) for shallow, deep in self.pairs])
        return base.Alignment(-cosines.sum(dim=0), {"cosine": cosines.detach().mean()})


def _cosine(a: Float[Tensor, "b n d"], b: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
    """Cosine along channels, mean over tokens, in single precision, as squared norms overflow in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(a.float(), b.float(), dim=-1).mean(dim=1)
