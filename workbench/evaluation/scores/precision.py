"""Precision: fraction of generated images on the manifold of the real images."""

from typing import Any

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, share


def measure(of: Measurement) -> dict[str, Any]:
    """The fraction, with its interval."""
    return share(of.precision_recall.precision, len(of.generated.features))


METRIC = Metric(
    title="precision", better="higher", measure=measure, interval="wilson", unit="share", detail=2, order=60
)
