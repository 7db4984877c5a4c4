"""Time schedules: the timestep distribution in training and the time grid in sampling."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.diffusion.paths import LINEAR, Path

_DISTRIBUTIONS = {
    "uniform": lambda u, path: u,
    "lognormal": lambda u, path: path.time_of(torch.special.ndtri(u)),
}


def sample_time(u: Float[Tensor, "b"], distribution: str, path: Path = LINEAR) -> Float[Tensor, "b"]:
    """Training times t from uniform draws u: the quantile function of a timestep distribution on a path.

    "uniform" (SiT, REPA, the paper) is the identity; "lognormal" (LightningDiT, REPA's option) makes the ratio of
    noise to data, b(t)/a(t), log-normal: log(b/a) = n is standard normal. This is t = sigmoid(n) on the linear path and
    t = 2/pi atan(e^n) on the cosine path, both symmetric about the median 1/2. u must be strictly inside (0, 1), as
    `randomness.uniform` draws it.

    Raises ValueError for an unknown distribution.
    """
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(f"unknown timestep distribution {distribution!r}; allowed: {', '.join(_DISTRIBUTIONS)}")
    return _DISTRIBUTIONS[distribution](u, path)


def time_grid(steps: int, last_step: float | None = None, shift: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
    """Sampling times from 1 (noise) down to 0 (data), as in the samplers of the REPA family.

    Without `last_step`, `steps` equal intervals (the ODE grid). With it, `steps` points from 1 to `last_step` and then
    0 (the SDE grid): steps - 1 equal intervals and a last one of size `last_step`, as the score is singular at t = 0.

    `shift` s then maps every t to t / (s + (1 - s) t), which is LightningDiT's s u / (1 + (s - 1) u) on its axis
    u = 1 - t. Both ends are fixed; s < 1 concentrates points near noise, s > 1 near data, 1 changes nothing.

    Raises ValueError if steps < 1, `last_step` is outside (0, 1) or `shift` is not positive and finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be positive and finite, got {shift}")
    if last_step is not None and not 0 < last_step < 1:
        raise ValueError(f"last_step must be strictly between 0 and 1, got {last_step}")
    if last_step is None:
        # A quotient is rounded once, so the grid point 0.7 equals a guidance bound of 0.7 exactly; linspace may be off
        # by one unit in the last place and drop the point from a closed interval.
        grid = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    else:
        noisy = torch.linspace(1, last_step, steps, dtype=torch.float64)
        grid = torch.cat([noisy, torch.zeros(1, dtype=torch.float64)])
    # The denominator equals s + (1 - s) t. In this form both ends are exact and, with shift 1, all points, as
    # t + (1 - t) rounds to 1.
    return grid / (grid + shift * (1 - grid))
