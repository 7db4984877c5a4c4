"""The lens as a picture: what a model would draw if it stopped at a layer, over layers and noise levels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from workbench.config import DataConfig
from workbench.features.extract import opened_latents
from workbench.features.grid import real_numbers, whole_numbers
from workbench.features.lens import check_guidance, read_layers
from workbench.files import write_atomically
from workbench.lab.definitions import NOISE
from workbench.lab.drawing import coloured, encoded, mosaic
from workbench.lab.made import made_of
from workbench.lab.noise import smaller
from workbench.lab.panes import Axis, image_axis
from workbench.lab.panes.lens import LensPane
from workbench.lab.progress import Report, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, page_size, script_size
from workbench.lab.sources import RunLike, choose_rows, depth_of, guidance_axis, opened_runs
from workbench.lab.view import ENDINGS, View, checked_path
from workbench.runs.models import load_run_vae
from workbench.runs.store import Run
from workbench.runs.weak import Weak, WeakLike, check_weak, find_weak

_MOST_LAYERS = 9  # by default
_SIDE, _SMALLEST = 128, 32  # pixels of a view's pictures
_STEP = 4  # their values are multiples of it, which halves the size of a page


@dataclass(frozen=True, eq=False)
class Lens:
    """Decoded predictions of `wb.lens` for held-out images, and their errors by layer and noise level.

    `raw` and `tuned` (None without) have an image for each t, layer and shown image; `clean` are the images and `noisy`
    those of x_t. `errors["raw"]` and `errors["tuned"]` are mean squared errors of the predicted clean latent, over all
    held-out images; `fits` are the errors of the affine maps, the share of the variance of the last layer's tokens that
    they do not give, on held-out images too.
    """

    run: Run
    step: int
    label: str
    w: float
    weak: Weak | None
    layers: tuple[int, ...]
    times: tuple[float, ...]
    names: tuple[str, ...]
    rows: tuple[int, ...]
    fitted: int
    held: int
    clean: UInt8[Tensor, "n k x y"]
    noisy: UInt8[Tensor, "t n k x y"]
    raw: UInt8[Tensor, "t l n k x y"]
    tuned: UInt8[Tensor, "t l n k x y"] | None
    errors: dict[str, Float64[np.ndarray, "t l"]]
    fits: Float64[np.ndarray, "t l"] | None

    def figure(self, image: int = 0) -> Figure:
        """One image: x_t, what each layer predicts, and the image; a row for each t, raw and tuned.

        Below each prediction stands its mean squared error over all held-out images. Raises ValueError for an image
        that is not shown.
        """
        if not 0 <= image < len(self.names):
            raise ValueError(f"image is {image}; allowed are 0 to {len(self.names) - 1}")
        rows, names, notes = [], [], []
        for number, t in enumerate(self.times):
            for kind, pictures in (("raw", self.raw), ("tuned", self.tuned)):
                if pictures is None:
                    continue
                row = torch.cat([self.noisy[number, image][None], pictures[number, :, image], self.clean[image][None]])
                rows.append(list(coloured(row.numpy())))
                names.append(f"t = {t:g}, {kind}")
                notes.append(["", *(f"{error:.2g}" for error in self.errors[kind][number]), ""])
        columns = ["x_t", *(f"layer {layer}" for layer in self.layers), self.names[image]]
        return mosaic(rows, names, columns, cell=0.75, notes=notes)

    def view(self, page_mb: float = PAGE_MB, snippet: str = "") -> View:
        """The same with sliders for t and the image, as a notebook shows it and as a page (``save_html``).

        Pictures have as many pixels as fit into `page_mb` megabytes. ValueError if they do not fit at 32 pixels.
        """
        tuned = () if self.tuned is None else (self.tuned,)
        pictures = {
            "images": self.clean,
            "noisy": self.noisy,
            "predicted": torch.stack([self.raw, *tuned]),
        }
        whole = {name: of.movedim(-3, -1).contiguous().numpy() for name, of in pictures.items()}
        side, room = _SIDE, page_mb * 1e6 - script_size()
        arrays = _packed(whole, side)
        while side > _SMALLEST and page_size(arrays) > room:
            side //= 2
            arrays = _packed(whole, side)
        arrays["errors"] = np.stack(list(self.errors.values())).astype(np.float32)
        fitted = "" if self.tuned is None else f" The tuned lens was fitted on {self.fitted} other images."
        measured = (
            f"Errors are mean squared errors of the predicted clean latent over {self.held} images that were not "
            f"fitted on, {self.given}.{fitted}"
        )
        meta = {"names": self.names, "layers": self.layers, "lenses": list(self.errors), "measured": measured}
        weak = () if self.weak is None else (self.weak,)
        # Not "w", which moves continuously.
        guided = {} if self.w == 1 else {"guidance": guidance_axis(weak, (float(self.w),))}
        axes = {"t": Axis(NOISE, self.times), **guided, "image": image_axis(self.rows, self.names)}
        title = f"Lens of {self.run.config.name}{self._guided}"
        rows = ", ".join(map(str, self.rows))
        shown = f"{len(self.rows)} of {self.held} held-out images of {self.run.config.data.name}, rows {rows}"
        return bounded_view(
            title,
            [LensPane(title, arrays, meta)],
            axes,
            page_mb=page_mb,
            shorten="layers, times or images",
            snippet=snippet,
            made=(
                *made_of([self.run], [[self.step]], weak=weak),
                ("images", shown),
            ),
        )

    def save(self, file: str | Path, image: int = 0) -> Path:
        """Write the figure as PNG, SVG or PDF on white; return the path. Raises ValueError for another ending."""
        path = checked_path(file, ENDINGS)
        write_atomically(path, encoded([self.figure(image)], path.suffix[1:]))
        return path

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110, facecolor="white", bbox_inches="tight")
        return buffer.getvalue()

    def __repr__(self) -> str:
        lines = [f"Lens of {self.run.name} at step {self.step:,}, {self.given}, {self.held} held-out images"]
        for kind, errors in self.errors.items():
            lines += [f"mean squared error of the predicted clean latent, {kind}:", *self._table(errors)]
        if self.fits is not None:
            lines += [f"error of the affine maps, fitted on {self.fitted} other images:", *self._table(self.fits)]
        return "\n".join(lines)

    @property
    def given(self) -> str:
        """The label and the guidance, in words."""
        return f"with the {self.label} label{self._guided}"

    @property
    def _guided(self) -> str:
        if self.w == 1:
            return ""
        against = "" if self.weak is None else f", guided against {self.weak.text.replace(',', ' at', 1)}"
        return f", w = {self.w:g}{against}"

    def _table(self, values: Float64[np.ndarray, "t l"]) -> list[str]:
        head = "  layer  " + "".join(f"{layer:>8}" for layer in self.layers)
        rows = zip(self.times, values, strict=True)
        return [head, *(f"  t = {t:<4g} " + "".join(f"{value:8.3f}" for value in row) for t, row in rows)]


def lens(
    run: RunLike,
    layers: Sequence[int] | None = None,
    times: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    tuned: bool = True,
    images: int = 6,
    fit: int = 150,
    held: int = 50,
    label: Literal["true", "null"] = "true",
    w: float | int = 1.0,
    weak: WeakLike = None,
    step: int | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
    progress: Report | None = None,
) -> Lens:
    """What the model would draw if it stopped at a layer, over layers and noise levels.

    The final layer is applied to the tokens of each layer. Its velocity v predicts the clean latent, z_hat = x_t - t v
    on the linear path, which is decoded. This raw lens is rough: the final layer was trained on the last layer's tokens
    only. The tuned lens first maps the tokens to the last layer's, by one affine map for each layer and t, fitted by
    least squares on cached features of training images. Both are measured on training images that were not fitted on.

    Args:
        run: The run, or its name or folder.
        layers: Layers, counted from 1; 0 is the patch embedding. By default up to nine, evenly spaced.
        times: Noise levels t in 0..1; 0 is data, 1 is noise.
        tuned: Fit the tuned lens too.
        images: Number of images to show, of the held-out ones, balanced over the classes.
        fit: Number of images to fit on, the first of the training set.
        held: Number of held-out images, the next ones.
        label: "true" for f_c or "null" for f_u.
        w: Guidance scale of the features, f_u + w (f_c - f_u), Eq. 3. The lenses are those of w = 1.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`.
        step: Training step; the last by default.
        data: The image set, if it is not the run's own; required for an imported run.
        seed: Seed of the noise.
        progress: Called with (stage, done, total).

    Returns:
        A ``Lens`` with images ``raw``, ``tuned``, ``noisy`` and ``clean``, ``errors`` by t and layer, and ``fits``, the
        held-out errors of the affine maps. ``figure(image)`` and ``save(file)`` show one image, ``view()`` is a widget
        with sliders (`wb.lens_view`); printing it lists the errors.

    Raises:
        ValueError: For a layer, time or label that does not exist, a weak model that does not fit, too few images to
            fit on, features that are not finite, and a backbone whose velocity is not made from the last layer's
            tokens alone.

    Examples:
        >>> seen = wb.lens(wb.zoo("guided"), layers=[4, 12], times=[0.5], images=2, fit=20, held=4)
        >>> seen.raw.shape, seen.errors["tuned"].shape, seen.save("lens.png").name
        (torch.Size([1, 2, 2, 1, 32, 32]), (1, 2), 'lens.png')
    """
    (opened,) = opened_runs(run)
    chosen, root = _layers(layers, depth_of(opened)), opened.folder.parent
    moments = real_numbers("times", times, 0.0, 1.0)
    _check_counts(images=images, fit=fit, held=held)
    if images > held:
        raise ValueError(f"images is {images}, of {held} held-out ones; allowed are 1 to {held}")
    at, against = opened.checkpoint(step).step, None if weak is None else find_weak(weak, opened)
    if against is not None:
        check_weak(opened, [at], against, chosen)
    check_guidance(opened, label, w, against)
    latents = opened_latents(opened, data, "train", root, fit + held)
    if fit + held > len(latents):
        raise ValueError(f"fit is {fit} and held {held}, but the training set has {len(latents):,} images")
    others = range(fit, fit + held)
    shown = [fit + row for row in choose_rows(latents.labels[fit : fit + held], images)]
    with reported(progress) as report:
        readings = read_layers(
            opened,
            range(fit),
            others,
            chosen,
            moments,
            shown=shown,
            label=label,
            tuned=tuned,
            step=at,
            w=w,
            weak=against,
            data=data,
            seed=seed,
            root=root,
            progress=report,
        )
    vae = load_run_vae(opened)

    def decoded(z: Tensor) -> Tensor:
        return vae.decode(z.flatten(0, -4)).unflatten(0, z.shape[:-3])

    kinds = {kind: decoded(z) for kind, z in readings.predicted.items()}
    return Lens(
        run=opened,
        step=at,
        label=label,
        w=w,
        weak=against,
        layers=chosen,
        times=moments,
        names=tuple(str(latents.classes[latents.labels[row]]) for row in shown),
        rows=tuple(shown),
        fitted=fit,
        held=held,
        clean=decoded(readings.z),
        noisy=decoded(readings.x_t),
        raw=kinds["raw"],
        tuned=kinds.get("tuned"),
        errors=readings.errors,
        fits=readings.fits,
    )


def _packed(pictures: dict[str, np.ndarray], side: int) -> dict[str, np.ndarray]:
    return {name: smaller(of, side, 1 if name == "images" else _STEP) for name, of in pictures.items()}


def _layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(sorted({*range(0, depth + 1, -(-depth // (_MOST_LAYERS - 1))), depth}))
    chosen = tuple(dict.fromkeys(whole_numbers("layers", layers)))
    wrong = [layer for layer in chosen if not 0 <= layer <= depth]
    if wrong or not chosen:
        what = wrong[0] if wrong else "nothing"
        raise ValueError(f"layers has {what}; allowed are 0 (the patch embedding) to {depth}, the last block")
    return chosen


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name} is {count!r}; allowed are whole numbers from 1")
