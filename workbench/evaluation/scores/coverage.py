"""Coverage: the share of real images with a generated one beside them."""

from typing import Any

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, share


def measure(of: Measurement) -> dict[str, Any]:
    """The share, with its interval."""
    return share(of.density_coverage.coverage, len(of.reference.manifold))


METRIC = Metric(
    title="coverage",
    better="higher",
    measure=measure,
    interval="wilson",
    unit="share",
    detail=3,
    order=90,
)
