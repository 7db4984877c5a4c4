"""Attention weights of a run: of chosen tokens, and their entropy by layer, head and time."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import backbone_sizes
from workbench.data.latents import Latents
from workbench.diffusion.devices import FittingBatches, sent
from workbench.diffusion.paths import get_path
from workbench.diffusion.precision import chosen_precision, reduced, tf32
from workbench.features.extract import noisy_latents, opened_latents
from workbench.features.grid import whole_numbers
from workbench.runs.models import load_backbone
from workbench.runs.store import Run, runs_root

_BATCH = 50  # images at a time, fewer if memory runs out: a layer has heads x tokens x tokens weights per image

Precision = Literal["no", "bf16", "auto"]


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


def attending(run: Run, layers: Sequence[int], step: int | None = None, weights: str = "ema") -> TransformerBackbone:
    """The frozen backbone of a run, on a GPU if there is one, whose attention in `layers` can be read.

    Layer k is the attention in the k-th block, so there is no layer 0. Raises ValueError for a layer that the model
    does not have, and a backbone whose blocks have no attention with weights.
    """
    named = run.config.backbone
    numbers, depth = whole_numbers("layers", layers), backbone_sizes(named.name)[named.options["size"]].depth
    if not numbers or not 1 <= min(numbers) <= max(numbers) <= depth:
        raise ValueError(f"layers are {list(layers)}; allowed are 1 to {depth}, whose blocks have attention")
    backbone = load_backbone(run, step, weights)
    for layer in numbers:
        if not callable(getattr(getattr(backbone.blocks[layer - 1], "attn", None), "weights", None)):
            raise ValueError(
                f"layer {layer} of backbone {named.name} has no attention weights to show; a block has "
                "them as a module `attn` with a method `weights`"
            )
    return backbone.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def attention_weights(
    run: Run,
    backbone: TransformerBackbone,
    latents: Latents,
    rows: Int64[np.ndarray, " n"],
    layers: Sequence[int],
    t: float,
    labels: Int64[np.ndarray, " n"],
    seed: int = 0,
    precision: Precision = "no",
) -> Iterator[tuple[slice, dict[int, Float[Tensor, "b heads n m"]]]]:
    """Attention weights by layer of some images at a time, with the noise of `extract`: which images, and the weights.

    `labels` are those that the model is given; a row of weights adds up to 1. `precision` is that of the model, as of
    `extract`; the weights are float32. Raises ValueError for weights that are not finite.
    """
    path, device = get_path(run.config.diffusion.path), next(backbone.parameters()).device
    precision = chosen_precision(precision)

    @torch.no_grad()  # the decorator of a generator function does not cover its functions
    def weights(part: slice) -> dict[int, Tensor]:
        _, x_t = noisy_latents(latents, rows[part], path, t, seed)
        times, y = torch.full((len(x_t),), t), torch.from_numpy(labels[part])
        x_t, times, y = (sent(of, device) for of in (x_t, times, y))
        with tf32(run.config.training.tf32), reduced(precision, device), attention_of(backbone, layers) as seen:
            backbone.features(x_t, times, y, (max(layers),))
        return {layer: seen[layer].float() for layer in layers}

    for part, seen in FittingBatches(_BATCH)(weights, len(rows)):
        for layer in layers:
            if not seen[layer].isfinite().all():
                raise ValueError(f"layer {layer}, t = {t:g}: attention is not finite; did {run.name} diverge?")
        yield part, seen


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
    precision: Precision = "no",
    root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float64[np.ndarray, "layers times heads"]:
    """Entropy of each head's attention in each layer and time (`attention_entropy`): 1 is uniform, 0 a single token.

    Averaged over the first `images` of the run's training set, with the null label and the noise of `extract`. Layer k
    is the attention in the k-th block, so there is no layer 0. `precision` is as of `extract`. Raises ValueError for a
    layer that the model does not have, a time outside 0 to 1, and non-finite attention.
    """
    latents = opened_latents(run, None, "train", runs_root() if root is None else root, images)
    backbone = attending(run, layers, step, weights)
    layers = whole_numbers("layers", layers)
    if not 1 <= images <= len(latents):
        raise ValueError(f"images is {images}; allowed are 1 to {len(latents)}")
    wrong = [t for t in times if not 0 <= t <= 1]
    if wrong or not len(times):
        raise ValueError(f"times has {wrong[0] if wrong else 'nothing'}; allowed are 0 to 1")
    total = np.zeros((len(layers), len(times), backbone.heads))
    null = np.full(images, backbone.null_label)
    for column, t in enumerate(times):
        found = attention_weights(run, backbone, latents, np.arange(images), layers, t, null, seed, precision)
        for part, seen in found:
            for row, layer in enumerate(layers):
                total[row, column] += attention_entropy(seen[layer]).cpu().numpy() * (part.stop - part.start)
            if progress:
                progress(column * images + part.stop, len(times) * images)
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
