"""Features of a run over a grid of layers and times, with the label modes kept apart, read from the disk."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from workbench.diffusion.guidance import guide
from workbench.diffusion.randomness import permutation
from workbench.diffusion.tokens import to_map
from workbench.features.cache import array_file, read_array

_IMAGES = 50  # images whose tokens fit into a cache
FEWEST_TOKENS = 9  # on a smaller grid no pair of tokens is near, so there is no LDS

# Of each label mode: whether the image is noise in its place, and which label the network is told.
LABELS = {
    "null": (False, "null"),
    "true": (False, "true"),
    "wrong": (False, "given"),
    "noise-null": (True, "null"),
    "noise-true": (True, "true"),
}
_PAIRS = {"true": ("null", "true"), "wrong": ("null", "wrong"), "noise": ("noise-null", "noise-true")}


def wrong_labels(labels: Integer[np.ndarray, " n"], *, seed: int) -> Int64[np.ndarray, " n"]:
    """The labels in a random order of the images: independent of the true ones, each as frequent as before.

    Renaming the classes would not do: images given one name would still be those of one class, and no measure could
    tell the condition from the image. So a few labels, one of k if balanced, stay right by chance.
    """
    return labels[permutation(seed, "wrong-label", 0, len(labels))].astype(np.int64)


def local_distant_similarity(tokens: Float[Tensor, "n m d"]) -> Float64[Tensor, " n"]:
    """LDS of each image (Singh et al. 2025): mean cosine of near pairs of tokens less that of distant pairs.

    On the square grid of side s a pair is near when its Manhattan distance is 1 .. below s/2, distant from s/2 on.
    0 for a constant map. ValueError if m is not the square of 3 or more, or a token is zero or not finite.
    """
    side = to_map(tokens).shape[-1]
    if side < 3:
        raise ValueError(f"a grid of {side} x {side} tokens has no near pairs; it needs 3 x 3 or more")
    places = np.stack(np.divmod(np.arange(side * side), side))
    distance = np.abs(places[:, :, None] - places[:, None, :]).sum(axis=0)
    far = distance >= side / 2
    near = ~far & (distance > 0)
    weights = near / near.sum() - far / far.sum()
    lengths = torch.linalg.vector_norm(tokens.detach().cpu(), dim=2, dtype=torch.float64)
    broken = (~lengths.isfinite() | (lengths == 0)).nonzero().tolist()
    if broken:
        raise ValueError(
            f"token {broken[0][1]} of image {broken[0][0]} is zero or not finite; a cosine needs a direction"
        )
    found = []
    for part, of_part in zip(tokens.detach().cpu().split(_IMAGES), lengths.split(_IMAGES), strict=True):
        unit = part / of_part[:, :, None]
        # The cosines themselves are never kept: sum_ij w_ij u_i . u_j = sum_i u_i . (w u)_i.
        found.append(reduce(unit * (torch.from_numpy(weights) @ unit), "b m d -> b", "sum"))
    return torch.cat(found)


def whole_numbers(name: str, values: Any) -> list[int]:
    """Layers, steps or row numbers as a user gave them; ValueError for one that is no whole number: none is rounded."""
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}; allowed are whole numbers")
    found = []
    for value in values:
        try:
            found.append(operator.index(value))
        except TypeError as error:
            raise ValueError(f"{name} has {value!r}; allowed are whole numbers") from error
    return found


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """Features of the images at `rows` at every layer x time x label mode; nothing is held in memory.

    `labels` are the modes: "null" is f_u, "true" f_c, "wrong" that of the label `given`, "noise-null" and "noise-true"
    those of noise in place of the image. With `pooling` "tokens" a feature is ``n m d``, with "mean", over tokens,
    ``n d``. `true` and `given` are the classes of the images and the wrong ones they were told.
    """

    run: str
    step: int
    layers: tuple[int, ...]
    times: tuple[float, ...]
    labels: tuple[str, ...]
    pooling: str
    rows: tuple[int, ...]
    true: Int64[Tensor, " n"]
    given: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    folder: Path

    def read(self, layer: int, t: float, label: str = "null") -> Float[Tensor, "n ..."]:
        """The features of one layer, time and label mode, mapped from the disk.

        ValueError, listing what there is, if they were not extracted, and naming the file if it is gone or damaged.
        """
        return torch.from_numpy(read_array(self._file(layer, t, label)))

    def guided(self, layer: int, t: float, scale: float, image: str = "true") -> Float[Tensor, "n ..."]:
        """f_g = f_u + scale (f_c - f_u), Eq. 3: exact at any scale, float32, without running the network.

        `image` says of what: "true" and "wrong" take f_c of the true and the wrong label, "noise" both features of
        noise in place of the image.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale is {scale}; allowed are finite numbers")
        if image not in _PAIRS:
            raise ValueError(f"image is {image!r}; allowed are {', '.join(_PAIRS)}")
        f_u, f_c = (self.read(layer, t, label).float() for label in _PAIRS[image])
        return guide(f_u, f_c, scale)

    def pooled(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Mean tokens in float32 of what `read` or `guided` gave."""
        return features.float() if self.pooling == "mean" else features.float().mean(dim=1)

    def lds(self, layer: int, t: float, label: str = "null") -> Float64[Tensor, " n"] | None:
        """Local-distant similarity of each image's tokens, which mean tokens keep; None for fewer than 3 x 3 tokens."""
        if self.pooling == "tokens":
            tokens = self.read(layer, t, label).float()
            return local_distant_similarity(tokens) if tokens.shape[1] >= FEWEST_TOKENS else None
        found = torch.from_numpy(read_array(self._file(layer, t, label, "lds")))
        return None if found.isnan().any() else found

    def _file(self, layer: int, t: float, label: str, of: str = "features") -> Path:
        for name, value, there in (("layer", layer, self.layers), ("t", t, self.times), ("label", label, self.labels)):
            if value not in there:
                raise ValueError(f"{name} {value!r} was not extracted; there are {', '.join(map(repr, there))}")
        return array_file(self.folder, label, float(t), layer, of)
