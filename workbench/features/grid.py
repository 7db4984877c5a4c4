"""Features of a run over a grid of layers, times and label modes, read from disk."""

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

from workbench.config import DataConfig
from workbench.diffusion.guidance import guide
from workbench.diffusion.randomness import permutation
from workbench.diffusion.tokens import to_map
from workbench.features.cache import array_file, read_array

_IMAGES = 50  # images whose tokens fit into the processor's cache
FEWEST_TOKENS = 9  # a smaller grid has no near pairs of tokens and so no LDS

# By label mode: whether the image is replaced by noise, and the label given to the network.
LABELS = {
    "null": (False, "null"),
    "true": (False, "true"),
    "wrong": (False, "given"),
    "noise-null": (True, "null"),
    "noise-true": (True, "true"),
}
_PAIRS = {"true": ("null", "true"), "wrong": ("null", "wrong"), "noise": ("noise-null", "noise-true")}


def wrong_labels(labels: Integer[np.ndarray, " n"], *, seed: int) -> Int64[np.ndarray, " n"]:
    """Labels permuted over the images: independent of the true ones and as frequent.

    Permuting the classes instead would not separate condition and image, as all images with one label would still be of
    one class. Some labels, one in k if balanced, remain correct by chance.
    """
    return labels[permutation(seed, "wrong-label", 0, len(labels))].astype(np.int64)


def local_distant_similarity(tokens: Float[Tensor, "n m d"]) -> Float64[Tensor, " n"]:
    """LDS of each image (Singh et al. 2025): mean cosine of near pairs of tokens minus that of distant pairs.

    On the square grid of side s, a pair is near if its Manhattan distance is at least 1 and below s/2, else distant.
    A constant map has 0. Raises ValueError if m is not the square of 3 or more, or a token is zero or not finite.
    """
    side = to_map(tokens).shape[-1]
    if side < 3:
        raise ValueError(f"a grid of {side} x {side} tokens has no near pairs; it needs 3 x 3 or more")
    positions = np.stack(np.divmod(np.arange(side * side), side))
    distance = np.abs(positions[:, :, None] - positions[:, None, :]).sum(axis=0)
    far = distance >= side / 2
    near = ~far & (distance > 0)
    weights = near / near.sum() - far / far.sum()
    lengths = torch.linalg.vector_norm(tokens.detach().cpu(), dim=2, dtype=torch.float64)
    broken = (~lengths.isfinite() | (lengths == 0)).nonzero().tolist()
    if broken:
        raise ValueError(
            f"token {broken[0][1]} of image {broken[0][0]} is zero or not finite; a cosine needs a direction"
        )
    similarities = []
    for part, of_part in zip(tokens.detach().cpu().split(_IMAGES), lengths.split(_IMAGES), strict=True):
        unit = part / of_part[:, :, None]
        # The cosines are not computed one by one: sum_ij w_ij u_i . u_j = sum_i u_i . (w u)_i.
        similarities.append(reduce(unit * (torch.from_numpy(weights) @ unit), "b m d -> b", "sum"))
    return torch.cat(similarities)


def whole_numbers(name: str, values: Any) -> list[int]:
    """Layers, steps or row numbers as a list of int; ValueError for a value that is not an integer."""
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}; allowed are whole numbers")
    numbers = []
    for value in values:
        try:
            numbers.append(operator.index(value))
        except TypeError as error:
            raise ValueError(f"{name} has {value!r}; allowed are whole numbers") from error
    return numbers


def real_numbers(name: str, values: Any, low: float = -math.inf, high: float = math.inf) -> tuple[float, ...]:
    """Noise levels or guidance scales, distinct and in order; ValueError for none, or one that is not low to high."""
    allowed = f"{low:g} to {high:g}" if math.isfinite(high) else "finite numbers"
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}; allowed are several of these: {allowed}")
    found = []
    for value in values:
        try:
            number = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and low <= number <= high):
            raise ValueError(f"{name} has {value!r}; allowed are {allowed}")
        found.append(number)
    if not found:
        raise ValueError(f"{name} has nothing; allowed are {allowed}")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """Features of the images at `rows` for every layer x time x label mode, on disk.

    Label modes: "null" is f_u, "true" is f_c, "wrong" has the label `given`, and "noise-null" and "noise-true" have
    noise in place of the image. Features are ``n m d`` with `pooling` "tokens" and ``n d`` with "mean". `true` are the
    classes of the images, `given` those of mode "wrong". `weak` are the features of a weak model of the same x_t, if
    guidance is against that model instead of the null label. The images are the `split` of the set `data`, which is
    None for the run's own.
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
    weak: "FeatureGrid | None" = None
    split: str = "train"
    data: DataConfig | None = None

    def read(self, layer: int, t: float, label: str = "null") -> Float[Tensor, "n ..."]:
        """The features of one layer, time and label mode, memory-mapped.

        Raises ValueError if they were not extracted, or if their file is missing or damaged.
        """
        return torch.from_numpy(read_array(self._file(layer, t, label)))

    def guided(self, layer: int, t: float, scale: float, image: str = "true") -> Float[Tensor, "n ..."]:
        """f_g = f_u + scale (f_c - f_u), Eq. 3: exact for any scale, in float32, without running the network.

        With `image` "true" or "wrong", f_c is that of the true or wrong label; with "noise", both features are those of
        noise in place of the image. With a weak model it is f_weak + scale (f - f_weak), both with that label.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale is {scale}; allowed are finite numbers")
        return guide(*self.pair(layer, t, image), scale)

    def pair(self, layer: int, t: float, image: str = "true") -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
        """f_u and f_c, or with a weak model f_weak and f, in float32; `image` as of `guided`."""
        if image not in _PAIRS:
            raise ValueError(f"image is {image!r}; allowed are {', '.join(_PAIRS)}")
        null, label = _PAIRS[image]
        first = self.read(layer, t, null) if self.weak is None else self.weak.read(layer, t, label)
        return first.float(), self.read(layer, t, label).float()

    def pooled(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Features of `read` or `guided`, averaged over tokens, in float32."""
        return features.float() if self.pooling == "mean" else features.float().mean(dim=1)

    def lds(self, layer: int, t: float, label: str = "null") -> Float64[Tensor, " n"] | None:
        """Local-distant similarity of each image's tokens, for either pooling; None for fewer than 3 x 3 tokens."""
        if self.pooling == "tokens":
            tokens = self.read(layer, t, label).float()
            return local_distant_similarity(tokens) if tokens.shape[1] >= FEWEST_TOKENS else None
        stored = torch.from_numpy(read_array(self._file(layer, t, label, "lds")))
        return None if stored.isnan().any() else stored

    def _file(self, layer: int, t: float, label: str, of: str = "features") -> Path:
        axes: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("layer", layer, self.layers),
            ("t", t, self.times),
            ("label", label, self.labels),
        ]
        for name, value, extracted in axes:
            if value not in extracted:
                raise ValueError(f"{name} {value!r} was not extracted; there are {', '.join(map(repr, extracted))}")
        return array_file(self.folder, label, float(t), layer, of)
