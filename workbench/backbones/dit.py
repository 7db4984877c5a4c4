"""DiT (Peebles and Xie 2023) as a velocity model: its noise prediction at DDPM steps, converted to the linear path.

DiT has SiT's network, trained to predict the noise in x_vp = sqrt(abar_tau) z + sqrt(1 - abar_tau) eps at the steps
tau = 0 .. 999 of a linear beta schedule. The point x_t = (1-t) z + t eps is such an x_vp times s = sqrt((1-t)^2 +
t^2), at the step whose signal-to-noise ratio is (1-t)/t; between steps, tau is interpolated in log-SNR.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.backbones import sit
from workbench.backbones.base import NO_EDITS, Edit, Tapped


def _step_times() -> Float[Tensor, "1000"]:
    """The time t of every DDPM step, float64: t / (1-t) = sqrt((1 - abar) / abar), betas 1e-4 .. 0.02 (Ho et al.)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
    abar = (1 - betas).cumprod(dim=0)
    ratio = ((1 - abar) / abar).sqrt()
    return ratio / (1 + ratio)


STEP_TIMES = _step_times()  # from 0.0099 at step 0 to 0.9937 at step 999


def clamp_time(t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Time clamped to the range of the DDPM steps, in float64."""
    return t.double().clamp(STEP_TIMES[0].item(), STEP_TIMES[-1].item())


def discrete_step(t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The DDPM step tau in 0 .. 999 with signal-to-noise ratio (1-t)/t, interpolated linearly in log-SNR.

    Returned in float64; times outside the range of the steps are clamped.
    """
    knots = torch.logit(STEP_TIMES).to(t.device)
    level = torch.logit(clamp_time(t))
    above = torch.searchsorted(knots, level).clamp(1, len(knots) - 1)
    low, high = knots[above - 1], knots[above]
    return above - 1 + (level - low) / (high - low)


def path_scale(t: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    """s = sqrt((1-t)^2 + t^2), the scale of a point on the linear path relative to DDPM's."""
    return rearrange(torch.hypot(1 - t, t), "b -> b 1 1 1")


class Backbone(sit.Backbone):
    """DiT of a named size, with SiT's arguments; `learn_sigma` is on in the published files.

    The network's noise eps_hat gives z = (x_vp - sqrt(1-abar) eps_hat) / sqrt(abar), and v = eps_hat - z. With the
    time clamped to steps 0 .. 999, sqrt(abar) = (1-t)/s and sqrt(1-abar) = t/s, so v = (eps_hat - s x_vp) / (1-t). The
    divisor is at least 0.0063, so v is finite up to t = 1, and errors of eps_hat are not amplified more than in DDPM's
    own last step. Points outside the range of the steps are treated as belonging to the nearest step.
    """

    def forward_tapped(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
        edits: Mapping[int, Edit] = NO_EDITS,
    ) -> Tapped:
        """The velocity v = eps - z implied by the predicted noise, and the output tokens of each of `layers`."""
        tapped = super().forward_tapped(x_t, t, y, layers, edits)
        return Tapped(self._converted(tapped.v, x_t, t), tapped.features)

    def read_out(
        self, tokens: Float[Tensor, "b n d"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], y: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """The velocity v = eps - z implied by the noise that the final layer predicts from tokens."""
        return self._converted(super().read_out(tokens, x_t, discrete_step(t), y), x_t, t)

    def _converted(
        self, eps: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        nearest = clamp_time(t)
        x = x_t * (path_scale(nearest) / path_scale(t.double()))
        return ((eps - x) / rearrange(1 - nearest, "b -> b 1 1 1")).to(eps.dtype)

    def _walk(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
        deepest: int,
        edits: Mapping[int, Edit] = NO_EDITS,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"], dict[int, Float[Tensor, "b n d"]]]:
        x_vp = (x_t / path_scale(t.double())).to(x_t.dtype)
        return super()._walk(x_vp, discrete_step(t), y, layers, deepest, edits)
