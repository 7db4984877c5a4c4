"""Classifier-free guidance of velocities (Eq. 2) and of features (Eq. 3)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.config import SamplingConfig


def guide(f_u: Float[Tensor, "*axes"], f_c: Float[Tensor, "*axes"], scale: float) -> Float[Tensor, "*axes"]:
    """Guided value f_g = f_u + scale (f_c - f_u), Eqs. 2 and 3, for velocities and features.

    f_u comes from the null label, f_c from the class, at the same x_t and t. Any shape, same dtype.
    """
    # lerp is exact at both ends: scale 0 gives f_u and scale 1 gives f_c, bit for bit.
    return torch.lerp(f_u, f_c, scale)


def guide_velocity(
    v_u: Float[Tensor, "b c *axes"], v_c: Float[Tensor, "b c *axes"], scale: float, channels: int | None
) -> Float[Tensor, "b c *axes"]:
    """Guided velocity (Eq. 2), on all channels or only on the first `channels` of axis 1.

    The other channels keep v_c, as in SiT and LightningDiT, which guide the first 3. None guides all channels (REPA,
    the paper). Raises ValueError if v has fewer channels.
    """
    guided = guide(v_u, v_c, scale)
    if channels is None:
        return guided
    if channels > v_c.shape[1]:
        raise ValueError(f"cannot guide {channels} channels of a velocity that has {v_c.shape[1]}")
    return torch.cat([guided[:, :channels], v_c[:, channels:]], dim=1)


@dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance: the scale of Eq. 2, the closed interval of t where it acts, the channels.

    t is on the paper's axis (1 = noise), so high = 0.7 disables guidance near pure noise. Raises ValueError for a scale
    that is negative or not finite, bounds that violate 0 <= low <= high <= 1, or fewer than one channel.
    """

    scale: float = 1.0  # 1 is the plain conditional model
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None  # None guides every channel

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"guidance scale must be finite and at least 0, got {self.scale}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance interval must satisfy 0 <= low <= high <= 1, got low={self.low}, high={self.high}"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels must be None (all) or at least 1, got {self.channels}")

    @classmethod
    def of(cls, settings: SamplingConfig) -> "Guidance":
        """Guidance from the ``sampling`` section of a configuration."""
        return cls(settings.guidance_scale, settings.guidance_low, settings.guidance_high, settings.guidance_channels)

    def active(self, t: float) -> bool:
        """Whether a step that starts at time t needs the null branch: scale is not 1 and low <= t <= high."""
        return self.scale != 1 and self.low <= t <= self.high


UNGUIDED = Guidance()
