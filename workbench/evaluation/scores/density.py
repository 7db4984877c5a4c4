"""Density: how densely the real images surround the generated ones."""

from typing import Any

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """The density."""
    return {"value": of.density_coverage.density}


METRIC = Metric(title="density", better="higher", measure=measure, detail=3, order=80)
