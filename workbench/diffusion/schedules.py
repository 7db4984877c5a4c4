"""Which times are visited: the law of t while training, the grid of t while sampling."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.diffusion.paths import LINEAR, Path

_LAWS = {
    "uniform": lambda u, path: u,
    "lognormal": lambda u, path: path.time_of(torch.special.ndtri(u)),
}


def sample_time(u: Float[Tensor, "b"], law: str, path: Path = LINEAR) -> Float[Tensor, "b"]:
    """Training times t from uniform draws u: the quantile function of the law of t on a path.

    "uniform" (SiT, REPA, the paper) is the identity; "lognormal" (LightningDiT, REPA's option) makes the ratio of
    noise to data, b(t)/a(t), log-normal: log(b/a) = n is standard normal. That is t = sigmoid(n) on the linear path
    and t = 2/pi atan(e^n) on the cosine one, both of median 1/2 and symmetric about it. u lies strictly inside (0, 1),
    as `randomness.uniform` draws it.

    Raises ValueError for another law.
    """
    if law not in _LAWS:
        raise ValueError(f"unknown law of t {law!r}; allowed: {', '.join(_LAWS)}")
    return _LAWS[law](u, path)


def time_grid(steps: int, last_step: float | None = None, shift: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
    """The sampling times from 1 (noise) down to 0 (data), as the samplers of the REPA family take them.

    Without `last_step`, `steps` equal intervals (the ODE grid). With it, `steps` points from 1 to `last_step`
    and then 0 (the SDE grid): steps - 1 equal intervals and one of size `last_step`, which stays away from t
    = 0 because the score is singular there.

    `shift` s then moves every point t to t / (s + (1 - s) t), LightningDiT's s u / (1 + (s - 1) u) on its axis
    u = 1 - t. Both ends stay; s < 1 crowds the points towards noise, s > 1 towards data, 1 leaves them.

    Raises ValueError when steps < 1, `last_step` lies outside (0, 1) or `shift` is not positive and finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be positive and finite, got {shift}")
    if last_step is not None and not 0 < last_step < 1:
        raise ValueError(f"last_step must lie strictly between 0 and 1, got {last_step}")
    if last_step is None:
        # A quotient is rounded once, so the grid point 0.7 is the float that a guidance bound written 0.7 is;
        # linspace may miss it by one unit in the last place and drop the point from a closed interval.
        grid = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    else:
        noisy = torch.linspace(1, last_step, steps, dtype=torch.float64)
        grid = torch.cat([noisy, torch.zeros(1, dtype=torch.float64)])
    # The denominator is s + (1 - s) t. In this form both ends are exact, and with shift 1 every point, because
    # t + (1 - t) rounds to 1.
    return grid / (grid + shift * (1 - grid))
