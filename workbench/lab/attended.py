"""Attention of all tokens of a few images, in few bytes; js/panes/attention.js reads it alike.

A weight is stored as its square root in steps of 1/255, so that small ones keep their digits. Weights with the label
differ little from those without, so their steps are stored as differences, modulo 256, which compress well.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float, Float64, UInt8

from workbench.config import backbone_sizes
from workbench.features.attention import attending, attention_weights
from workbench.features.extract import opened_latents
from workbench.lab.snippets import PACKED
from workbench.lab.sources import Subject, depth_of, tokens_of

LABELS = ("null", "true")
DIRECTIONS = ("from", "to")
_STEPS = 255
_PACKED = 0.7  # bytes of a weight after compression, at the most


def attention_that_fits(subject: Subject, wanted: Sequence[int], room: float | int) -> tuple[list[int], list[float]]:
    """Layers of `wanted` and times whose attention fits into `room` bytes of a page, evenly spaced over the times.

    Raises ValueError if not even one layer at one time does.
    """
    run = subject.runs[0]
    heads = backbone_sizes(run.config.backbone.name)[run.config.backbone.options["size"]].heads
    one = len(LABELS) * len(subject.rows) * heads * tokens_of(run) ** 2 * _PACKED * PACKED
    layers = [layer for layer in wanted if layer > 0]
    if not layers:
        raise ValueError(f"layers are {list(wanted)}; attention is in 1 to {depth_of(run)}, the blocks")
    if one > room:
        raise ValueError(
            f"attention of {heads} heads over {tokens_of(run)} tokens of {len(subject.rows)} images needs "
            f"{one / 1e6:.1f} MB for each layer and time, and {max(room, 0) / 1e6:.1f} MB of the page are free: ask "
            "for fewer images, set page_mb higher, or use wb.attention"
        )
    most = int(room / one)
    kept = [layers[k] for k in _spread(len(layers), min(len(layers), most))]
    times = _spread(len(subject.times), min(len(subject.times), most // len(kept)))
    return kept, [subject.times[k] for k in times]


def stored_attention(
    subject: Subject,
    layers: Sequence[int],
    times: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> UInt8[np.ndarray, "label t layer head n m m"]:
    """Attention of the first run at its last step, without and with the label, as stored."""
    run, step = subject.runs[0], subject.steps[0][-1]
    backbone = attending(run, layers, step)
    latents = opened_latents(run, subject.data, "train", run.folder.parent, len(subject.rows))
    rows = np.asarray(subject.rows)
    given = {"null": np.full(len(rows), backbone.null_label), "true": subject.labels}
    shape = (len(LABELS), len(times), len(layers), backbone.heads, len(rows), backbone.tokens, backbone.tokens)
    stored = np.zeros(shape, np.uint8)
    for number, (label, time) in enumerate(np.ndindex(len(LABELS), len(times))):
        y = given[LABELS[label]]
        for part, seen in attention_weights(run, backbone, latents, rows, layers, times[time], y):
            for k, layer in enumerate(layers):
                stored[label, time, k, :, part] = _rounded(seen[layer].float().cpu().numpy())
        progress(number + 1, len(LABELS) * len(times))
    stored[1] -= stored[0]
    return stored


def attention_at(
    stored: UInt8[np.ndarray, "label t layer head n m m"],
    at: tuple[int, int],
    label: int,
    head: int | None,
    image: int,
    token: int,
    direction: str,
) -> Float64[np.ndarray, " m"]:
    """Weights "from" a token to all, or "to" it from all, at `at` = (time, layer), of a head or their mean (None)."""
    where = (*at, slice(None), image, token) if direction == "from" else (*at, slice(None), image, slice(None), token)
    steps = stored[(0, *where)]
    if label == 1:
        steps = steps + stored[(1, *where)]
    weights = (steps.astype(np.float64) / _STEPS) ** 2
    return weights.mean(axis=0) if head is None else weights[head]


def falls_on(
    weights: Float[np.ndarray, " m"], token: int, shares: Float[np.ndarray, " m"] | None
) -> tuple[float, float | None]:
    """Which part of attention falls on the token itself, and on the object, whose share of each token is known."""
    total = float(weights.sum())
    if total == 0:
        return 0.0, None if shares is None else 0.0
    return float(weights[token]) / total, None if shares is None else float(weights @ shares) / total


def _rounded(weights: Float[np.ndarray, "n head m m"]) -> UInt8[np.ndarray, "head n m m"]:
    return rearrange(np.rint(np.sqrt(weights) * _STEPS).astype(np.uint8), "n head q m -> head n q m")


def _spread(count: int, kept: int) -> list[int]:
    """Indices of `kept` of `count` values, evenly spaced; the middle one if it is one."""
    if kept == 1:
        return [count // 2]
    return np.linspace(0, count - 1, kept).round().astype(int).tolist()


def named_heads(count: int) -> Mapping[str, int | None]:
    """The values of the option "head": the mean of all, then each."""
    return {"mean": None, **({str(head + 1): head for head in range(count)} if count > 1 else {})}
