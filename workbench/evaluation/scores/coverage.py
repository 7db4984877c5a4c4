"""Coverage: fraction of real images that have a generated image in their neighbourhood."""

from typing import Any

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, share


def measure(of: Measurement) -> dict[str, Any]:
    """The fraction, with its interval."""
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
