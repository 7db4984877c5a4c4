"""LightningDiT (Yao et al. 2025): SiT with rotary positions, RMS norms and a gated MLP.

Time follows this package's convention, t = 1 is noise. State dict keys are those of the published files.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.backbones.layers import MAX_PERIOD, Attention, FinalLayer, Linear, modulate
from workbench.backbones.sit import Mlp, plain_norm
from workbench.config.declared import Size
from workbench.config.ranges import Patch

_ROUNDED = 1e-2  # above the rounding error in half precision, far below the difference of adjacent positions


def rotary_angles(side: int, head: int) -> Float[Tensor, "n e"]:
    """Rotary angles of a side x side grid in row-major order, for heads of width `head`, in float64 (EVA).

    The row coordinate rotates the first half of a head, the column coordinate the second. In each half, channels 2i and
    2i + 1 are rotated by coordinate * 10000^(-2i / (head/2)). They are 0 .. side - 1 on every grid (not rescaled),
    as the released model is built for its own grid.
    """
    assert head % 4 == 0, f"head width {head} is not a multiple of 4"
    frequencies = MAX_PERIOD ** (-torch.arange(0, head // 2, 2, dtype=torch.float64) / (head // 2))
    coordinates = torch.arange(side, dtype=torch.float64)
    axis = repeat(torch.outer(coordinates, frequencies), "side pair -> side (pair two)", two=2)
    row = repeat(axis, "h half -> (h w) half", w=side)
    column = repeat(axis, "w half -> (h w) half", h=side)
    return torch.cat([row, column], dim=1)


class Rotation(nn.Module):
    """Rotary positions: rotates adjacent pairs of channels of a query or key by `rotary_angles`.

    Cosines and sines "n e" are buffers, as in the published files. A cast below float32 leaves them in float32, and
    they are applied in that precision, so only the result is rounded. Loading tables of other positions raises
    ValueError, as weights trained with them are a different model.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, side: int, head: int):
        super().__init__()
        self.side = side
        self.register_buffer("freqs_cos", torch.empty(side * side, head, dtype=torch.float32))
        self.register_buffer("freqs_sin", torch.empty(side * side, head, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        angles = rotary_angles(self.side, self.freqs_cos.shape[1])
        self.freqs_cos.copy_(angles.cos())
        self.freqs_sin.copy_(angles.sin())

    def forward(self, x: Float[Tensor, "b heads n e"]) -> Float[Tensor, "b heads n e"]:
        even, odd = rearrange(x, "b heads n (pair two) -> two b heads n pair", two=2)
        quarter = rearrange(torch.stack([-odd, even]), "two b heads n pair -> b heads n (pair two)")
        return (x * self.freqs_cos + quarter * self.freqs_sin).to(x.dtype)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        check_rotation({name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotation":
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, table in exact.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < torch.float32.itemsize:
                setattr(self, name, table.to(moved.device))
        return self


def check_rotation(tables: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `freqs_cos` and `freqs_sin` in `tables` are those of their grid, up to rounding.

    Tables whose shape is not that of a square grid are skipped here; the check of shapes refuses them.
    """
    for name, table in tables.items():
        side = math.isqrt(table.shape[0]) if table.ndim == 2 else 0
        if side == 0 or side**2 != table.shape[0] or table.shape[1] % 4:
            continue
        angles = rotary_angles(side, table.shape[1]).to(table.device)
        expected = angles.cos() if name.endswith("cos") else angles.sin()
        if not torch.allclose(table.double(), expected, rtol=0, atol=_ROUNDED):
            raise ValueError(
                f"its rotary positions ({name}) are not the unscaled positions 0..{side - 1} of its {side} x {side} "
                f"grid, as in the released LightningDiT; a run trained before they were corrected has to be trained "
                f"again"
            )


class RMSNorm(nn.Module):
    """RMS norm with a learned scale, computed in float32 or higher precision."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, tokens: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        normed = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + 1e-6)
        return normed.to(tokens.dtype) * self.weight


class SwiGlu(nn.Module):
    """The gated MLP w3(silu(gate) * value) with [gate | value] = w12(tokens), hidden width 8/3 of the width."""

    def __init__(self, width: int):
        super().__init__()
        inner = int(2 / 3 * (4 * width))  # rounded down, not to a multiple, as in the published files
        self.w12 = Linear(width, 2 * inner)
        self.w3 = Linear(inner, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        gate, value = rearrange(self.w12(tokens), "b n (two h) -> two b n h", two=2)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """SiT's adaLN-zero block with LightningDiT's optional changes; `wo_shift` omits the two shifts."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, swiglu: bool, rmsnorm: bool, wo_shift: bool):
        super().__init__()
        norm = RMSNorm if rmsnorm else plain_norm
        head_norm = RMSNorm if rmsnorm else nn.LayerNorm
        self.wo_shift = wo_shift
        self.norm1 = norm(width)
        self.attn = Attention(width, heads, norm=head_norm if qk_norm else nn.Identity)
        self.norm2 = norm(width)
        self.mlp = SwiGlu(width) if swiglu else Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, (4 if wo_shift else 6) * width))

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        modulations = self.adaLN_modulation(condition)
        if self.wo_shift:
            scale_msa, gate_msa, scale_mlp, gate_mlp = rearrange(modulations, "b (four d) -> four b 1 d", four=4)
            shift_msa = shift_mlp = torch.zeros_like(gate_msa)
        else:
            shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rearrange(
                modulations, "b (six d) -> six b 1 d", six=6
            )
        tokens = tokens + gate_msa * self.attn(modulate(self.norm1(tokens), shift_msa, scale_msa), rotate)
        return tokens + gate_mlp * self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))


class Backbone(TransformerBackbone):
    """LightningDiT of a named size, with the arguments of `TransformerBackbone` and the released flags.

    `rope` applies rotary positions to queries and keys (in addition to absolute positions). `rmsnorm` replaces SiT's
    layer norms by RMS norms with a scale, `swiglu` its MLP by the gated one. `qk_norm` normalizes the queries and keys
    of every head with a scale (RMS norm, or a layer norm as in SiT without `rmsnorm`). `wo_shift` omits the shifts in
    all blocks, but not in the final layer. The defaults are those of the published models. Raises ValueError for an
    unknown size or a patch that does not divide the latent's height.
    """

    sizes = {
        "pico": Size(depth=12, width=48, heads=3),  # ours: as small as SiT's
        "nano": Size(depth=12, width=128, heads=2),  # ours: depth for layer studies, width for a CPU
        "b": Size(depth=12, width=768, heads=12),
        "l": Size(depth=24, width=1024, heads=16),
        "xl": Size(depth=28, width=1152, heads=16),
        "1p0b": Size(depth=24, width=1536, heads=24),
        "1p6b": Size(depth=28, width=1792, heads=28),
    }

    def __init__(
        self,
        *,
        size: str = "nano",
        patch: Patch = 1,
        qk_norm: bool = False,
        swiglu: bool = True,
        rope: bool = True,
        rmsnorm: bool = True,
        wo_shift: bool = False,
        channels: int,
        height: int,
        classes: int,
        null_row: bool = True,
        learn_sigma: bool = False,
        checkpoint_blocks: bool = False,
    ):
        super().__init__(
            size=size,
            patch=patch,
            channels=channels,
            height=height,
            classes=classes,
            null_row=null_row,
            learn_sigma=learn_sigma,
            checkpoint_blocks=checkpoint_blocks,
        )
        flags = {"qk_norm": qk_norm, "swiglu": swiglu, "rmsnorm": rmsnorm, "wo_shift": wo_shift}
        self.feat_rope = Rotation(height // patch, self.width // self.heads) if rope else None
        self.blocks = nn.ModuleList(Block(self.width, self.heads, **flags) for _ in range(self.depth))
        final_norm = RMSNorm(self.width) if rmsnorm else plain_norm(self.width)
        self.final_layer = FinalLayer(self.width, self.pixels, final_norm)

    def _run_block(
        self, block: Callable[..., Tensor], tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n d"]:
        return super()._run_block(partial(block, rotate=self.feat_rope), tokens, condition)
