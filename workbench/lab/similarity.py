"""Cosine similarity of one or several tokens to all tokens, as numbers and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from workbench.config import DataConfig
from workbench.diffusion.guidance import guide
from workbench.features.grid import whole_numbers
from workbench.features.similarity import SEVERAL, Token, token_similarity
from workbench.files import write_atomically
from workbench.lab.drawing import encoded
from workbench.lab.progress import Report, reported
from workbench.lab.similarity_maps import SimilarityMap, draw_similarity
from workbench.lab.sources import RunLike, Subject, check_grids, choose, tokens_of
from workbench.lab.view import ENDINGS, checked_path
from workbench.runs.weak import WeakLike


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarity of all tokens to the chosen `tokens`, pairs of an index in `rows` and a number of a token.

    ``values[s, l, i, j]`` is that of token j of image ``rows[i]`` in layer ``layers[l]`` of run or target
    ``sources[s]``; each compares within its own features. A target has the same values at all layers.
    """

    values: Float64[np.ndarray, "source layer n m"]
    sources: tuple[str, ...]
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    tokens: tuple[Token, ...]
    t: float
    w: float
    several: str
    subject: Subject

    def figure(self) -> Figure:
        """The similarities beside the images, a column for each source and layer, the chosen tokens framed."""
        maps = []
        for s, source in enumerate(self.sources):
            is_run = s < len(self.subject.runs)
            for number, layer in enumerate(self.layers if is_run else self.layers[:1]):
                layered = [f"layer {layer}"] if is_run else []
                title = [source, *layered] if len(self.sources) > 1 else layered
                fixed = [] if s in self.subject.still["t"] else [f"t {self.t:g}"]
                guided = [] if s in self.subject.still["w"] else [f"w {self.w:g}{self.subject.against}"]
                lines = [*title, ", ".join([*fixed, *guided])]
                maps.append(SimilarityMap([line for line in lines if line], self.values[s, number]))
        names = [f"image {row}, {name}" for row, name in zip(self.rows, self.subject.names, strict=True)]
        objects = self.subject.objects() if self.subject.images.has_masks else None
        shown = range(len(self.rows))
        return draw_similarity(self.subject.pictures(), maps, shown, names, self.tokens, self.several, objects)

    def save(self, file: str | Path) -> Path:
        """Write the picture as PNG, SVG or PDF; return its path. ValueError for another ending."""
        path = checked_path(file, ENDINGS)
        write_atomically(path, encoded([self.figure()], path.suffix[1:]))
        return path


def similarity(
    runs: Sequence[RunLike] | RunLike,
    image: int,
    token: int | Sequence[int],
    images: int | Sequence[int] = 6,
    layers: Sequence[int] | None = None,
    t: float | int = 0.5,
    w: float | int = 1.0,
    several: str = "mean",
    step: int | None = None,
    data: DataConfig | None = None,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> Similarity:
    """Cosine similarity of a token to all tokens, of f_g = f_u + w (f_c - f_u), Eq. 3: what is like it.

    Features are not centred, and used at their full width. What a click on a token shows in `wb.maps` are the same
    numbers, rounded.

    Args:
        runs: Runs, their folders or names, and names of targets as of `wb.compare_maps`; one or several.
        image: Row number of the image with the token.
        token: Number of the token in its image, row by row from 0, or several numbers.
        images: Images whose tokens are compared: a number, one of each class in turn, or row numbers. `image` is added
            as the first if it is not among them.
        layers: Layers; by default all of a small model, else eight.
        t: Noise level in 0..1.
        w: Guidance scale.
        several: For several tokens: "mean" or "maximum" of the similarities to each.
        step: Training step of the checkpoints; the last that all runs have by default.
        data: Image set, for imported runs.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`.
        progress: Called with (stage, done, total) instead of showing a progress bar.

    Returns:
        A ``Similarity`` with the numbers, ``values``, and the picture, ``figure()`` and ``save(file)``.

    Raises:
        ValueError: For an image, token, layer or step that does not exist, a w that is not finite, runs whose grids of
            tokens differ, between which no similarity is defined, and as `wb.compare_maps`.

    Examples:
        >>> similar = wb.similarity(wb.zoo("guided"), image=0, token=27, images=2, layers=[4, 8])
        >>> similar.values.shape  # sources, layers, images, tokens
        (1, 2, 3, 64)
        >>> round(float(similar.values[0, 1, 0, 27]), 6)  # of the token to itself
        1.0
        >>> similar.save("similar.png").name
        'similar.png'
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; allowed are 0 (data) to 1 (noise)")
    if not np.isfinite(w):
        raise ValueError(f"w is {w}; allowed are finite numbers")
    if several not in SEVERAL:
        raise ValueError(f"several is {several!r}; allowed are {', '.join(map(repr, SEVERAL))}")
    numbers = whole_numbers("token", [token] if isinstance(token, int | np.integer) else token)
    (row,) = whole_numbers("image", [image])
    subject = choose(runs, images=images, layers=layers, times=[float(t)], steps=step, data=data, weak=weak)
    check_grids(subject)
    count, last = tokens_of(subject.runs[0]), len(subject.images.labels) - 1
    if not numbers or len(set(numbers)) < len(numbers) or not 0 <= min(numbers) <= max(numbers) < count:
        raise ValueError(f"token is {token!r}; allowed are distinct numbers from 0 to {count - 1}, row by row")
    if not 0 <= row <= last:
        raise ValueError(f"image is {image}; allowed are 0 to {last}")
    if row not in subject.rows:
        subject = subject.of([row, *subject.rows])
    tokens = [(subject.rows.index(row), number) for number in numbers]
    with reported(progress) as report:
        sources = subject.sources(subject.grids(report, "token features"), report)
    values = [
        [
            token_similarity(guide(*source.read(0, subject.times[0], layer), float(w)).numpy(), tokens, several)
            for layer in subject.layers
        ]
        for source in sources
    ]
    return Similarity(
        values=np.array(values),
        sources=tuple(subject.titles),
        layers=subject.layers,
        rows=subject.rows,
        tokens=tuple(tokens),
        t=subject.times[0],
        w=float(w),
        several=several,
        subject=subject,
    )
