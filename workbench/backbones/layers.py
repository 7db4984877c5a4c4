"""Shared layers of the diffusion transformers, with the parameter names of the published checkpoints.

Layers are created with zero weights, which `TransformerBackbone.initialize(generator)` or a checkpoint fills, so
creating a model does not use the global random number generator.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

FREQUENCIES = 128
MAX_PERIOD = 10_000
# The fused attention of a CPU is slow in bfloat16: a training step of it takes 4 times as long as plain matrix products
# for 64 tokens, 2.1 times for 256 and 1.4 times for 1024 (AMD Zen 4), where the weights would fill the memory.
_MOST_UNFUSED = 256


class Blank(nn.Module):
    """Mixin for a torch layer that initializes its parameters to zero."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)


class Linear(Blank, nn.Linear):
    """An nn.Linear with zero weights."""


class Conv2d(Blank, nn.Conv2d):
    """An nn.Conv2d with zero weights."""


class Embedding(Blank, nn.Embedding):
    """An nn.Embedding with zero weights."""


def draw_xavier_(weight: Float[Tensor, "out ..."], generator: torch.Generator) -> None:
    """Fill `weight` with Xavier-uniform numbers of its 2-D view (out, rest), as DiT's linear and patch layers.

    The numbers are drawn in float32 on the generator's device, so they do not depend on the weight's device or dtype.
    """
    draw = torch.empty(weight.shape, dtype=torch.float32, device=generator.device)
    nn.init.xavier_uniform_(draw.flatten(1), generator=generator)
    weight.copy_(draw)


def draw_normal_(weight: Float[Tensor, "..."], std: float, generator: torch.Generator) -> None:
    """Fill `weight` with N(0, std^2), as DiT's label table and time MLP; drawn as in `draw_xavier_`."""
    draw = torch.empty(weight.shape, dtype=torch.float32, device=generator.device)
    weight.copy_(draw.normal_(0.0, std, generator=generator))


def sincos_positions(side: int, width: int) -> Float[Tensor, "n d"]:
    """Fixed 2-D sine-cosine positions of a side x side grid in row-major order (as MAE), in float64.

    The column coordinate fills the first half of `width`, the row coordinate the second; each half is
    [sin | cos] of position * 10000^(-i / (width/4)), i = 0 .. width/4 - 1.
    """
    assert width % 4 == 0, f"width {width} is not a multiple of 4"
    frequencies = MAX_PERIOD ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = repeat(axis, "w half -> (h w) half", h=side)
    row = repeat(axis, "h half -> (h w) half", w=side)
    return torch.cat([column, row], dim=1)


def timestep_features(t: Float[Tensor, "b"]) -> Float[Tensor, "b 256"]:
    """[cos | sin] of t * 10000^(-i/128), i = 0 .. 127 (DiT), in float32; t in [0, 1] is not scaled by 1000."""
    steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / FREQUENCIES)
    angles = torch.outer(t.float(), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(
    tokens: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """Affine step of adaptive layer norm (DiT): tokens * (1 + scale) + shift."""
    return tokens * (1 + scale) + shift


def tanh_gelu(x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
    """The GELU with tanh of DiT: x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    if x.device.type == "cpu" and torch.compiler.is_compiling():  # the sigmoid takes 40 % of the time of the tanh
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


class PatchEmbed(nn.Module):
    """Tokens "b n width" in row-major order from an image "b c h w", by a linear map of each patch."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        # Contiguous, because every later layer keeps the memory layout of the tokens: a transposed one is slow and,
        # with bfloat16 in compiled blocks, gives NaN on some processors.
        return rearrange(self.proj(x.to(self.proj.weight.dtype)), "b d h w -> b (h w) d").contiguous()


class TimestepEmbedder(nn.Module):
    """Time embedding of the model's width: `timestep_features`, then a SiLU MLP in the weights' dtype."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b d"]:
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(timestep_features(t).to(first.weight.dtype))


class LabelEmbedder(nn.Module):
    """Embedding of `classes` labels and, at index `classes`, of the null label.

    With `null_row` False there is no null label, as in published models trained without label dropout.
    """

    def __init__(self, classes: int, width: int, null_row: bool = True):
        super().__init__()
        self.embedding_table = Embedding(classes + null_row, width)

    def forward(self, y: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens; `norm(head_dim)` creates the norms of queries and keys.

    `rotate`, if given, applies rotary positions to the normalized queries and keys "b heads n e".
    """

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm = norm(width // heads)
        self.k_norm = norm(width // heads)
        self.proj = Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "b n d"], rotate: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        q, k, v = self._heads(tokens, rotate)
        mixed = _weights(q, k) @ v if _slow_if_fused(v) else F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(mixed, "b heads n e -> b n (heads e)"))

    def weights(
        self, tokens: Float[Tensor, "b n d"], rotate: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "b heads n m"]:
        """Attention weights: softmax of q k^T / sqrt(e), at least float32, which a fused kernel does not return."""
        q, k, _ = self._heads(tokens, rotate)
        return _weights(q, k, torch.promote_types(q.dtype, torch.float32))

    def _heads(
        self, tokens: Float[Tensor, "b n d"], rotate: Callable[[Tensor], Tensor] | None
    ) -> tuple[Float[Tensor, "b heads n e"], Float[Tensor, "b heads n e"], Float[Tensor, "b heads n e"]]:
        """Queries, keys and values by head."""
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv heads e) -> qkv b heads n e", qkv=3, heads=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotate is None else (rotate(q), rotate(k), v)


def _weights(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads m e"], dtype: torch.dtype | None = None
) -> Float[Tensor, "b heads n m"]:
    return (q / math.sqrt(q.shape[3]) @ k.transpose(2, 3)).softmax(dim=3, dtype=dtype)


def _slow_if_fused(v: Float[Tensor, "b heads n e"]) -> bool:
    """Whether plain matrix products compute attention faster than the fused kernel."""
    return v.device.type == "cpu" and v.dtype == torch.bfloat16 and v.shape[2] <= _MOST_UNFUSED


class FinalLayer(nn.Module):
    """Patch vectors "b n pixels" from tokens: `norm`, shift and scale by the condition, a linear layer."""

    def __init__(self, width: int, pixels: int, norm: nn.Module):
        super().__init__()
        self.norm_final = norm
        self.linear = Linear(width, pixels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n pixels"]:
        shift, scale = rearrange(self.adaLN_modulation(condition), "b (two d) -> two b 1 d", two=2)
        return self.linear(modulate(self.norm_final(tokens), shift, scale))
