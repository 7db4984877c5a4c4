"""Recall: fraction of real images on the manifold of the generated images."""

from typing import Any

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, by_class, share


def measure(of: Measurement) -> dict[str, Any]:
    """The fraction over all images, with its interval, and by class."""
    real, score = of.reference, share(of.precision_recall.recall, len(of.reference.manifold))
    if real.train.labels is not None:
        score["by_class"] = by_class(of.precision_recall.real_inside, real.train.labels[real.manifold_rows])
    return score


METRIC = Metric(
    title="recall",
    better="higher",
    measure=measure,
    interval="wilson",
    unit="share",
    detail=2,
    order=70,
)
