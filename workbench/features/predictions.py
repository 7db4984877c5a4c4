"""What a model was given and what it predicts: x_t, and the clean latents that its velocity implies."""

from collections.abc import Callable, Iterator, Sequence
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
from workbench.runs.weak import Weak

_BATCH = 50


@dataclass(frozen=True, eq=False)
class Predictions:
    """Latents by time: `x_t` as the model was given it, and the clean ones that it predicts from it.

    `z_u` is predicted with the null label, or by a weak model with the true one, `z_c` with the true label:
    z_hat = x_t - t v on the linear path.
    """

    x_t: Float[Tensor, "t n c h w"]
    z_u: Float[Tensor, "t n c h w"]
    z_c: Float[Tensor, "t n c h w"]

    def guided(self, w: float | int) -> Float[Tensor, "t n c h w"]:
        """The prediction of the guided velocity v_u + w (v_c - v_u), Eq. 2; exact, as z_hat is affine in v."""
        return guide(self.z_u, self.z_c, float(w))


def predict_clean(
    run: Run,
    features: FeatureGrid,
    *,
    data: DataConfig | None = None,
    seed: int = 0,
    root: Path,
    weak: Weak | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The clean latents that a run's model predicts of the images and times of its features.

    `features` are those of `extract` with the last layer, the labels "null" and "true", the same `seed` and all tokens:
    the final layer reads the velocity from them. Against a `weak` model, whose features are theirs with its own last
    layer, "true" is enough. Blocks run again only for backbones that do not make their velocity by `read_out`.
    `progress` is called with (done, total) times and label modes.
    """
    latents = opened_latents(run, data, "train", root, len(features.rows))
    path, rows = get_path(run.config.diffusion.path), np.asarray(features.rows)
    x_t = torch.stack([noisy_latents(latents, rows, path, t, seed)[1] for t in features.times])
    done = 0

    def counted() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, 2 * len(features.times))

    if weak is None:
        return Predictions(x_t, *_predicted(run, features, ("null", "true"), x_t, counted))
    assert features.weak is not None
    (z_weak,) = _predicted(weak.run, features.weak, ("true",), x_t, counted)
    return Predictions(x_t, z_weak, *_predicted(run, features, ("true",), x_t, counted))


@torch.no_grad()
def _predicted(
    run: Run, features: FeatureGrid, labels: Sequence[str], x_t: Float[Tensor, "t n c h w"], counted: Callable[[], None]
) -> list[Float[Tensor, "t n c h w"]]:
    """The clean latents that a model predicts with each label mode, from its last layer's tokens."""
    backbone = load_backbone(run, features.step).to("cuda" if torch.cuda.is_available() else "cpu")
    path = get_path(run.config.diffusion.path)
    given = {"null": torch.full_like(features.true, backbone.null_label), "true": features.true}
    predicted: list[list[Tensor]] = [[] for _ in labels]
    readable = None
    with tf32(run.config.training.tf32):
        for t, noisy in zip(features.times, x_t, strict=True):
            times = torch.full((len(noisy),), t)
            for label, found in zip(labels, predicted, strict=True):
                tokens, y = features.read(backbone.depth, t, label).float(), given[label]
                if readable is None:
                    readable = _is_readable(backbone, tokens[:1], noisy[:1], times[:1], y[:1])
                parts = [
                    backbone.read_out(*of) if readable else backbone(*of[1:])
                    for of in _batches(backbone, tokens, noisy, times, y)
                ]
                found.append(velocity_to_z(path, noisy, times, torch.cat(parts).float().cpu()))
                counted()
    return [torch.stack(found) for found in predicted]


def _is_readable(backbone: TransformerBackbone, tokens: Tensor, x_t: Tensor, t: Tensor, y: Tensor) -> bool:
    """Whether the final layer gives the model's own velocity for the last layer's tokens."""
    (of,) = _batches(backbone, tokens, x_t, t, y)
    own, read = backbone(*of[1:]), backbone.read_out(*of)
    return bool((own - read).abs().max() <= 1e-2 * own.abs().max() + 1e-4)  # far above rounding, with TF32 too


def _batches(backbone: TransformerBackbone, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    device = next(backbone.parameters()).device
    for start in range(0, len(inputs[0]), _BATCH):
        yield tuple(of[start : start + _BATCH].to(device) for of in inputs)
