"""Dispersive Loss (Wang and He 2025): features of a batch repel each other, without pairs, head or teacher."""

import math

import torch
import torch.distributed as dist
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.config.ranges import FromStep, Layer, NotNegative, Positive
from workbench.objectives import base

# The paper uses the layer at a quarter of the depth, the PyTorch release the last one. Both compute distances within
# one process's batch (16 and 32 samples). The paper's Adam has beta2 0.95, the release's 0.999.
RECIPES = {
    "paper": {
        "objective.layer": lambda depth: depth // 4,
        "objective.temperature": 0.5,
        "objective.weight": 0.5,
        "objective.stop_step": None,
        "objective.gather": False,
        "backbone.qk_norm": False,
    },
    "released": {
        "objective.layer": lambda depth: depth,
        "objective.temperature": 1.0,
        "objective.weight": 0.25,
        "objective.stop_step": None,
        "objective.gather": False,
        "backbone.qk_norm": False,
    },
}


class Objective(base.Objective):
    """Log of the mean over all ordered pairs, i = j included, of exp(-d_ij / temperature); the InfoNCE-L2 variant.

    d_ij = |z_i - z_j|^2 / (n d), where z is the flattened tapped feature of a sample; both sides get gradients. Each
    sample gets the value of the whole batch. It is 0 if all samples are equal and log(1/b), its minimum, if they are
    far apart. With ``gather`` the batch is gathered from all processes; with accumulation it is always a micro-batch.

    Raises ValueError for a batch of one sample, which has no pairs.
    """

    compares_samples = True

    def __init__(
        self,
        context: base.Context,
        *,
        layer: Layer = 3,
        temperature: Positive = 0.5,
        weight: NotNegative = 0.5,
        stop_step: FromStep | None = None,
        gather: bool = False,
    ):
        super().__init__(context)
        if temperature <= 0:
            raise ValueError(f"objective.temperature must be above 0; got {temperature}")
        self.layer = self.check_layer("layer", layer)
        self.taps = (layer,)
        self.temperature, self.gather = temperature, gather
        self.weight, self.stop_step = weight, stop_step

    def loss(self, inputs: base.Inputs) -> base.Alignment:
        own = rearrange(inputs.features[self.layer], "b n d -> b (n d)").float()
        gather = self.gather and dist.is_available() and dist.is_initialized()
        rows = _every_row(own) if gather else own
        count = len(rows)
        if count < 2:
            raise ValueError("dispersive compares the samples of a micro-batch and needs two or more; got 1")
        with torch.autocast(own.device.type, enabled=False):
            distances = squared_distances(rows)
            loss = torch.logsumexp(-distances.flatten() / self.temperature, dim=0) - 2 * math.log(count)
        if gather:
            # Each process only has the gradient of its own rows, and the mean over processes divides it by their
            # number; this multiplies the gradient back without changing the value.
            loss = loss + (dist.get_world_size() - 1) * (loss - loss.detach())
        distance = distances.detach().sum() / (count * (count - 1))
        return base.Alignment(repeat(loss, "-> b", b=len(own)), {"distance": distance})


def squared_distances(z: Float[Tensor, "b k"]) -> Float[Tensor, "b b"]:
    """Mean over k of (z_i - z_j)^2 for all ordered pairs, from inner products: b^2 numbers in memory, not b^2 k.

    Rows are centred first, which keeps distances and avoids cancellation if all rows share a large component. The
    diagonal is exactly 0.
    """
    z = z - z.mean(dim=0)
    products = z @ z.T / z.shape[1]
    squares = products.diagonal()
    return squares[:, None] + squares[None, :] - 2 * products


def _every_row(own: Float[Tensor, "b k"]) -> Float[Tensor, "all k"]:
    """Rows of all processes in rank order; gradients only flow to this process's own rows."""
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own.detach().contiguous())
    rows[dist.get_rank()] = own
    return torch.cat(rows)
