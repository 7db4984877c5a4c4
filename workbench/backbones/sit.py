"""SiT (Ma et al. 2024): the DiT transformer (Peebles and Xie 2023) trained on velocities.

Time follows this package's convention, t = 1 is noise. State dict keys are those of SiT, REPA, SRA, LayerSync and DiT.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.backbones.layers import Attention, FinalLayer, Linear, modulate, tanh_gelu
from workbench.config.declared import Size
from workbench.config.ranges import Patch


def plain_norm(width: int) -> nn.LayerNorm:
    """A layer norm without parameters, as scale and shift come from the condition."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Mlp(nn.Module):
    """MLP with tanh-GELU and a hidden width of four times the width, as in DiT."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(tanh_gelu(self.fc1(tokens)))


class Block(nn.Module):
    """DiT's adaLN-zero block: attention, then an MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.norm1 = plain_norm(width)
        self.attn = Attention(width, heads, norm=nn.LayerNorm if qk_norm else nn.Identity)
        self.norm2 = plain_norm(width)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def forward(self, tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rearrange(
            self.adaLN_modulation(condition), "b (six d) -> six b 1 d", six=6
        )
        tokens = tokens + gate_msa * self.attn(modulate(self.norm1(tokens), shift_msa, scale_msa))
        return tokens + gate_mlp * self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))


class Backbone(TransformerBackbone):
    """SiT of a named size, with the arguments of `TransformerBackbone` and `qk_norm`.

    `qk_norm` adds a layer norm with parameters to the queries and keys of every head. Raises ValueError for an unknown
    size or a patch that does not divide the latent's height.
    """

    sizes = {
        "pico": Size(depth=12, width=48, heads=3),  # ours: twelve layers in a megabyte of float16
        "nano": Size(depth=12, width=128, heads=2),  # ours: depth for layer studies, width for a CPU
        "s": Size(depth=12, width=384, heads=6),
        "b": Size(depth=12, width=768, heads=12),
        "l": Size(depth=24, width=1024, heads=16),
        "xl": Size(depth=28, width=1152, heads=16),
    }

    def __init__(
        self,
        *,
        size: str = "nano",
        patch: Patch = 1,
        qk_norm: bool = False,
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
        self.blocks = nn.ModuleList(Block(self.width, self.heads, qk_norm) for _ in range(self.depth))
        self.final_layer = FinalLayer(self.width, self.pixels, plain_norm(self.width))
