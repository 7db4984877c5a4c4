"""How well the classes separate in a set of features: neighbours, clusters, variances and a linear discriminant."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import davies_bouldin_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.probe import Splits, stratified_splits
from workbench.evaluation.statistics import Share, wilson

_BLOCK = 1000  # rows whose distances are held at once


@dataclass(frozen=True)
class HeldOut:
    """Accuracy of a classifier fitted on the first of three disjoint splits, on each of the other two.

    `choose` is for picking a layer or a time; `report` is what may then be said of the one picked, because the
    best of many on one split is too good.
    """

    choose: Share
    report: Share


@dataclass(frozen=True)
class Separability:
    """Every measure of one feature set; those but knn and lda depend on the width, so compare within one width.

    knn: cosine neighbours. lda: linear discriminant. silhouette: cosine, -1..1. davies_bouldin: Euclidean, 0 is best.
    fisher: trace of between over trace of within class scatter, infinite when the classes are points.
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
    """Traces of the between and the within class scatter, divided by the number of rows; they add up to the total."""

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
    """How well `labels` separate in `features`: kNN (Oquab et al. 2023), LDA, silhouette, Davies-Bouldin, Fisher ratio.

    The classifiers fit on the first split alone: the majority of `neighbours` by cosine (DINOv2's k = 20, without its
    weights), and LDA with Ledoit-Wolf shrinkage. Set measures use all rows.
    ValueError if a row is not finite or, for cosines, zero, all rows are equal, there are fewer than two classes, the
    first split has fewer rows than neighbours, or `stratified_splits` refuses.
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
    # Of classes that are points there is no covariance to invert; the nearest one is the answer.
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto") if scatter.within else KNeighborsClassifier(1)
    with threadpool_limits(1):
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
    """tr S_b / n and tr S_w / n (Fisher 1936): variance of the class means, weighted by size, and about them."""
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(rows[np.argsort(inverse, kind="stable")], starts, axis=0) / sizes[:, None]
    between = np.square(means - rows.mean(axis=0)).sum(axis=1) @ sizes / len(rows)
    within = np.square(rows - means[inverse]).sum() / len(rows)
    return Scatter(float(between), float(within))


def unit_rows(rows: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Rows of length 1, for cosines. ValueError if a row is zero, which has no direction."""
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        raise ValueError(f"row {np.flatnonzero(lengths == 0)[0]} of the features is zero; a cosine needs a direction")
    return rows / lengths[:, None]


def nearest_votes(
    unit: Float64[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    fit: Int64[np.ndarray, " f"],
    asked: Int64[np.ndarray, " a"],
    neighbours: int,
) -> Integer[np.ndarray, " a"]:
    """The most frequent label among the cosine neighbours of each asked row in `fit`; of equals the smallest label.

    What scikit-learn's brute KNeighborsClassifier answers, ties included, without its checks.
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

    Exact at the cost n k d for k classes: a row's mean distance to a class is 1 - u . (mean of the class).
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.stack([unit[inverse == label].sum(axis=0) for label in range(len(sizes))])
    similarity, places = unit @ sums.T, np.arange(len(unit))
    own = sizes[inverse]
    within = (own - similarity[places, inverse]) / np.maximum(own - 1, 1)
    distances = 1 - similarity / sizes
    distances[places, inverse] = np.inf
    across = distances.min(axis=1)
    largest = np.maximum(within, across)
    # Below the rounding of a cosine there is no distance to speak of.
    told = (own > 1) & (largest > 1e-12)
    return float(np.where(told, (across - within) / np.where(told, largest, 1), 0).mean())


def _held_out(predicted: Integer[np.ndarray, " a"], labels: Integer[np.ndarray, " n"], splits: Splits) -> HeldOut:
    """Shares of right answers, of which those to the rows to choose by come first."""
    shares, start = [], 0
    for part in (splits.choose, splits.report):
        correct, count = int((predicted[start : start + len(part)] == labels[part]).sum()), len(part)
        interval, start = wilson(correct, count), start + len(part)
        shares.append(Share(correct / count, interval.low, interval.high, count))
    return HeldOut(*shares)
