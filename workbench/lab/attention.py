"""Attention of one token, as numbers and as a picture: what it looks at and what looks at it."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from workbench.config import DataConfig
from workbench.features.attention import attending, attention_weights
from workbench.features.extract import opened_latents
from workbench.features.grid import whole_numbers
from workbench.files import write_atomically
from workbench.lab.attended import DIRECTIONS, LABELS
from workbench.lab.attention_maps import TITLES, WITH, AttentionMap, draw_attention, parts_text
from workbench.lab.drawing import encoded
from workbench.lab.progress import Report, reported
from workbench.lab.sources import SLOW_LAYERS, RunLike, Subject, choose, tokens_of
from workbench.lab.view import ENDINGS, checked_path


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention weights from and to token `token` of image `row`, by head.

    ``values[label, direction, l, head, j]``: without and with the label (`labels`); "from" the token to token j, whose
    sum over j is 1, and "to" it from token j (`directions`); in layer ``layers[l]``. `shares` is the share of each
    token that is object, None without masks.
    """

    values: Float64[np.ndarray, "label direction layer head m"]
    layers: tuple[int, ...]
    row: int
    token: int
    t: float
    step: int
    shares: Float64[np.ndarray, " m"] | None
    subject: Subject
    labels: tuple[str, ...] = LABELS
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def mean(self) -> Float64[np.ndarray, "label direction layer m"]:
        """The mean over the heads."""
        return self.values.mean(axis=3)

    @property
    def on_itself(self) -> Float64[np.ndarray, "label direction layer head"]:
        """The part of the attention that is of the token with itself."""
        return self._part(self.values[..., self.token])

    @property
    def on_object(self) -> Float64[np.ndarray, "label direction layer head"]:
        """The part of the attention that is with tokens of the object; ValueError for images without masks."""
        if self.shares is None:
            raise ValueError(f"the images of {self.subject.titles[0]} have no masks, so their objects are not known")
        return self._part(self.values @ self.shares)

    def figure(self, head: int | None = None) -> Figure:
        """The maps of a head, counted from 1, or of the mean over heads, beside the image; a row for each layer.

        ValueError for a head that is not there.
        """
        heads = self.values.shape[3]
        whole = isinstance(head, int | np.integer) and not isinstance(head, bool)
        if head is not None and not (whole and 1 <= head <= heads):
            raise ValueError(f"head is {head!r}; allowed are 1 to {heads}, or None for their mean")
        chosen = slice(None) if head is None else slice(head - 1, head)
        rows = []
        for number, layer in enumerate(self.layers):
            maps = []
            for d, direction in enumerate(self.directions):
                for which, label in enumerate(self.labels):
                    weights = self.values[which, d, number, chosen].mean(axis=0)
                    total = weights.sum() or 1.0
                    on_object = None if self.shares is None else float(weights @ self.shares / total)
                    parts = parts_text(float(weights[self.token] / total), on_object, direction)
                    maps.append(AttentionMap([TITLES[direction], WITH[label], *parts], weights))
            rows.append((f"layer {layer}", maps))
        side = math.isqrt(self.values.shape[-1])
        (name,), (picture,) = self.subject.names, self.subject.pictures()
        shown = "mean of the heads" if head is None else f"head {head}"
        place = f"row {self.token // side + 1}, column {self.token % side + 1} of image {self.row}, {name}"
        mask = self.subject.objects()[0] if self.subject.images.has_masks else None
        return draw_attention(picture, rows, self.token, f"attention weight, {shown}; {place}; t {self.t:g}", mask)

    def save(self, file: str | Path, head: int | None = None) -> Path:
        """Write the picture as PNG, SVG or PDF; return its path. ValueError for another ending."""
        path = checked_path(file, ENDINGS)
        write_atomically(path, encoded([self.figure(head)], path.suffix[1:]))
        return path

    def _part(self, of: Float64[np.ndarray, "label direction layer head"]) -> Float64[np.ndarray, "..."]:
        total = self.values.sum(axis=-1)
        return np.divide(of, total, out=np.zeros_like(total), where=total > 0)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110, facecolor="white", bbox_inches="tight")
        return buffer.getvalue()

    def __repr__(self) -> str:
        heads = self.values.shape[3]
        place = f"token {self.token} of image {self.row}, t = {self.t:g}"
        return f"Attention of {place}, step {self.step:,}, layers {', '.join(map(str, self.layers))}, {heads} heads"


def attention(
    run: RunLike,
    image: int,
    token: int,
    layers: Sequence[int] | None = None,
    t: float | int = 0.5,
    step: int | None = None,
    data: DataConfig | None = None,
    precision: Literal["no", "bf16", "auto"] = "no",
    progress: Report | None = None,
) -> Attention:
    """What a token attends to, and which tokens attend to it, by layer and head, without and with the label.

    Args:
        run: A run, its folder or its name.
        image: Row number of the image with the token.
        token: Number of the token in its image, row by row from 0.
        layers: Layers, counted from 1: layer k is the attention in the k-th block. By default three, evenly spread.
        t: Noise level in 0..1; the noise is that of `wb.extract`.
        step: Training step of the checkpoint; the last by default.
        data: Image set, for an imported run.
        precision: Of the model, as of `wb.extract`.
        progress: Called with (stage, done, total) instead of showing a progress bar.

    Returns:
        An ``Attention`` with the weights, ``values``, their ``mean`` over heads, the parts ``on_itself`` and, for
        images with masks, ``on_object``, and the picture, ``figure(head)`` and ``save(file, head)``.

    Raises:
        ValueError: For an image, token, layer, time or step that does not exist, attention that is not finite, a
            backbone without attention weights, and a run with an untrained null class.

    Examples:
        >>> seen = wb.attention(wb.zoo("guided"), image=0, token=27, layers=[4, 8])
        >>> seen.values.shape  # without and with label, from and to, layers, heads, tokens
        (2, 2, 2, 3, 64)
        >>> bool(abs(seen.values[:, 0].sum(axis=-1) - 1).max() < 1e-5)
        True
        >>> seen.save("attention.png", head=1).name
        'attention.png'
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; allowed are 0 (data) to 1 (noise)")
    (number,), (row,) = whole_numbers("token", [token]), whole_numbers("image", [image])
    subject = choose(
        run, images=1, layers=layers, times=[float(t)], steps=step, data=data, room=SLOW_LAYERS, alone=True
    )
    (opened,), ((at,),) = subject.runs, subject.steps
    count, last = tokens_of(opened), len(subject.images.labels) - 1
    if not 0 <= number < count:
        raise ValueError(f"token is {token!r}; allowed are 0 to {count - 1}, row by row")
    if not 0 <= row <= last:
        raise ValueError(f"image is {image}; allowed are 0 to {last}")
    subject = subject.of([row])
    chosen = tuple(layer for layer in subject.layers if layers is not None or layer > 0)
    backbone = attending(opened, chosen, at)
    latents = opened_latents(opened, data, "train", opened.folder.parent, 1)
    given = {"null": np.full(1, backbone.null_label), "true": subject.labels}
    values = np.zeros((len(LABELS), len(DIRECTIONS), len(chosen), backbone.heads, count))
    with reported(progress) as report:
        for which, label in enumerate(LABELS):
            weights = attention_weights(
                opened, backbone, latents, np.array([row]), chosen, float(t), given[label], precision=precision
            )
            for _, seen in weights:
                for place, layer in enumerate(chosen):
                    of = seen[layer][0].double().cpu().numpy()
                    values[which, :, place] = np.stack([of[:, number], of[:, :, number]])
            report("attention", which + 1, len(LABELS))
    shares = subject.shares()[0].double().numpy() if subject.images.has_masks else None
    return Attention(values, chosen, row, number, float(t), at, shares, subject)
