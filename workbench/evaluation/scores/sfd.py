"""Frechet distance of the spatial features; with the Inception detector it is sFID."""

from typing import Any

from workbench.evaluation.frechet import frechet_distance
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """The distance with its two terms."""
    generated, real = of.generated.spatial, of.reference.train.spatial
    assert generated is not None and real is not None  # `needs` has "spatial"
    distance = frechet_distance(generated, real, small_ok=of.small_ok)
    return {"value": distance.value, **distance.terms}


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
