"""Base class of the diffusion transformers: embeddings, transformer blocks with intermediate features, final layer.

Layers count from 1: layer k is the output of `blocks[k-1]`; layer 0 is the patch embedding with positions. Layers are
explicit arguments, not hooks, which is safe with DDP, compilation and activation checkpointing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.backbones.layers import (
    Conv2d,
    FinalLayer,
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

Edit = Callable[[Tensor], Tensor]  # from the tokens "b n d" of a layer to those that the next block gets
NO_EDITS: Mapping[int, Edit] = MappingProxyType({})


@dataclass(frozen=True)
class Tapped:
    """A velocity and the intermediate tokens by layer number."""

    v: Float[Tensor, "b c h w"]
    features: dict[int, Float[Tensor, "b n d"]]


class TransformerBackbone(nn.Module):
    """Base class of diffusion transformers; a subclass defines `sizes`, `blocks` and `final_layer`.

    `channels` and `height` are those of the square latent. `classes` is the number of real classes; label `classes` is
    the null label, unless `null_row` is False, as in some published models. `learn_sigma` doubles the output channels
    as in the original SiT and DiT; the second half is dropped. `checkpoint_blocks` recomputes each block in the
    backward pass instead of storing its activations. All weights of a new model are zero: call `initialize` or load a
    checkpoint.
    """

    sizes: ClassVar[dict[str, Size]]
    blocks: nn.ModuleList
    final_layer: FinalLayer
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
        """The null label; ValueError for a model whose label table has no null row."""
        if not self.null_row:
            raise ValueError(
                f"the model has a label table of {self.classes} classes and no null row: it cannot run without a "
                f"class, so it has no guidance and no unconditional features"
            )
        return self.classes

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Initialize all parameters as in DiT (adaLN-zero: the velocity is 0), drawing from `generator` only.

        Xavier uniform for linear and patch weights, N(0, 0.02^2) for the label table and the time MLP, 0 for biases,
        modulations and the last linear layer, 1 for the scales of norms.
        """
        modulated = [*self.blocks, self.final_layer]
        zero = {self.final_layer.linear, *(_modulation_linear(module) for module in modulated)}
        small = {self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]}
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            if module in small:
                draw_normal_(module.get_parameter("weight"), 0.02, generator)
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
        edits: Mapping[int, Edit] = NO_EDITS,
    ) -> Tapped:
        """The velocity of `forward`, and the output tokens of each of `layers` (0 .. depth).

        `edits` are functions by layer: the tokens of the layer are replaced by what the function returns for them, for
        all that comes after it, and in the features too.

        Raises ValueError for a layer outside 0 .. depth, and for an edit that changes the shape or type of the tokens.
        """
        self._check_layers((*layers, *edits))
        tokens, condition, features = self._walk(x_t, t, y, layers, self.depth, **_given(edits))
        return Tapped(self._velocity(tokens, condition), features)

    def read_out(
        self, tokens: Float[Tensor, "b n d"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], y: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """The velocity that the final layer gives for tokens: of the last layer that of `forward`, of others a lens.

        `x_t` are the points that the tokens are of, which some models' conversion to a velocity needs.
        """
        return self._velocity(tokens, self.t_embedder(t) + self.y_embedder(y))

    def features(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        y: Int[Tensor, "b"],
        layers: tuple[int, ...],
    ) -> dict[int, Float[Tensor, "b n d"]]:
        """The output tokens of each of `layers` (0 .. depth); blocks after the deepest of them are not run.

        Raises ValueError for a layer outside 0 .. depth.
        """
        self._check_layers(layers)
        return self._walk(x_t, t, y, layers, max(layers, default=0))[2]

    def _velocity(self, tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        patches = self.final_layer(tokens, condition)
        return unpatchify(patches, self.patch, self.pixels // self.patch**2, self.height)[:, : self.channels]

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
        edits: Mapping[int, Edit] = NO_EDITS,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"], dict[int, Float[Tensor, "b n d"]]]:
        """The output tokens of layer `deepest`, the condition, and the intermediate tokens by layer number."""
        expected = (self.channels, self.height, self.height)
        assert x_t.shape[1:] == expected, f"x_t is {tuple(x_t.shape)}; this model takes {expected} after b"
        tokens = self.x_embedder(x_t) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(y)
        features = {}
        for layer in range(deepest + 1):
            if layer > 0:
                tokens = self._run_block(self.blocks[layer - 1], tokens, condition)
            if layer in edits:
                tokens = _edited(tokens, edits[layer], layer)
            if layer in layers:
                features[layer] = tokens
        return tokens, condition, features

    def _run_block(
        self, block: Callable[..., Tensor], tokens: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n d"]:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            # Blocks use no random numbers, so there is no RNG state to preserve.
            return checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
        return block(tokens, condition)


def _given(edits: Mapping[int, Edit]) -> dict[str, Mapping[int, Edit]]:
    """Keyword arguments of `_walk`: nothing without edits, which backbones of other packages may not take."""
    return {"edits": edits} if edits else {}


def _edited(tokens: Float[Tensor, "b n d"], edit: Edit, layer: int) -> Float[Tensor, "b n d"]:
    changed = edit(tokens)
    if (changed.shape, changed.dtype) != (tokens.shape, tokens.dtype):
        raise ValueError(
            f"the edit of layer {layer} returned {tuple(changed.shape)} of {changed.dtype}; the tokens are "
            f"{tuple(tokens.shape)} of {tokens.dtype}, and that must not change"
        )
    return changed


def _modulation_linear(module: nn.Module) -> nn.Module:
    """The linear layer that computes shift, scale and gate."""
    return list(module.get_submodule("adaLN_modulation").children())[-1]
