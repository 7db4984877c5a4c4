"""Leave-one-out kNN correctness of each image, in the original feature space."""

import numpy as np
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import unit_rows

_BLOCK = 1000  # rows of the similarity matrix in memory at a time


def right_by_neighbours(
    features: Float[Tensor, "n d"], labels: Integer[np.ndarray, " n"], neighbours: int = 20
) -> Bool[np.ndarray, " n"]:
    """Whether the `neighbours` nearest other rows, by cosine similarity, vote for the class of each row; exact.

    The vote is that of `evaluation.separability`: the most frequent label, in a tie the smallest. ValueError for a row
    that is zero or not finite, and unless 1 <= neighbours < n.
    """
    unit = unit_rows(finite_rows(features))
    if not 1 <= neighbours < len(unit):
        raise ValueError(f"got {neighbours} neighbours; allowed are 1 to {len(unit) - 1}, the other images")
    classes, inverse = np.unique(labels, return_inverse=True)
    voted = np.eye(len(classes))[inverse]
    correct = np.empty(len(unit), dtype=bool)
    for start in range(0, len(unit), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(unit)))
        cosines = unit[rows] @ unit.T
        cosines[rows - start, rows] = -np.inf
        nearest = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
        correct[rows] = voted[nearest].sum(axis=1).argmax(axis=1) == inverse[rows]
    return correct
