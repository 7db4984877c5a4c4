"""Frechet distance of the features; with the Inception detector it is FID."""

from functools import partial
from typing import Any

import numpy as np
import torch

from workbench.evaluation.frechet import Statistics, frechet_distance, frechet_from_features, statistics
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, with_interval


def measure(of: Measurement) -> dict[str, Any]:
    """The distance with its two terms; ValueError for images that are the reference itself."""
    rows, train = of.generated.features, of.reference.train
    n, d = rows.shape
    # If all rows of both sets are available, rank-deficient covariances can be avoided.
    whole = len(train.features) == train.statistics.count and min(n, len(train.features)) <= d
    distance = (
        frechet_from_features(rows, train.features, small_ok=of.small_ok)
        if whole
        else frechet_distance(of.generated.statistics, train.statistics, small_ok=of.small_ok)
    )
    if distance.identical:
        raise ValueError("the images are those of the reference itself, so every distance would be 0")
    return {
        **with_interval(partial(_distance, rows, train.statistics), of.generated, of.seed, distance.value),
        **distance.terms,
        "effective_rank": distance.x_rank,
        "reference_rank": distance.y_rank,
    }


METRIC = Metric(
    title="FD", better="lower", measure=measure, interval="halves", fid_name="fid", fid_title="FID", order=10
)


def _distance(rows: torch.Tensor, of: Statistics, chosen: np.ndarray) -> float:
    return frechet_distance(statistics(rows[chosen]), of, small_ok=True).value
