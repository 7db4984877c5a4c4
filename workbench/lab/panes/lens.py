"""The lens: what the model would draw if it stopped at a layer, a column for each layer, raw and tuned."""

from collections.abc import Sequence
from typing import ClassVar

from matplotlib.figure import Figure

from workbench.lab.drawing import coloured, mosaic
from workbench.lab.panes import Arrays, AxesByName, Meta, Pane, State, fixed, text_of

_ALL = "raw and tuned"


class LensPane(Pane):
    """What each layer predicts of an image at a time, beside what the model was given and the image.

    `errors` are mean squared errors of the predicted clean latents. `meta` has the `lenses` ("raw", "tuned"), the
    `layers`, the `names` of the images, and `measured`, the sentence that says what the errors are of.
    """

    ARRAYS: ClassVar = {
        "images": ("uint8", "n high wide c"),
        "noisy": ("uint8", "t n high wide c"),
        "predicted": ("uint8", "lenses t layers n high wide c"),
        "errors": ("float32", "lenses t layers"),
    }

    def choices(self, axes: AxesByName) -> dict[str, list[str]]:
        lenses = list(self.meta["lenses"])
        return {"lens": [_ALL, *lenses] if len(lenses) > 1 else lenses}

    def draw(self, state: State, axes: AxesByName) -> Figure:
        return draw_lens(self.complete(axes), self.arrays, state, axes)


def draw_lens(pane: Meta, arrays: Arrays, state: State, axes: AxesByName) -> Figure:
    """A row for each lens: what the model was given, what each layer predicts with its error below, and the image."""
    t, image = state.get("t", 0), state.get("image", 0)
    rows, notes, names = [], [], []
    time = f", t {text_of('t', state, axes)}" if "t" in axes else ""
    for number in chosen_lenses(pane["lenses"], state["lens"]):
        shown = [arrays["noisy"][t, image], *arrays["predicted"][number, t, :, image], arrays["images"][image]]
        rows.append([coloured(picture) for picture in shown])
        notes.append(["", *(error_text(error) for error in arrays["errors"][number, t]), ""])
        names.append(f"{pane['lenses'][number]}{time}")
    columns = ["given", *(f"layer {layer}" for layer in pane["layers"]), pane["names"][image]]
    return mosaic(rows, names, columns, cell=0.75, notes=notes)


def chosen_lenses(lenses: Sequence[str], chosen: str) -> list[int]:
    """Numbers of the lenses that the option shows."""
    return [number for number, name in enumerate(lenses) if chosen in (name, _ALL)]


def error_text(error: float) -> str:
    """An error with two or three digits, as js/panes/lens.js writes it."""
    return fixed(error, 2 if error >= 0.1 else 3)
