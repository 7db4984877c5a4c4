"""Token maps: features shown as colours by their first three principal components."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from workbench.features.extract import Features


@dataclass(frozen=True)
class TokenMaps:
    """Images beside colour maps of their tokens; a panel is a title and ``n h w 3`` in 0..1; ``of`` says whose."""

    of: str
    images: UInt8[np.ndarray, "n c x y"]
    panels: list[tuple[str, Float[np.ndarray, "n h w 3"]]]


def pca_colours(tokens: Float[Tensor, "n m d"]) -> tuple[Float[np.ndarray, "n h w 3"], float]:
    """Three principal components, fitted jointly over all images, as red, green and blue; and the variance they hold.

    Each component's sign makes its largest loading positive; its 2nd to 98th percentile spans 0..1.
    """
    from sklearn.decomposition import PCA

    flat = rearrange(tokens.numpy(), "n m d -> (n m) d")
    pca = PCA(3, svd_solver="full").fit(flat)
    signs = np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(axis=1)])
    scores = pca.transform(flat) * signs
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = ((scores - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    side = round(tokens.shape[1] ** 0.5)
    maps = rearrange(colours, "(n h w) k -> n h w k", h=side, w=side)
    return maps.astype(np.float64), float(pca.explained_variance_ratio_.sum())


def layer_and_guided_maps(
    of: str,
    features: Features,
    images: UInt8[np.ndarray, "n c x y"],
    layers: Sequence[int],
    guided_layer: int,
    scales: Sequence[float],
) -> TokenMaps:
    """Panels of f_c at ``layers``, then of the guided feature of ``guided_layer`` at each of ``scales``."""
    panels = []
    for layer in layers:
        colours, share = pca_colours(features.f_c[layer])
        panels.append((f"layer {layer}\n{share:.0%} of variance", colours))
    for scale in scales:
        colours, share = pca_colours(features.guided(guided_layer, scale))
        panels.append((f"layer {guided_layer}, w = {scale:g}\n{share:.0%} of variance", colours))
    return TokenMaps(of, images, panels)
