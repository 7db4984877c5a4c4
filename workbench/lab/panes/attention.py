"""Attention: what a token looks at, and which tokens look at it, without and with the label."""

import math
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from workbench.lab.attended import DIRECTIONS, LABELS, attention_at, falls_on, named_heads
from workbench.lab.attention_maps import TITLES, WITH, AttentionMap, draw_attention, parts_text
from workbench.lab.panes import Arrays, AxesByName, Meta, Pane, State, image_name, nearest_stop


class AttentionPane(Pane):
    """Attention of the first of the state's `tokens`; without any, of the middle token of the image of the slider.

    `weights` are those of `stored_attention`, at the `times` and in the `layers` of `meta`, whose nearest are shown;
    `part` is the share of each token that is object, in steps of 1/255, and `objects` is 1 where an image shows it.
    `names` in `meta` are those of the images.
    """

    ARRAYS: ClassVar = {
        "images": ("uint8", "n h w c"),
        "weights": ("uint8", "2 moment depth head n m m"),
        "part?": ("uint8", "n m"),
        "objects?": ("uint8", "n y x"),
    }

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        return {"head": list(named_heads(self.arrays["weights"].shape[3]))}

    def inferred(self) -> dict[str, Any]:
        _, times, layers, *_, tokens = self.arrays["weights"].shape
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"{self.title}: weights have {tokens} tokens; allowed is a square number")
        for name, count in (("times", times), ("layers", layers)):
            if len(self.meta.get(name, ())) != count:
                raise ValueError(f"{self.title}: weights have {count} {name}, and meta has {self.meta.get(name)}")
        return {"side": side, "titles": TITLES, "labels": list(WITH.values())}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_pane(self.complete(axes), self.arrays, state, axes)

    @property
    def tokens(self) -> tuple[int, int]:
        return self.arrays["weights"].shape[-3:-1]


def draw_pane(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """The image, and the attention from and to its token, without and with the label."""
    image, token = shown_token(pane, state, axes)
    moment = nearest_stop(pane["times"], _value("t", state, axes))
    layer = nearest_stop(pane["layers"], _value("layer", state, axes))
    head = named_heads(arrays["weights"].shape[3])[state["head"]]
    shares = arrays["part"][image].astype(np.float64) / 255 if "part" in arrays else None
    maps = []
    for direction in DIRECTIONS:
        for label, name in enumerate(LABELS):
            weights = attention_at(arrays["weights"], (moment, layer), label, head, image, token, direction)
            lines = [TITLES[direction], WITH[name], *parts_text(*falls_on(weights, token, shares), direction)]
            maps.append(AttentionMap(lines, weights))
    named = image_name(pane.get("names", []), image, len(arrays["images"]))
    side = pane["side"]
    near = [
        f"{name} {pane[plural][at]:g}{', the nearest' if _differs(name, pane[plural][at], state, axes) else ''}"
        for name, plural, at in (("layer", "layers", layer), ("t", "times", moment))
    ]
    which = "mean of the heads" if head is None else f"head {head + 1}"
    place = f"row {token // side + 1}, column {token % side + 1}"
    legend = f"attention weight, {which}; {'; '.join(near)}"
    mask = arrays["objects"][image] if "objects" in arrays else None
    return draw_attention(arrays["images"][image], [(f"{named}\n{place}", maps)], token, legend, mask)


def shown_token(pane: Meta, state: State, axes: AxesByName) -> tuple[int, int]:
    """Index of the image and number of the token whose attention is shown."""
    if not state.get("tokens"):
        return state.get("image", 0), (pane["side"] // 2) * (pane["side"] + 1)
    image, token = state["tokens"][0]
    return axes["image"].index("image", image) if "image" in axes else image, token


def _value(name: str, state: State, axes: AxesByName) -> float | None:
    return float(axes[name].values[state[name]]) if name in axes else None


def _differs(name: str, shown: float, state: State, axes: AxesByName) -> bool:
    value = _value(name, state, axes)
    return value is not None and abs(value - shown) > 1e-6
