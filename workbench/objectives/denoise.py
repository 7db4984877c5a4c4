"""Plain training: the denoising loss alone (SiT)."""

from workbench.objectives import base

RECIPES = {"paper": {"backbone.qk_norm": False}, "released": {"backbone.qk_norm": True}}


class Objective(base.Objective):
    """No alignment: no taps, no head, no teacher."""
