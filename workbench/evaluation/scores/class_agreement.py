"""Class agreement: fraction of images that the detector assigns to the class they were generated for."""

from typing import Any

from jaxtyping import Float, Integer
from torch import Tensor

from workbench.evaluation.metrics import Metric
from workbench.evaluation.scores.base import Measurement, by_class
from workbench.evaluation.statistics import Share, wilson


def measure(of: Measurement) -> dict[str, Any]:
    """The fraction over all images and by class."""
    logits, labels = of.generated.logits, of.generated.labels
    assert logits is not None and labels is not None
    agreement = class_agreement(logits, labels)
    shares = by_class(logits.argmax(dim=1) == labels, labels)
    return {"value": agreement.value, "low": agreement.low, "high": agreement.high, "by_class": shares}


METRIC = Metric(
    title="class agreement",
    better="higher",
    measure=measure,
    interval="wilson",
    unit="share",
    needs=("classes",),
    floor=False,
    plain="clf64",
    order=110,
)


def class_agreement(logits: Float[Tensor, "b k"], labels: Integer[Tensor, " b"]) -> Share:
    """Fraction of images whose most likely class is their label, with its 95 % Wilson interval.

    logits: those of a detector for the generated images. labels: the classes 0..k-1 that they were generated for.
    Raises ValueError if there are no images, a logit is NaN, or a label is not one of the k classes.
    """
    count, classes = logits.shape
    if count == 0:
        raise ValueError("got no images; class agreement needs at least one")
    if logits.isnan().any():
        raise ValueError(f"the logits of row {int(logits.isnan().any(dim=1).nonzero()[0])} have NaN")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}; allowed are 0 to {classes - 1}")
    successes = int((logits.argmax(dim=1) == labels.to(logits.device)).sum())
    interval = wilson(successes, count)
    return Share(successes / count, interval.low, interval.high, count)
