"""Features of a backbone: tokens by layer, with the class and with the null class kept apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.data.codecs import sample_posterior
from workbench.data.latents import Latents
from workbench.diffusion.guidance import guide
from workbench.diffusion.paths import LINEAR, Path, interpolate
from workbench.diffusion.randomness import normal

_BATCH = 100


@dataclass(frozen=True)
class Features:
    """Tokens at one time: f_c (true label) and f_u (null label) by layer, float32 ``n tokens width``."""

    t: float
    f_c: dict[int, Float[Tensor, "n m d"]]
    f_u: dict[int, Float[Tensor, "n m d"]]

    def guided(self, layer: int, scale: float) -> Float[Tensor, "n m d"]:
        """f_g = f_u + scale (f_c - f_u), Eq. 3: exact at any scale without running the network again."""
        return guide(self.f_u[layer], self.f_c[layer], scale)


@torch.no_grad()
def extract(
    backbone: TransformerBackbone,
    latents: Latents,
    indices: Sequence[int],
    layers: Sequence[int],
    t: float,
    *,
    seed: int = 0,
    conditional: bool = True,
    path: Path = LINEAR,
) -> Features:
    """Features of the images at ``indices`` noised to time ``t`` on ``path``, which is that of the model's training.

    The noise of an image depends on ``seed`` and its index alone, so every model sees the same x_t. With
    ``conditional`` False only f_u is computed, which is what a probe needs. Stops at the deepest layer asked.
    """
    parts: dict[str, dict[int, list[Tensor]]] = {
        "f_c": {n: [] for n in layers},
        "f_u": {n: [] for n in layers},
    }
    shape = (latents.channels, latents.height, latents.height)
    for start in range(0, len(indices), _BATCH):
        chosen = np.asarray(indices[start : start + _BATCH])
        z = sample_posterior(latents.moments(chosen), normal(seed, "feature-posterior", chosen, shape))
        times = torch.full((len(chosen),), t)
        x_t = interpolate(path, z, normal(seed, "feature-noise", chosen, shape), times).x_t
        labels = torch.from_numpy(latents.labels[chosen])
        branches = {"f_u": torch.full_like(labels, backbone.null_label)}
        if conditional:
            branches["f_c"] = labels
        for name, y in branches.items():
            for layer, tokens in backbone.features(x_t, times, y, tuple(layers)).items():
                parts[name][layer].append(tokens.float())
    joined = {name: {n: torch.cat(f) for n, f in part.items() if f} for name, part in parts.items()}
    return Features(t=t, **joined)
