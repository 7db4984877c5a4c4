"""Accuracy of a linear probe of features (`evaluation.probe`), which is not a score of images."""

from workbench.evaluation.metrics import Metric

METRIC = Metric(
    title="probe accuracy",
    better="higher",
    measure=None,
    interval="wilson",
    unit="share",
    floor=False,
    detail=3,
    order=120,
)
