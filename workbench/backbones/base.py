"""What every diffusion transformer here is: embeddings, a column of blocks that can be tapped, a final layer.

Layers count from 1: layer k is the token tensor that leaves `blocks[k-1]`; layer 0 is the patch embedding
with its positions. Taps are explicit arguments, not hooks: safe under DDP, compilation and checkpointing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.backbones.layers import (
    Conv2d,
    LabelEmbedder,
    Linear,
    PatchEmbed,
    TimestepEmbedder,
    draw_normal_,
    draw_xavier_,
    sincos_positions,
)
from workbench.config.declared import Size
from workbench.diffusion.tokens import unpatchify


@dataclass(frozen=True)
class Tapped:
    """A velocity and, by layer number, the raw tokens behind it."""

    v: Float[Tensor, "b c h w"]
    features: dict[int, Float[Tensor, "b n d"]]


class TransformerBackbone(nn.Module):
    """The trunk of the diffusion transformers; a subclass names its `sizes`, sets `blocks` and `final_layer`.

    `channels` and `height` are those of the square latent; `classes` counts the real classes, and label
    `classes` is the null one, unless `null_row` is off: some published models have none. `learn_sigma` doubles
    the output channels as the original SiT and DiT files do; the second half is dropped. `checkpoint_blocks`
    recomputes each block in the backward pass instead of keeping its activations. A new model's weights are
    all zero: call `initialize` or load a checkpoint.
    """

    sizes: ClassVar[dict[str, Size]]
    SUPPLIED: ClassVar[tuple[str, ...]] = ("channels", "height", "classes", "null_row")  # by the data, not by options

    def __init__(
        self,
        *,
        size: str,
        patch: int,
        channels: int,
        height: int,
        classes: int,
        null_row: bool = True,
        learn_sigma: bool = False,
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        if size not in self.sizes:
            raise ValueError(f"size {size!r} is unknown; allowed are {', '.join(self.sizes)}")
        if patch < 1 or height % patch:
            raise ValueError(f"patch {patch} does not divide the latent height {height}")
        self.depth, self.width, self.heads = self.sizes[size]
        self.patch, self.channels, self.height = patch, channels, height
        self.tokens = (height // patch) ** 2
        self.classes, self.null_row = classes, null_row
        self.pixels = patch * patch * channels * (2 if learn_sigma else 1)
        self.checkpoint_blocks = checkpoint_blocks
        positions = self._positions().to(torch.get_default_dtype())
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.x_embedder = PatchEmbed(channels, patch, self.width)
        self.t_embedder = TimestepEmbedder(self.width)
        self.y_embedder = LabelEmbedder(classes, self.width, null_row)

    @property
    def null_label(self) -> int:
        """The label of no class; ValueError for a model whose label table has no row for it."""
        if not self.null_row:
            raise ValueError(
                f"the model has a label table of {self.classes} classes and no null row: it gives nothing without a "
                f"class, so it can neither be guided nor have unconditional features"
            )
        return self.classes

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Set every parameter as DiT does (adaLN-zero: the velocity is 0), drawing from `generator` alone.

        Xavier uniform for linear and patch weights, N(0, 0.02^2) for the label table and the time MLP, 0 for
        biases, the modulations and the last linear map, 1 for the scales of norms.
        """
        modulated = [*self.blocks, self.final_layer]
        zero = {self.final_layer.linear, *(module.adaLN_modulation[-1] for module in modulated)}
        small = {self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]}
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if module in small:
                draw_normal_(module.weight, 0.02, generator)
            elif isinstance(module, (Linear, Conv2d)) and module not in zero:
                draw_xavier_(module.weight, generator)
        self.pos_embed.copy_(self._positions())

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], y: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity v = eps - z predicted at time t (0 data, 1 noise) for labels y, in the weights' dtype."""
        return self.forward_tapped(x_t, t, y, ()).v

    def forward_tapped(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
    ) -> Tapped:
        """The velocity of `forward` together with the tokens that leave each of `layers` (0 .. depth).

        Raises ValueError for a layer outside 0 .. depth.
        """
        self._check_layers(layers)
        tokens, condition, features = self._walk(x_t, t, y, layers, self.depth)
        patches = self.final_layer(tokens, condition)
        v = unpatchify(patches, self.patch, self.pixels // self.patch**2, self.height)[:, : self.channels]
        return Tapped(v, features)

    def features(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
    ) -> dict[int, Float[Tensor, "b n d"]]:
        """The tokens that leave each of `layers` (0 .. depth); no block above the deepest of them runs.

        Raises ValueError for a layer outside 0 .. depth.
        """
        self._check_layers(layers)
        return self._walk(x_t, t, y, layers, max(layers, default=0))[2]

    def _positions(self) -> Float[Tensor, "1 n d"]:
        return sincos_positions(self.height // self.patch, self.width)[None]

    def _check_layers(self, layers: tuple[int, ...]) -> None:
        for layer in layers:
            if not 0 <= layer <= self.depth:
                allowed = f"0..{self.depth} (0 is the patch embedding, {self.depth} the last block)"
                raise ValueError(f"layer {layer} is outside {allowed}")

    def _walk(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
        deepest: int,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"], dict[int, Float[Tensor, "b n d"]]]:
        """The tokens that leave layer `deepest`, the condition, and the tapped tokens by layer number."""
        expected = (self.channels, self.height, self.height)
        assert x_t.shape[1:] == expected, f"x_t is {tuple(x_t.shape)}; this model takes {expected} after b"
        tokens = self.x_embedder(x_t) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(y)
        features = {0: tokens} if 0 in layers else {}
        for layer in range(1, deepest + 1):
            tokens = self._run_block(self.blocks[layer - 1], tokens, condition)
            if layer in layers:
                features[layer] = tokens
        return tokens, condition, features

    def _run_block(
        self, block: Callable[..., Tensor], tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n d"]:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            # Blocks draw nothing, so there is no generator state to save and restore.
            return checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
        return block(tokens, condition)
