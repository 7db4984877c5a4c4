"""Images as points (PCA, t-SNE, UMAP of their features), with token maps of some of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.config import DataConfig
from workbench.diffusion.guidance import guide
from workbench.features.embedding import METHODS, embed_sequence
from workbench.features.grid import FeatureGrid, real_numbers, whole_numbers
from workbench.lab.neighbours import right_by_neighbours
from workbench.lab.packing import quantise
from workbench.lab.panes import Pane
from workbench.lab.panes.scatter import ScatterPane
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, snippet
from workbench.lab.sources import SLOW_LAYERS, RunLike, Source, Steps, Subject, check_grids, choose
from workbench.lab.view import View
from workbench.lab.views.maps import (
    SHORTEN,
    check_components,
    check_maps_fit,
    coordinates_of,
    maps_pane,
    start_of,
)
from workbench.runs.weak import WeakLike

NEIGHBOURS = 20
_STOPS, _FEW_STOPS = (0.0, 1.0, 5.0, 15.0, 30.0), (0.0, 1.0, 15.0)
_FRAMES = 150  # a t-SNE frame takes one to four seconds
_BITS = 12


def embedding(
    runs: Sequence[RunLike] | RunLike,
    images: int | Sequence[int] = 600,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.2, 0.5, 0.8),
    stops: Sequence[float] | None = None,
    methods: Sequence[str] = ("pca", "tsne"),
    steps: Steps = None,
    mapped: int | Sequence[int] = 6,
    components: int = 8,
    seed: int = 0,
    data: DataConfig | None = None,
    page_mb: float = PAGE_MB,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """Scatter plot of images by their mean tokens, coloured by class, with token maps.

    Sliders choose layer, noise level, guidance scale and training step.

    PCA is exact at any w, because guidance is linear in w (Eq. 3). t-SNE and UMAP are computed at the `stops` of w;
    each frame starts from the previous one, along w, then t, then layer. kNN accuracy is also computed at the stops:
    leave-one-out, 20 nearest neighbours by cosine similarity, in the original feature space. The first call takes a
    second or more for each t-SNE frame, and longer for UMAP. Everything is cached beside the run.

    Args:
        runs: A run, or several runs and targets of `wb.compare_maps`; one is shown at a time.
        images: Number of images, balanced over the classes, or row numbers.
        layers: Layers; by default four, evenly spread.
        times: Noise levels t in 0..1.
        stops: Guidance scales at which t-SNE, UMAP and kNN are computed; by default 0, 1 and 15, or 0, 1, 5, 15 and 30
            with PCA alone.
        methods: Any of "pca", "tsne" and "umap".
        steps: Training steps of the checkpoints, or "all"; the last by default.
        mapped: Number of images with token maps (the first ones), or their row numbers.
        components: Number of principal components in each basis.
        seed: Seed of noise and methods.
        data: Image set, for an imported run.
        page_mb: Largest size of the page, in megabytes.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`; a step is each run's own.
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: As `wb.maps`, for an unknown method, and for more than 150 frames.

    Examples:
        >>> view = wb.embedding(wb.zoo("guided"), images=60, layers=[8], times=[0.5], methods=["pca"], mapped=2)
        >>> [pane.title for pane in view.panes]
        ['Images', 'Token maps']
    """
    given = dict(locals())
    check_components(components)
    subject = choose(
        runs, images=images, layers=layers, times=times, steps=steps, data=data, weak=weak, room=SLOW_LAYERS
    )
    check_grids(subject)
    shown = mapped_rows(subject, mapped)
    usual = _STOPS if set(methods) == {"pca"} else _FEW_STOPS
    chosen = sorted(real_numbers("stops", usual if stops is None else stops))
    check_methods(subject, methods, chosen)
    check_maps_fit(subject.of(shown), components, page_mb, f"images, mapped, {SHORTEN}")
    with reported(progress) as report:
        points = Scattered(subject, subject.grids(report, "features", pooling="mean"), chosen, seed)
        scatter = points.pane(methods, report)
        numbers = [subject.rows.index(row) for row in shown]
        maps = maps_pane(subject.of(shown), components, report, page_mb, (scatter,), numbers)
    axes = subject.axes((min(0.0, *chosen), max(1.0, *chosen)), chosen) | {"image": subject.image_axis(shown)}
    start = start_of(subject) | {"method": "tsne" if "tsne" in methods else methods[0]}
    title = f"Images by features of {', '.join(subject.titles)}{subject.against}"
    return bounded_view(
        title,
        [scatter, maps],
        axes,
        page_mb=page_mb,
        shorten=f"images, mapped, {SHORTEN}",
        snippet=snippet(embedding, runs, given),
        made=subject.made,
        start=start,
    )


@dataclass(frozen=True, eq=False)
class Scattered:
    """Scatter plot of mean tokens at the `stops` of w; `grids` are the features by run and step."""

    subject: Subject
    grids: list[list[FeatureGrid]]
    stops: Sequence[float]
    seed: int

    def pane(self, methods: Sequence[str], report: Report) -> Pane:
        """The scatter pane, with the frames of each method."""
        sources = self.subject.sources(self.grids, report)
        arrays = coordinates_of(self.subject, sources, 2, report, "point coordinates").points
        arrays |= {"labels": self.subject.labels.astype(np.uint16), "sprite": self.subject.thumbnails()}
        arrays["correct"] = self._correct(sources, report)
        for method in methods:
            if method != "pca":
                arrays |= self._frames(sources, method, report)
        return ScatterPane("Images", arrays, scatter_meta(self.subject))

    def _correct(self, sources: Sequence[Source], report: Report):
        def right(at: tuple[int, int, float, int, float]) -> Bool[np.ndarray, " n"]:
            return right_by_neighbours(self._features(sources, at), self.subject.labels, neighbours_of(self.subject))

        return correct_at(self._shape(sources), self._cells(sources), right, report)

    def _frames(self, sources: Sequence[Source], method: str, report: Report) -> dict[str, np.ndarray]:
        """Points of all frames, computed in an order in which consecutive frames differ as little as possible."""
        shape, cells = self._shape(sources), self._cells(sources)
        order = list(snake(shape))
        frames = embed_sequence(
            [self._features(sources, cells[at]) for at in order],
            method,
            seed=self.seed,
            folder=self.folder,
            progress=part_of(report, {"tsne": "t-SNE", "umap": "UMAP"}[method], 0, 1, len(order)),
            **({"perplexity": min(30.0, (len(self.subject.rows) - 1) / 4)} if method == "tsne" else {}),
        )
        points = np.empty((*shape, len(self.subject.rows), 2), np.float32)
        for at, frame in zip(order, frames, strict=True):
            points[at] = frame.points.numpy()
        packed, scale = quantise(points, 5, bits=_BITS)
        return {method: packed, f"{method}_scale": scale}

    @property
    def folder(self) -> Path:
        """Folder where the frames are cached, beside the features."""
        return self.grids[0][0].folder / "embeddings"

    def _features(self, sources: Sequence[Source], at: tuple[int, int, float, int, float]) -> Float[Tensor, "n d"]:
        source, step, t, layer, w = at
        f_u, f_c = sources[source].read(step, t, layer)
        return guide(f_u, f_c, w)[:, 0]

    def _shape(self, sources: Sequence[Source]) -> tuple[int, ...]:
        subject = self.subject
        return (len(sources), len(subject.steps[0]), len(subject.times), len(subject.layers), len(self.stops))

    def _cells(self, sources: Sequence[Source]) -> dict[tuple[int, ...], tuple[int, int, float, int, float]]:
        """Values of (source, step, t, layer, stop) by index."""
        subject = self.subject
        cells = product(range(len(sources)), range(len(subject.steps[0])), subject.times, subject.layers, self.stops)
        return dict(zip(np.ndindex(self._shape(sources)), cells, strict=True))


def scatter_meta(subject: Subject) -> dict:
    """Class names and number of neighbours of a scatter pane."""
    return {"names": list(subject.images.classes), "neighbours": neighbours_of(subject)}


def neighbours_of(subject: Subject) -> int:
    """20, as in DINOv2, or fewer for few images."""
    return min(NEIGHBOURS, len(subject.rows) - 1)


def correct_at(shape: tuple[int, ...], cells: dict, right: Callable, report: Report) -> np.ndarray:
    """Whether kNN classifies each image correctly, in every cell of the grid."""
    correct = []
    for done, cell in enumerate(cells.values(), start=1):
        correct.append(right(cell))
        report("neighbours", done, len(cells))
    return np.stack(correct).reshape(*shape, -1).astype(np.uint8)


def mapped_rows(subject: Subject, mapped: int | Sequence[int]) -> list[int]:
    """Rows of the images with token maps; ValueError unless all are among the subject's."""
    if isinstance(mapped, int):
        rows = list(subject.rows[: max(0, mapped)])
    else:
        rows = list(dict.fromkeys(whole_numbers("mapped", mapped)))
    if not rows or not set(rows) <= set(subject.rows):
        raise ValueError(f"mapped is {mapped!r}; allowed are a count of at least 1, or row numbers among the images")
    return rows


def snake(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices (source, step, t, layer, stop) in an order that changes one by one: along w, then t, then layer."""
    s, e, times, layers, stops = shape
    ordered = (s, e, layers, times, stops)
    for at in np.ndindex(ordered):
        turned, before = [], 0
        for size, index in zip(ordered, at, strict=True):
            turned.append(size - 1 - index if before % 2 else index)
            before = before * size + index
        source, step, layer, t, stop = turned
        yield source, step, t, layer, stop


def check_methods(subject: Subject, methods: Sequence[str], stops: Sequence[float]) -> None:
    """ValueError for an unknown method, none, or too many frames."""
    if isinstance(methods, str) or not methods or not set(methods) <= set(METHODS):
        raise ValueError(f"methods is {methods!r}; allowed are one or more of {', '.join(METHODS)}, as a list")
    slow = [name for name in methods if name != "pca"]
    frames = len(subject.titles) * len(subject.steps[0]) * len(subject.layers) * len(subject.times) * len(stops)
    if slow and frames > _FRAMES:
        raise ValueError(
            f"{frames} frames (runs x steps x layers x times x stops) of {' and '.join(slow)}, of a second or more "
            f"each, are more than {_FRAMES}: choose fewer, or methods=['pca'], which needs none"
        )
