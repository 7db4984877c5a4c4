"""Inception score, computed as in ADM's evaluator."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.evaluation.metrics import Metric
from workbench.evaluation.reference import Seen
from workbench.evaluation.scores.base import Measurement, with_interval

BLOCK = 5000


def measure(of: Measurement) -> dict[str, Any]:
    """The score over the detector's classes, with its interval."""
    return with_interval(partial(_of_rows, of.generated), of.generated, of.seed)


METRIC = Metric(title="IS", better="higher", measure=measure, interval="halves", needs=("logits",), detail=3, order=50)


def _of_rows(of: Seen, chosen: np.ndarray) -> float:
    assert of.logits is not None  # `needs` has "logits"
    return inception_score(of.logits[chosen]).value


@dataclass(frozen=True)
class InceptionScore:
    """value: mean of `blocks`, the scores of consecutive blocks of images; their spread is not a standard error."""

    value: float
    blocks: tuple[float, ...]
    count: int


def inception_score(logits: Float[Tensor, "n k"], *, block: int = BLOCK) -> InceptionScore:
    """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016), averaged over consecutive blocks.

    As `compute_inception_score` of openai/guided-diffusion: `block` is the number of images per block, rows are not
    shuffled, and a last, smaller block has the same weight in the mean. ADM's logits are the pooled features times the
    classifier weights without the bias. Computed in float64, where ADM uses float32. Raises ValueError if there are no
    rows, one is not finite, or block < 1.
    """
    if len(logits) == 0 or block < 1:
        raise ValueError(f"got {len(logits)} rows in blocks of {block}; allowed are at least 1 and 1")
    broken = (~logits.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(f"row {int(broken[0])} of the logits is not finite ({len(broken)} of {len(logits)} are not)")
    blocks = tuple(_score(part.double()) for part in logits.detach().split(block))
    return InceptionScore(sum(blocks) / len(blocks), blocks, len(logits))


def _score(logits: Float[Tensor, "n k"]) -> float:
    log_p = logits.log_softmax(dim=1)
    # Computed in logarithms, so that a class of probability 0 gives 0 and not 0 * -inf.
    log_q = torch.logsumexp(log_p, dim=0) - math.log(len(logits))
    return float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean().exp())
