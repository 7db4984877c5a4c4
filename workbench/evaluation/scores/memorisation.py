"""Memorisation: probability that a generated image is closer to the training images than a held-out image."""

from typing import Any

from workbench.evaluation.manifold import memorisation, nearest_training
from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement


def measure(of: Measurement) -> dict[str, Any]:
    """The probability, with the number of exact copies and the median distances."""
    held_out = of.reference.test_nearest
    assert held_out is not None  # `needs` has "held-out"
    ours = nearest_training(of.generated.features, of.reference.train.features)
    closer = memorisation(ours, held_out)
    return {
        "value": closer.closer,
        "p": closer.p_value,
        "copies": int((ours.distance == 0).sum()),
        "median_distance": float(ours.distance.median()),
        "median_test_distance": float(held_out.distance.median()),
    }


METRIC = Metric(
    title="memorisation",
    better="",
    ideal="0.5 for new images, 1 for copies",
    measure=measure,
    unit="share",
    needs=("held-out",),
    floor=False,
    detail=2,
    order=100,
)
