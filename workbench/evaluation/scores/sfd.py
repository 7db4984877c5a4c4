"""Frechet distance of the spatial features: sFID where the detector is Inception."""

from typing import Any

from workbench.evaluation.frechet import frechet_distance
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """The distance with its two terms."""
    spatial = frechet_distance(of.generated.spatial, of.reference.train.spatial, small_ok=of.small_ok)
    return {"value": spatial.value, **spatial.terms}


METRIC = Metric(
    title="sFD",
    better="lower",
    measure=measure,
    needs=("spatial",),
    fid_name="sfid",
    fid_title="sFID",
    detail=3,
    order=30,
)
