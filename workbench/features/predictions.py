"""What a model was given and what it predicts: x_t, and the clean latents that its velocity implies."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import DataConfig
from workbench.diffusion.guidance import guide
from workbench.diffusion.paths import get_path, velocity_to_z
from workbench.diffusion.precision import tf32
from workbench.features.extract import noisy_latents, opened_latents
from workbench.features.grid import FeatureGrid
from workbench.runs.models import load_backbone
from workbench.runs.store import Run

_BATCH = 50


@dataclass(frozen=True, eq=False)
class Predictions:
    """Latents by time: `x_t` as the model was given it, and the clean ones that it predicts from it.

    `z_u` is predicted with the null label, `z_c` with the true one: z_hat = x_t - t v on the linear path.
    """

    x_t: Float[Tensor, "t n c h w"]
    z_u: Float[Tensor, "t n c h w"]
    z_c: Float[Tensor, "t n c h w"]

    def guided(self, w: float | int) -> Float[Tensor, "t n c h w"]:
        """The prediction of the guided velocity v_u + w (v_c - v_u); exact, as z_hat is affine in v."""
        return guide(self.z_u, self.z_c, float(w))


@torch.no_grad()
def predict_clean(
    run: Run,
    features: FeatureGrid,
    *,
    data: DataConfig | None = None,
    seed: int = 0,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The clean latents that a run's model predicts of the images and times of its features.

    `features` are those of `extract` with the last layer, the labels "null" and "true", the same `seed` and all tokens:
    the final layer reads the velocity from them. Blocks run again only for backbones that do not make their velocity by
    `read_out`. `progress` is called with (done, total) times.
    """
    latents = opened_latents(run, data, "train", root, len(features.rows))
    backbone = load_backbone(run, features.step).to("cuda" if torch.cuda.is_available() else "cpu")
    path, rows = get_path(run.config.diffusion.path), np.asarray(features.rows)
    labels = {"null": torch.full_like(features.true, backbone.null_label), "true": features.true}
    noisy: list[Tensor] = []
    predicted: dict[str, list[Tensor]] = {label: [] for label in labels}
    readable = None
    with tf32(run.config.training.tf32):
        for number, t in enumerate(features.times, start=1):
            _, x_t = noisy_latents(latents, rows, path, t, seed)
            noisy.append(x_t)
            times = torch.full((len(rows),), t)
            for label, y in labels.items():
                tokens = features.read(backbone.depth, t, label).float()
                if readable is None:
                    readable = _is_readable(backbone, tokens[:1], x_t[:1], times[:1], y[:1])
                parts = [
                    backbone.read_out(*of) if readable else backbone(*of[1:])
                    for of in _batches(backbone, tokens, x_t, times, y)
                ]
                predicted[label].append(velocity_to_z(path, x_t, times, torch.cat(parts).float().cpu()))
            if progress:
                progress(number, len(features.times))
    return Predictions(torch.stack(noisy), *(torch.stack(predicted[label]) for label in ("null", "true")))


def _is_readable(backbone: TransformerBackbone, tokens: Tensor, x_t: Tensor, t: Tensor, y: Tensor) -> bool:
    """Whether the final layer gives the model's own velocity for the last layer's tokens."""
    (of,) = _batches(backbone, tokens, x_t, t, y)
    own, read = backbone(*of[1:]), backbone.read_out(*of)
    return bool((own - read).abs().max() <= 1e-2 * own.abs().max() + 1e-4)  # far above rounding, with TF32 too


def _batches(backbone: TransformerBackbone, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    device = next(backbone.parameters()).device
    for start in range(0, len(inputs[0]), _BATCH):
        yield tuple(of[start : start + _BATCH].to(device) for of in inputs)
