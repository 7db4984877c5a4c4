"""Patchify latents to token sequences and back, in the layout of the published checkpoints."""

import math

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(z: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n k"]:
    """Cut a latent into patch x patch tokens, n = (h/patch)(w/patch) of k = patch*patch*c numbers.

    Tokens are in row-major order. Inside a token the order is (row, column, channel), channel fastest, as in the
    published final layers (DiT, SiT, LightningDiT). Raises ValueError if the patch does not divide the grid.
    """
    height, width = z.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"patch {patch} does not divide a latent of {height} x {width}")
    return rearrange(z, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch)


def unpatchify(
    tokens: Float[Tensor, "b n k"], patch: int, channels: int, height: int
) -> Float[Tensor, "b {channels} {height} w"]:
    """Assemble tokens to a latent of `height` rows (latent pixels): inverse of `patchify`.

    The width follows from the number of tokens. Raises ValueError if k is not patch*patch*channels, the patch does not
    divide the height, or the tokens do not fill whole rows.
    """
    count, size = tokens.shape[1:]
    if size != patch * patch * channels:
        raise ValueError(f"tokens hold {size} numbers, not {patch} x {patch} x {channels} = {patch * patch * channels}")
    if height % patch:
        raise ValueError(f"patch {patch} does not divide a height of {height}")
    rows = height // patch
    if count % rows:
        raise ValueError(f"{count} tokens do not fill {rows} rows of patches")
    return rearrange(tokens, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=rows, p1=patch, p2=patch)


def to_map(f: Float[Tensor, "b n d"]) -> Float[Tensor, "b d h w"]:
    """Features of a square token grid as an image with d channels, h = w = sqrt(n).

    Raises ValueError if n is not a square.
    """
    count = f.shape[1]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} tokens do not form a square grid")
    return rearrange(f, "b (h w) d -> b d h w", h=side)
