"""Muon for the matrices of the blocks and AdamW for everything else, as one optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone


def matrices(backbone: TransformerBackbone) -> list[nn.Parameter]:
    """The parameters that Muon updates: the matrices of the blocks."""
    return [p for p in backbone.blocks.parameters() if p.requires_grad and p.ndim == 2]


class MuonAdamW(torch.optim.Optimizer):
    """PyTorch's Muon for ``matrices`` (each 2-D) and fused AdamW for ``others``, with one state and one `step`.

    One optimizer rather than two, so that a gradient scaler unscales and skips a step for all weights at once. Updates
    of Muon are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training"), so both have the
    same learning rate and weight decay. State of a matrix: ``momentum_buffer``; of the others: AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        weight_decay: float,
    ):
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        muon = torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **common)
        adamw = torch.optim.AdamW(others, betas=betas, fused=True, **common)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = (muon, adamw)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None, "a closure would be evaluated twice"
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Assigned in each step, because `load_state_dict`, which Accelerate calls too, replaces both.
            part.param_groups, part.state = [group], self.state
            part.step()
