"""Attention weights of a run, and their entropy by layer, head and time."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.data.latents import open_latents
from workbench.data.vae import sample_posterior
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.precision import tf32
from workbench.diffusion.randomness import normal
from workbench.features.grid import whole_numbers
from workbench.runs.models import check_latents_of, load_backbone
from workbench.runs.store import Run, runs_root

_BATCH = 50  # a layer has heads x tokens x tokens weights per image


def attention_entropy(weights: Float[Tensor, "b heads q m"]) -> Float[Tensor, " heads"]:
    """Entropy of each head's attention over m keys, averaged over images and queries and divided by log m.

    1 is uniform attention, 0 is attention to a single token. Raises ValueError if m < 2, a weight is negative, or the
    weights of a query do not add up to 1 within 1e-3.
    """
    keys = weights.shape[-1]
    if keys < 2:
        raise ValueError("attention over 1 token has no entropy; it needs at least 2")
    weights = weights.double()
    sums = weights.sum(dim=-1)
    if not ((sums - 1).abs() <= 1e-3).all() or (weights < 0).any():
        raise ValueError(
            f"rows of attention add up to {sums.min():.4g} .. {sums.max():.4g} and are at least {weights.min():.4g}; "
            "allowed are rows that add up to 1, with weights of 0 or more"
        )
    return reduce(torch.special.entr(weights), "b heads q m -> heads", "sum") / (sums[:, 0].numel() * math.log(keys))


@torch.no_grad()
def attention_entropies(
    run: Run,
    images: int,
    layers: Sequence[int],
    times: Sequence[float],
    *,
    step: int | None = None,
    weights: str = "ema",
    seed: int = 0,
    root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float64[np.ndarray, "layers times heads"]:
    """Entropy of each head's attention in each layer and time (`attention_entropy`): 1 is uniform, 0 a single token.

    Averaged over the first `images` of the run's training set, with the null label and the noise of `extract`. Layer k
    is the attention in the k-th block, so there is no layer 0. Raises ValueError for a layer that the model does not
    have, a time outside 0 to 1, and non-finite attention.
    """
    latents = open_latents(run.config, "train", (runs_root() if root is None else root) / ".latents")
    check_latents_of(run, latents)
    backbone = load_backbone(run, step, weights)
    backbone = backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    layers = whole_numbers("layers", layers)
    if not layers or not 1 <= min(layers) <= max(layers) <= backbone.depth:
        raise ValueError(f"layers are {list(layers)}; allowed are 1 to {backbone.depth}, whose blocks have attention")
    if not 1 <= images <= len(latents):
        raise ValueError(f"images is {images}; allowed are 1 to {len(latents)}")
    wrong = [t for t in times if not 0 <= t <= 1]
    if wrong or not len(times):
        raise ValueError(f"times has {wrong[0] if wrong else 'nothing'}; allowed are 0 to 1")
    total = np.zeros((len(layers), len(times), backbone.heads))
    path, device = get_path(run.config.diffusion.path), next(backbone.parameters()).device
    shape = (latents.channels, latents.height, latents.height)
    for column, t in enumerate(times):
        for start in range(0, images, _BATCH):
            chosen = np.arange(start, min(start + _BATCH, images))
            z = sample_posterior(latents.moments(chosen), normal(seed, "feature-posterior", chosen, shape))
            at = torch.full((len(chosen),), t)
            x_t = interpolate(path, z, normal(seed, "feature-noise", chosen, shape), at).x_t
            y = torch.full((len(chosen),), backbone.null_label)
            with tf32(run.config.training.tf32), attention_of(backbone, layers) as seen:
                backbone.features(x_t.to(device), at.to(device), y.to(device), (max(layers),))
            for row, layer in enumerate(layers):
                if not seen[layer].isfinite().all():
                    raise ValueError(f"layer {layer}, t = {t:g}: attention is not finite; did {run.name} diverge?")
                total[row, column] += attention_entropy(seen[layer]).cpu().numpy() * len(chosen)
            if progress:
                progress(column * images + int(chosen[-1]) + 1, len(times) * images)
    return total / images


@contextmanager
def attention_of(
    backbone: TransformerBackbone, layers: Sequence[int]
) -> Iterator[dict[int, Float[Tensor, "b heads n m"]]]:
    """Context that records the attention weights of these layers, by layer number, in each call of the backbone.

    The fused attention kernel does not return its weights, so hooks record its inputs and compute them.
    """
    recorded: dict[int, Tensor] = {}

    def recorder(layer: int):
        def hook(module, arguments, keywords):
            recorded[layer] = module.weights(*arguments, **keywords)

        return hook

    attentions = {layer: backbone.blocks[layer - 1].get_submodule("attn") for layer in layers}
    handles = [
        attention.register_forward_pre_hook(recorder(layer), with_kwargs=True)
        for layer, attention in attentions.items()
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
