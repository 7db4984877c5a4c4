"""Leakage controls: how much of what a conditional feature says of the class was told to it by the label.

f_c and the guided feature f_u + w (f_c - f_u) carry the label by construction, so each number about them stands beside
three more: of the null label, of a wrong label, and of the label over an image of nothing but noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.data.codecs import sample_posterior
from workbench.data.latents import Latents
from workbench.diffusion.paths import LINEAR, Path, interpolate
from workbench.diffusion.randomness import normal, permutation
from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import Separability, class_scatter, separability
from workbench.features.extract import Features, extract

_BATCH = 100


@dataclass(frozen=True)
class Versions:
    """One layer's tokens in four versions at one guidance scale; only the null version does not depend on the scale."""

    null: Float[Tensor, "n m d"]
    true: Float[Tensor, "n m d"]
    wrong: Float[Tensor, "n m d"]
    label_only: Float[Tensor, "n m d"]


@dataclass(frozen=True)
class Controls:
    """Features of the same images under three conditions; f_c is that of the condition, f_u of the null label.

    `image`: true label. `wrong`: the same x_t, label `given`. `noise`: true label, but an image that is noise.
    """

    image: Features
    wrong: Features
    noise: Features
    true: Int64[Tensor, " n"]
    given: Int64[Tensor, " n"]

    def versions(self, layer: int, scale: float) -> Versions:
        """The four versions of f_u + scale (f_c - f_u), Eq. 3: 1 gives f_c itself; no network runs."""
        guided = (features.guided(layer, scale) for features in (self.image, self.wrong, self.noise))
        return Versions(self.image.f_u[layer], *guided)


@dataclass(frozen=True)
class ConditionShare:
    """Shares of a feature's total variance that the given and the true label explain, freed of chance, at least 0.

    `share` = by_condition / (by_condition + by_image): 0 when the classes are those of the images, 1 when they are
    those of the condition, None when neither explains anything.
    """

    by_condition: float
    by_image: float
    share: float | None


@dataclass(frozen=True)
class Leakage:
    """Separability of mean tokens in four versions, the wrong-label one by both labels, and the share that leaks."""

    null: Separability
    true: Separability
    wrong_by_true: Separability
    wrong_by_given: Separability
    label_only: Separability
    condition: ConditionShare


def wrong_labels(labels: Integer[np.ndarray, " n"], *, seed: int) -> Int64[np.ndarray, " n"]:
    """The labels in a random order of the images: independent of the true ones, each as frequent as before.

    Renaming the classes would not do: images given one name would still be those of one class, and no measure could
    tell the condition from the image. So a few labels, one of k if balanced, stay right by chance.
    """
    return labels[permutation(seed, "wrong-label", 0, len(labels))].astype(np.int64)


@torch.no_grad()
def extract_controls(
    backbone: TransformerBackbone,
    latents: Latents,
    indices: Sequence[int],
    layers: Sequence[int],
    t: float,
    *,
    seed: int = 0,
    path: Path = LINEAR,
) -> Controls:
    """Features of the images at `indices` with the null, the true and a wrong label, and of noise with its label.

    All versions of an image share the noise that `extract` gives it. The noise image is standard normal, drawn by
    (seed, index), and noised to t like a latent, so that x_t has about the spread the model knows at that time. Keeps
    five times the tokens of a single version.
    """
    image = extract(backbone, latents, indices, layers, t, seed=seed, path=path)
    chosen = np.asarray(indices)
    labels = latents.labels[chosen].astype(np.int64)
    true, given = torch.from_numpy(labels), torch.from_numpy(wrong_labels(labels, seed=seed))
    found = {name: {n: [] for n in layers} for name in ("wrong", "noise_c", "noise_u")}
    for start in range(0, len(chosen), _BATCH):
        part = slice(start, start + _BATCH)
        x_t, blank = _noised(latents, chosen[part], t, seed, path)
        times = torch.full((len(x_t),), t)
        conditions = (given[part], true[part], torch.full((len(x_t),), backbone.null_label))
        for name, x, y in zip(found, (x_t, blank, blank), conditions, strict=True):
            for layer, tokens in backbone.features(x, times, y, tuple(layers)).items():
                found[name][layer].append(tokens.float())
    wrong, noise_c, noise_u = ({n: torch.cat(f) for n, f in part.items()} for part in found.values())
    return Controls(
        image=image,
        wrong=Features(t, wrong, image.f_u),
        noise=Features(t, noise_c, noise_u),
        true=true,
        given=given,
    )


def condition_share(
    features: Float[Tensor, "n d"], true: Integer[Tensor, " n"], given: Integer[Tensor, " n"]
) -> ConditionShare:
    """Variance of wrong-label features that the given label explains, against that which the true label explains.

    Each is between over total class scatter, eta^2, less what k groups of n rows explain by chance:
    1 - (1 - eta^2) (n - 1) / (n - k) (Kelley 1935), at least 0. ValueError if a row is not finite, all rows are equal,
    or a labelling has one class or as many as rows.
    """
    rows = finite_rows(features)
    by_condition, by_image = (_explained(rows, labels.cpu().numpy()) for labels in (given, true))
    total = by_condition + by_image
    return ConditionShare(by_condition, by_image, by_condition / total if total else None)


def leakage(controls: Controls, layer: int, scale: float, *, seed: int, neighbours: int = 20) -> Leakage:
    """Separability of one layer's mean tokens at a guidance scale in four versions, and what leaked.

    With the wrong label, classes that follow the image are seen by the true labels, those that follow the condition by
    the given ones. With the label alone anything above chance is leakage. Errors are those of `separability`.
    """
    pooled = {name: tokens.mean(dim=1) for name, tokens in vars(controls.versions(layer, scale)).items()}
    measured = (
        separability(pooled[name], labels, seed=seed, neighbours=neighbours)
        for name, labels in (
            ("null", controls.true),
            ("true", controls.true),
            ("wrong", controls.true),
            ("wrong", controls.given),
            ("label_only", controls.true),
        )
    )
    return Leakage(*measured, condition_share(pooled["wrong"], controls.true, controls.given))


def _noised(
    latents: Latents, chosen: Int64[np.ndarray, "b"], t: float, seed: int, path: Path
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """x_t of the images, as `extract` makes it, and of noise in place of an image."""
    shape = (latents.channels, latents.height, latents.height)
    z = sample_posterior(latents.moments(chosen), normal(seed, "feature-posterior", chosen, shape))
    eps, times = normal(seed, "feature-noise", chosen, shape), torch.full((len(chosen),), t)
    blank = normal(seed, "feature-noise-image", chosen, shape)
    return interpolate(path, z, eps, times).x_t, interpolate(path, blank, eps, times).x_t


def _explained(rows: np.ndarray, labels: np.ndarray) -> float:
    n, k = len(rows), len(np.unique(labels))
    if not 1 < k < n:
        raise ValueError(f"got {k} classes for {n} rows; allowed are 2 to {n - 1}")
    scatter = class_scatter(rows, labels)
    total = scatter.between + scatter.within
    if total == 0:
        raise ValueError("all rows of the features are equal; there is no variance to explain")
    return max(0.0, 1 - scatter.within / total * (n - 1) / (n - k))
