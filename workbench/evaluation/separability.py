"""Class separability of features: kNN, LDA, silhouette, Davies-Bouldin and Fisher ratio."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import davies_bouldin_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from workbench.diffusion.devices import one_core
from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.probe import Splits, stratified_splits
from workbench.evaluation.statistics import Share, wilson

_BLOCK = 1000  # rows whose distances are in memory at once


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on the second and third of three disjoint splits of a classifier fitted on the first.

    Use `choose` to select a layer or time and `report` for the accuracy of the selected one, as the best of many values
    on one split is biased upwards.
    """

    choose: Share
    report: Share


@dataclass(frozen=True)
class Separability:
    """Separability measures of a feature set; all but knn and lda depend on its width, so compare equal widths.

    knn: cosine neighbours. lda: linear discriminant. silhouette: cosine, -1..1. davies_bouldin: Euclidean, 0 is best.
    fisher: trace of between-class over trace of within-class scatter, infinite if the classes are single points.
    """

    knn: HeldOut
    lda: HeldOut
    silhouette: float
    davies_bouldin: float
    fisher: float
    neighbours: int
    classes: int
    count: int


@dataclass(frozen=True)
class Scatter:
    """Traces of the between-class and within-class scatter per row; they sum to the total variance."""

    between: float
    within: float


def separability(
    features: Float[Tensor, "n d"],
    labels: Integer[Tensor, " n"],
    *,
    seed: int,
    neighbours: int = 20,
    split: tuple[float, float, float] = (0.5, 0.2, 0.3),
) -> Separability:
    """Separability of `labels` in `features`: kNN (Oquab et al. 2023), LDA, silhouette, Davies-Bouldin, Fisher ratio.

    The classifiers are fitted on the first split only: the majority of `neighbours` by cosine (DINOv2's k = 20, without
    its weighting), and LDA with Ledoit-Wolf shrinkage. The other measures use all rows. Raises ValueError if a row is
    not finite or zero, all rows are equal, there are fewer than two classes, the first split has fewer rows than
    neighbours, and as `stratified_splits`.
    """
    rows, values = finite_rows(features), labels.detach().cpu().numpy()
    classes = len(np.unique(values))
    if classes < 2 or not np.ptp(rows, axis=0).any():
        raise ValueError(f"got {classes} classes, or rows that are all equal; allowed are at least two classes of rows")
    splits = stratified_splits(labels, seed=seed, split=split)
    if not 1 <= neighbours <= len(splits.fit):
        raise ValueError(f"got {neighbours} neighbours; allowed are 1 to the {len(splits.fit)} rows of the first split")
    unit, scatter = unit_rows(rows), class_scatter(rows, values)
    asked = np.concatenate([splits.choose, splits.report])
    # Classes that are single points have no covariance to invert; LDA is then the nearest point.
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto") if scatter.within else KNeighborsClassifier(1)
    with one_core():
        return Separability(
            knn=_held_out(nearest_votes(unit, values, splits.fit, asked, neighbours), values, splits),
            lda=_held_out(lda.fit(rows[splits.fit], values[splits.fit]).predict(rows[asked]), values, splits),
            silhouette=cosine_silhouette(unit, values),
            davies_bouldin=float(davies_bouldin_score(rows, values)),
            fisher=scatter.between / scatter.within if scatter.within else float("inf"),
            neighbours=neighbours,
            classes=classes,
            count=len(rows),
        )


def class_scatter(rows: Float64[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"]) -> Scatter:
    """tr S_b / n and tr S_w / n (Fisher 1936): variance of the class means, weighted by size, and around them."""
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(rows[np.argsort(inverse, kind="stable")], starts, axis=0) / sizes[:, None]
    between = np.square(means - rows.mean(axis=0)).sum(axis=1) @ sizes / len(rows)
    within = np.square(rows - means[inverse]).sum() / len(rows)
    return Scatter(float(between), float(within))


def unit_rows(rows: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Rows normalized to length 1, for cosines. Raises ValueError if a row is zero."""
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        raise ValueError(f"row {np.flatnonzero(lengths == 0)[0]} of the features is zero, so its cosines are undefined")
    return rows / lengths[:, None]


def nearest_votes(
    unit: Float64[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    fit: Int64[np.ndarray, " f"],
    asked: Int64[np.ndarray, " a"],
    neighbours: int,
) -> Integer[np.ndarray, " a"]:
    """Majority label of the cosine neighbours in `fit` of each row in `asked`; ties go to the smallest label.

    Equals scikit-learn's brute-force KNeighborsClassifier, ties included, without its checks.
    """
    classes, inverse = np.unique(labels[fit], return_inverse=True)
    votes, known = np.empty(len(asked), np.int64), np.ascontiguousarray(unit[fit].T)
    for start in range(0, len(asked), _BLOCK):
        distances = np.clip(1 - unit[asked[start : start + _BLOCK]] @ known, 0, 2)
        nearest = inverse[np.argpartition(distances, neighbours - 1, axis=1)[:, :neighbours]]
        cells = nearest + len(classes) * np.arange(len(nearest))[:, None]
        counts = np.bincount(cells.ravel(), minlength=nearest.shape[0] * len(classes))
        votes[start : start + _BLOCK] = counts.reshape(len(nearest), -1).argmax(axis=1)
    return classes[votes]


def cosine_silhouette(unit: Float64[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"]) -> float:
    """Mean silhouette (Rousseeuw 1987) by cosine distance of unit rows; a row alone in its class counts as 0.

    Exact, at cost n k d for k classes, as a row's mean distance to a class is 1 - u . (mean of the class).
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.stack([unit[inverse == label].sum(axis=0) for label in range(len(sizes))])
    similarity, rows = unit @ sums.T, np.arange(len(unit))
    own = sizes[inverse]
    within = (own - similarity[rows, inverse]) / np.maximum(own - 1, 1)
    distances = 1 - similarity / sizes
    distances[rows, inverse] = np.inf
    across = distances.min(axis=1)
    largest = np.maximum(within, across)
    # Distances below the rounding error of a cosine count as 0.
    defined = (own > 1) & (largest > 1e-12)
    return float(np.where(defined, (across - within) / np.where(defined, largest, 1), 0).mean())


def _held_out(predicted: Integer[np.ndarray, " a"], labels: Integer[np.ndarray, " n"], splits: Splits) -> HeldOut:
    """Accuracies on the splits `choose` and `report`, whose predictions follow each other in this order."""
    shares, start = [], 0
    for part in (splits.choose, splits.report):
        correct, count = int((predicted[start : start + len(part)] == labels[part]).sum()), len(part)
        interval, start = wilson(correct, count), start + len(part)
        shares.append(Share(correct / count, interval.low, interval.high, count))
    return HeldOut(*shares)
