"""Label-leakage controls: how much class information in a conditional feature comes from the label input.

f_c and the guided feature f_u + w (f_c - f_u) contain the label by construction. Each measure of them is therefore
compared with three controls: the null label, a wrong label, and the label with pure noise as image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import Separability, class_scatter, separability
from workbench.features.grid import FeatureGrid

# For each version: the label mode of the guided feature (None: f_u), and the labels that it is evaluated with.
VERSIONS = {
    "null": (None, "true"),
    "true": ("true", "true"),
    "wrong_by_true": ("wrong", "true"),
    "wrong_by_given": ("wrong", "given"),
    "label_only": ("noise", "true"),
}


@dataclass(frozen=True)
class ConditionShare:
    """Fractions of a feature's total variance explained by the given and the true label, corrected for chance, >= 0.

    `share` = by_condition / (by_condition + by_image): 0 if the features follow the image's class, 1 if they follow the
    condition, None if neither explains any variance.
    """

    by_condition: float
    by_image: float
    share: float | None


@dataclass(frozen=True)
class Leakage:
    """Separability of mean tokens in four versions (the wrong label by both labels), and the leaked share."""

    null: Separability
    true: Separability
    wrong_by_true: Separability
    wrong_by_given: Separability
    label_only: Separability
    condition: ConditionShare


def condition_share(
    features: Float[Tensor, "n d"], true: Integer[Tensor, " n"], given: Integer[Tensor, " n"]
) -> ConditionShare:
    """Variance of wrong-label features explained by the given label, compared with that explained by the true label.

    Each is the ratio of between-class to total scatter, eta^2, corrected for what k groups of n rows explain by chance:
    1 - (1 - eta^2) (n - 1) / (n - k) (Kelley 1935), at least 0. Raises ValueError for non-finite rows, equal rows, or
    labels with one class or as many classes as rows.
    """
    rows = finite_rows(features)
    by_condition, by_image = (_explained(rows, labels.cpu().numpy()) for labels in (given, true))
    total = by_condition + by_image
    return ConditionShare(by_condition, by_image, by_condition / total if total else None)


def version(
    features: FeatureGrid, name: str, layer: int, t: float, scale: float
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Mean tokens of one of `VERSIONS` of f_u + scale (f_c - f_u), Eq. 3, and the labels to evaluate them with.

    Only "null", f_u itself, does not depend on the scale. Raises ValueError if its label modes were not extracted.
    """
    mode, labels = VERSIONS[name]
    tokens = features.read(layer, t) if mode is None else features.guided(layer, t, scale, mode)
    return features.pooled(tokens), getattr(features, labels)


def leakage(features: FeatureGrid, layer: int, t: float, scale: float, *, seed: int, neighbours: int = 20) -> Leakage:
    """Separability of one layer's mean tokens at a time and guidance scale in four versions, and the leaked share.

    With a wrong label, the true labels measure what follows the image, the given labels what follows the condition.
    With the label only, anything above chance is leakage. Needs all label modes of `extract`; raises as `separability`.
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
