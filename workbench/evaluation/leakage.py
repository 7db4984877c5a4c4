"""Leakage controls: how much of what a conditional feature says of the class was told to it by the label.

f_c and the guided feature f_u + w (f_c - f_u) carry the label by construction, so each number about them stands beside
three more: of the null label, of a wrong label, and of the label over an image of nothing but noise.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import Separability, class_scatter, separability
from workbench.features.grid import FeatureGrid

# Of each version: the image that is guided (None: f_u), and whose labels it is measured by.
VERSIONS = {
    "null": (None, "true"),
    "true": ("true", "true"),
    "wrong_by_true": ("wrong", "true"),
    "wrong_by_given": ("wrong", "given"),
    "label_only": ("noise", "true"),
}


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


def version(
    features: FeatureGrid, name: str, layer: int, t: float, scale: float
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Mean tokens of one of `VERSIONS` of f_u + scale (f_c - f_u), Eq. 3, and the labels that it is measured by.

    Only "null", f_u itself, does not depend on the scale. ValueError if its label modes were not extracted.
    """
    image, told = VERSIONS[name]
    found = features.read(layer, t) if image is None else features.guided(layer, t, scale, image)
    return features.pooled(found), getattr(features, told)


def leakage(features: FeatureGrid, layer: int, t: float, scale: float, *, seed: int, neighbours: int = 20) -> Leakage:
    """Separability of one layer's mean tokens at a time and guidance scale in four versions, and what leaked.

    With the wrong label, classes that follow the image are seen by the true labels, those that follow the condition by
    the given ones. With the label alone anything above chance is leakage. Takes all label modes of `extract`; errors
    are those of `separability`.
    """
    measured = {
        name: separability(*version(features, name, layer, t, scale), seed=seed, neighbours=neighbours)
        for name in VERSIONS
    }
    wrong, _ = version(features, "wrong_by_true", layer, t, scale)
    return Leakage(**measured, condition=condition_share(wrong, features.true, features.given))


def _explained(rows: np.ndarray, labels: np.ndarray) -> float:
    n, k = len(rows), len(np.unique(labels))
    if not 1 < k < n:
        raise ValueError(f"got {k} classes for {n} rows; allowed are 2 to {n - 1}")
    scatter = class_scatter(rows, labels)
    total = scatter.between + scatter.within
    if total == 0:
        raise ValueError("all rows of the features are equal; there is no variance to explain")
    return max(0.0, 1 - scatter.within / total * (n - 1) / (n - k))
