"""Frechet distance extrapolated to infinitely many images."""

from typing import Any

from workbench.evaluation.frechet import extrapolated_frechet
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """Intercept of the line over 1 / N, with its slope and residual."""
    rows, real = of.generated.features, of.reference.train.statistics
    line = extrapolated_frechet(rows, real, seed=of.seed, small_ok=of.small_ok)
    return {"value": line.intercept, "slope": line.slope, "residual": line.residual}


METRIC = Metric(
    title="FD at infinite N",
    better="lower",
    measure=measure,
    needs=("many",),
    fid_name="fid-inf",
    fid_title="FID at infinite N",
    detail=3,
    order=20,
)
