"""Linear probe with three disjoint splits: fit, choose, report."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Integer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from workbench.diffusion.devices import one_core
from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.statistics import wilson

REGULARIZATIONS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Probe:
    """Accuracy on `count` held-out images, not used for fitting or selection, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    regularization: float
    count: int


@dataclass(frozen=True)
class Splits:
    """Row indices of three disjoint splits."""

    fit: Int64[np.ndarray, " f"]
    choose: Int64[np.ndarray, " c"]
    report: Int64[np.ndarray, " r"]


def stratified_splits(
    labels: Integer[Tensor, " n"], *, seed: int, split: tuple[float, float, float] = (0.5, 0.2, 0.3)
) -> Splits:
    """Three disjoint stratified splits that cover all rows, with the fractions `split` of every class.

    Drawn by np.random.default_rng(seed). Raises ValueError if `split` is not three positive fractions that sum to 1, or
    a class is too small to have a row in each split.
    """
    if min(split) <= 0 or abs(sum(split) - 1) > 1e-9:
        raise ValueError(f"split is {split}; allowed are three positive fractions that sum to 1")
    generator = np.random.default_rng(seed)
    values = labels.detach().cpu().numpy()
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label in np.unique(values):
        rows = generator.permutation(np.flatnonzero(values == label))
        cuts = np.rint(np.cumsum(split[:2]) * len(rows)).astype(int)
        pieces = np.split(rows, cuts)
        if not all(len(piece) for piece in pieces):
            raise ValueError(f"class {label} has {len(rows)} rows; too few for a row in each split of {split}")
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return Splits(*(np.sort(np.concatenate(part)) for part in parts))


def linear_probe(
    features: Float[Tensor, "n d"],
    labels: Integer[Tensor, " n"],
    *,
    seed: int,
    split: tuple[float, float, float] = (0.5, 0.2, 0.3),
) -> Probe:
    """Linear probe: held-out accuracy of logistic regression on standardized features.

    Scaler and classifiers are fitted on the first split. The inverse penalty C with the best accuracy on the second
    split (the smallest in a tie) is reported on the third. Raises ValueError for non-finite rows, fewer than two
    classes, and as `stratified_splits`.
    """
    splits = stratified_splits(labels, seed=seed, split=split)
    rows, values = finite_rows(features), labels.detach().cpu().numpy()
    if len(np.unique(values)) < 2:
        raise ValueError(f"all labels are {values[0]}; a probe needs at least two classes")
    rows = StandardScaler().fit(rows[splits.fit]).transform(rows)
    # Warm starts from the solution of the next stronger penalty: fewer iterations, same optimum.
    classifier = LogisticRegression(warm_start=True, max_iter=1000)
    best, best_accuracy, report = 0.0, -1.0, values[:0]
    with one_core():
        for regularization in REGULARIZATIONS:
            classifier.set_params(C=regularization).fit(rows[splits.fit], values[splits.fit])
            accuracy = classifier.score(rows[splits.choose], values[splits.choose])
            if accuracy > best_accuracy:
                best, best_accuracy, report = (
                    regularization,
                    accuracy,
                    classifier.predict(rows[splits.report]),
                )
    correct, count = int((report == values[splits.report]).sum()), len(splits.report)
    interval = wilson(correct, count)
    return Probe(correct / count, interval.low, interval.high, best, count)
