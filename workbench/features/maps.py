"""Token maps: features shown as colours by their first three principal components."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from workbench.features.colours import map_components
from workbench.features.grid import FeatureGrid


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
    components = map_components(tokens)
    return components.colours().maps, float(components.explained.sum())


def layer_and_guided_maps(
    of: str,
    features: FeatureGrid,
    t: float,
    images: UInt8[np.ndarray, "n c x y"],
    layers: Sequence[int],
    guided_layer: int,
    scales: Sequence[float],
) -> TokenMaps:
    """Panels at time ``t``: f_c at ``layers``, then the guided feature of ``guided_layer`` at each of ``scales``."""
    panels = []
    for layer in layers:
        colours, share = pca_colours(features.read(layer, t, "true").float())
        panels.append((f"layer {layer}\n{share:.0%} of variance", colours))
    for scale in scales:
        colours, share = pca_colours(features.guided(guided_layer, t, scale))
        panels.append((f"layer {guided_layer}, w = {scale:g}\n{share:.0%} of variance", colours))
    return TokenMaps(of, images, panels)
