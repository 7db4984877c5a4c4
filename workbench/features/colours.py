"""Colours of token maps: which components are shown, and how they are scaled to red, green and blue."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from workbench.diffusion.tokens import to_map
from workbench.features.directions import largest_signs, outlier_note, principal
from workbench.features.projection import project

MODES = ("joint", "per map", "foreground", "single")
SCALES = {"percentile": (2, 98), "minmax": (0, 100)}


@dataclass(frozen=True, eq=False)
class Colours:
    """Maps in 0..1, and the limits (low, high) of each component, for all images together or for each."""

    maps: Float64[np.ndarray, "n h w 3"]
    limits: Float64[np.ndarray, "*each 2 c"]


@dataclass(frozen=True, eq=False)
class MapComponents:
    """Components of tokens in one of the `MODES`; three, or one in "single".

    `explained` are fractions of the variance of the fitted tokens; in "per map" they are averaged over the images.
    `foreground` marks the fitted tokens in mode "foreground"; the coordinates of the others are zero.
    """

    mode: str
    coordinates: Float32[Tensor, "n m c"]
    explained: Float64[Tensor, " c"]
    foreground: Bool[Tensor, "n m"] | None = None

    @property
    def note(self) -> str | None:
        """A warning, "mostly position or norm outliers", if the first component has more than 90 % of the variance."""
        return outlier_note(self.explained)

    def colours(self, scale: str | None = None) -> Colours:
        """Maps with the usual scaling of the mode: "per map" by the extremes of each image, the others by percentiles.

        In "foreground" the limits are those of the foreground and the background is black.
        """
        scale = scale or ("minmax" if self.mode == "per map" else "percentile")
        if self.mode == "per map":
            return colours(self.coordinates, limits=component_limits(self.coordinates.double().numpy(), scale))
        if self.foreground is None:
            return colours(self.coordinates, scale)
        inside = self.coordinates[self.foreground].double().numpy()
        painted = colours(self.coordinates, limits=component_limits(inside, scale))
        shown = to_map(rearrange(self.foreground.double(), "n m -> n m 1"))
        return Colours(painted.maps * rearrange(shown, "n 1 h w -> n h w 1").numpy(), painted.limits)


def map_components(tokens: Float[Tensor, "n m d"], mode: str = "joint") -> MapComponents:
    """Principal components of tokens for a map.

    Modes: "joint" is one PCA over all images, so colours have the same meaning in all of them. "per map" is a PCA of
    each image's tokens, as in SRA (Jiang et al. 2025) and the paper's figures; colours of two maps cannot be compared.
    "foreground" has two steps as DINOv2 (Oquab et al. 2023): the centred first joint component is thresholded at 0,
    and a second joint PCA is fitted on the foreground. As the sign of a component is arbitrary, the foreground is the
    side whose tokens are closer to the centre of the grid on average (the smaller side if they are equal). "single" is
    the first joint component only, for a colour map that is readable with colour blindness.

    Raises ValueError for another mode, fewer than three dimensions or tokens, or tokens that do not vary.
    """
    if mode == "joint" or mode == "single":
        projection = project(tokens, components=3 if mode == "joint" else 1)
        return MapComponents(mode, projection.at(0.0, 0.0), projection.explained)
    if mode == "per map":
        return _per_map(tokens)
    if mode == "foreground":
        return _foreground(tokens)
    raise ValueError(f"mode is {mode!r}; allowed are {', '.join(MODES)}")


def colours(
    coordinates: Float[Tensor, "n m c"],
    scale: str = "percentile",
    limits: Float[np.ndarray, "*each 2 c"] | None = None,
) -> Colours:
    """Colour three components as red, green and blue, or one with viridis, on the square grid of the tokens.

    `limits`, for example those of another map, are by default each component's 2nd and 98th percentile over all images,
    or its extremes for scale "minmax"; values outside are clipped. Raises ValueError for another scale or number of
    components, non-finite values, or tokens that do not form a square.
    """
    count = coordinates.shape[2]
    if count not in (1, 3):
        raise ValueError(f"got {count} components; allowed are 3 (red, green, blue) or 1 (viridis)")
    numbers = coordinates.double().numpy()
    if limits is None:
        limits = component_limits(rearrange(numbers, "n m c -> (n m) c"), scale)
    if not (np.isfinite(numbers).all() and np.isfinite(limits).all()):
        raise ValueError("the components or their limits are not all finite, so they have no colour")
    maps = to_map(torch.from_numpy(token_colours(numbers, limits))).numpy()
    return Colours(rearrange(maps, "n c h w -> n h w c"), limits.astype(np.float64))


def token_colours(
    coordinates: Float64[np.ndarray, "n m c"], limits: Float[np.ndarray, "*each 2 c"]
) -> Float64[np.ndarray, "n m 3"]:
    """Colours in 0..1 of three components (red, green, blue) or one (viridis), scaled from `limits` (low, high)."""
    low, high = limits[..., :1, :], limits[..., 1:, :]
    values = ((coordinates - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    if values.shape[2] > 1:
        return values
    from matplotlib import colormaps

    return colormaps["viridis"](values[..., 0])[..., :3]


def component_limits(
    coordinates: Float64[np.ndarray, "*each r c"], scale: str = "percentile"
) -> Float64[np.ndarray, "*each 2 c"]:
    """Limits (low, high) of each component over the rows, by one of the `SCALES`; ValueError for another."""
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; allowed are {', '.join(SCALES)}")
    return np.moveaxis(np.percentile(coordinates, SCALES[scale], axis=-2), 0, -2)


def nearer_the_middle(first: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, "n m"]:
    """The tokens on the side of 0 with the smaller mean distance to the centre of the square grid.

    In a tie, the smaller side, then the positive one.
    """
    side = math.isqrt(first.shape[1])
    offsets = np.arange(side) - (side - 1) / 2
    distance = np.broadcast_to(np.hypot(offsets[:, None], offsets[None, :]).ravel(), first.shape)

    def order(part: Bool[np.ndarray, "n m"]) -> tuple[float, int]:
        return (round(float(distance[part].mean()), 9) if part.any() else math.inf, int(part.sum()))

    return min((first > 0, first < 0), key=order)


def _per_map(tokens: Float[Tensor, "n m d"]) -> MapComponents:
    if min(tokens.shape[1:]) < 3:
        raise ValueError(f"got {tokens.shape[1]} tokens of width {tokens.shape[2]}; three components need 3 of each")
    coordinates, shares = [], []
    for image, own in enumerate(tokens.detach().cpu().double()):
        if not own.isfinite().all():
            raise ValueError(f"the tokens of image {image} are not all finite")
        rows = own - own.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
        if not sizes.any():
            raise ValueError(f"all tokens of image {image} are equal, so they have no principal directions")
        basis = directions[:3].T
        coordinates.append((rows @ (basis * largest_signs(basis))).float())
        shares.append(sizes[:3].square() / sizes.square().sum())
    return MapComponents("per map", torch.stack(coordinates), torch.stack(shares).mean(dim=0))


def _foreground(tokens: Float[Tensor, "n m d"]) -> MapComponents:
    first = project(tokens, components=1).at(0.0, 0.0)[..., 0]
    to_map(first[..., None])  # refuses tokens that form no square
    chosen = torch.from_numpy(nearer_the_middle(first.numpy()))
    rows = tokens.detach().cpu()[chosen].double()
    rows = rows - rows.mean(dim=0)
    basis, shares = principal(rows.T @ rows / len(rows), 3)
    coordinates = torch.zeros(*chosen.shape, 3)
    coordinates[chosen] = (rows @ basis).float()
    return MapComponents("foreground", coordinates, shares, chosen)
