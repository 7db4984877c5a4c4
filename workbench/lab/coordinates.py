"""PCA coordinates of features, Procrustes-aligned so that colours and positions are comparable between layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32

from workbench.features.directions import procrustes
from workbench.features.projection import GuidedProjection, project
from workbench.lab.packing import quantise
from workbench.lab.sources import Pair, Source

_SHOWN = 3  # components that are aligned: red, green and blue
# Colours have 8 bits, so 12 are enough; stored in 16, they deflate to about three quarters.
_BITS = 12


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates of f_u - mean and of d = f_c - f_u, so that those of f_g are u + w d (Eq. 3).

    `total` holds the traces of Cov(f_u), Cov(f_u, d) and Cov(d) over the full width, so that shares of variance are
    exact.
    """

    u: Float32[np.ndarray, "source step t layer n m k"]
    d: Float32[np.ndarray, "source step t layer n m k"]
    total: Float32[np.ndarray, "source step t layer 3"]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a token-map pane."""
        u, u_scale = quantise(self.u, 4, bits=_BITS)
        d, d_scale = quantise(self.d, 4, bits=_BITS)
        return {"u": u, "d": d, "u_scale": u_scale, "d_scale": d_scale, "total": self.total}

    @property
    def points(self) -> dict[str, np.ndarray]:
        """Arrays of a scatter pane of mean tokens: two components, without the total."""
        flat = [rearrange(of[..., :2], "s e t l n 1 k -> s e t l n k") for of in (self.u, self.d)]
        (u, u_scale), (d, d_scale) = (quantise(of, 4, bits=_BITS) for of in flat)
        return {"u": u, "d": d, "u_scale": u_scale, "d_scale": d_scale}


def joint_coordinates(
    read: Callable[[int, int, float, int], Pair],
    shape: tuple[int, int],
    times: Sequence[float],
    layers: Sequence[int],
    components: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Coordinates:
    """One basis per layer over all sources, steps, times and images, Procrustes-aligned with that of the middle layer.

    ``read(source, step, t, layer)`` gives f_u and f_c; `shape` is the number of sources and of steps. The basis is that
    of `project`; if a feature is narrower than `components`, the remaining coordinates are 0. The first three
    components are aligned on the scores of f_u and f_c of all sources, steps and times, so that colours change little
    between layers.
    """
    middle = len(layers) // 2
    by_layer: dict[int, Coordinates] = {}
    for number in sorted(range(len(layers)), key=lambda number: number != middle):
        cells = [(s, e, t) for s, e in np.ndindex(shape) for t in times]
        pairs = [read(*cell, layers[number]) for cell in cells]
        fitted = min(components, pairs[0][0].shape[2])
        # `project` takes sets by time; here the index of a cell is used as its time.
        f_u, f_c = ({float(i): pair[which] for i, pair in enumerate(pairs)} for which in (0, 1))
        layer = _arranged(project(f_u, f_c, components=fitted), (*shape, len(times)), components)
        by_layer[number] = layer if number == middle else aligned(layer, by_layer[middle])
        progress(len(by_layer), len(layers))
    return stacked([by_layer[number] for number in range(len(layers))], axis=3)


def compared_coordinates(
    sources: Sequence[Source],
    steps: int,
    times: Sequence[float],
    layers: Sequence[int],
    components: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Coordinates:
    """Each source in its own basis, Procrustes-aligned with the first source at each layer, as in `project_pair`.

    A source without layers is aligned once, with the first source's middle layer, and repeated. All have one grid of
    tokens (`sources.check_grids`).
    """
    results: list[Coordinates] = []
    for source in sources:

        def read(_: int, step: int, t: float, layer: int, source: Source = source) -> Pair:
            return source.read(step, t, layer)

        own = joint_coordinates(read, (1, steps), times, layers if source.layered else layers[:1], components)
        middle = len(layers) // 2
        if not source.layered:
            own = aligned(own, _layer(results[0], middle)) if results else own
            own = stacked([own] * len(layers), axis=3)
        elif results:
            each = [aligned(_layer(own, i), _layer(results[0], i)) for i in range(len(layers))]
            own = stacked(each, axis=3)
        results.append(own)
        progress(len(results), len(sources))
    return stacked(results, axis=0)


def aligned(own: Coordinates, reference: Coordinates) -> Coordinates:
    """`own` with its first components Procrustes-aligned with `reference`, on the scores of f_u and f_c."""
    count = min(_SHOWN, own.u.shape[-1])

    def scores(of: Coordinates) -> torch.Tensor:
        both = np.stack([of.u, of.u + of.d])[..., :count]
        return torch.from_numpy(rearrange(both, "... c -> (...) c"))

    rotation = procrustes(scores(own), scores(reference)).numpy()

    def rotated(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[..., :count] @ rotation, values[..., count:]], axis=-1).astype(np.float32)

    return replace(own, u=rotated(own.u), d=rotated(own.d))


def stacked(parts: Sequence[Coordinates], axis: int) -> Coordinates:
    """Concatenate along an axis."""
    return Coordinates(*(np.concatenate([getattr(of, name) for of in parts], axis) for name in ("u", "d", "total")))


def _layer(of: Coordinates, number: int) -> Coordinates:
    return Coordinates(*(values[:, :, :, number : number + 1] for values in (of.u, of.d, of.total)))


def _arranged(projection: GuidedProjection, shape: tuple[int, int, int], components: int) -> Coordinates:
    """Coordinates of one layer, from a projection whose times are indices of cells."""
    u, d = (np.stack([of[cell].numpy() for cell in projection.times]) for of in (projection.u, projection.d))
    pad = [(0, 0)] * 3 + [(0, components - u.shape[-1])]
    moments = [projection.moments[cell] for cell in projection.times]
    total = np.array([(of.total_uu, of.total_ud, of.total_dd) for of in moments], dtype=np.float32)
    s, e, _ = shape
    u, d = (rearrange(np.pad(of, pad), "(s e t) n m k -> s e t 1 n m k", s=s, e=e) for of in (u, d))
    return Coordinates(u, d, rearrange(total, "(s e t) c -> s e t 1 c", s=s, e=e))
