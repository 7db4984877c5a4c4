"""The lens: what a model would predict if it stopped at a layer, raw and after an affine map to the last layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import DataConfig
from workbench.data.latents import Latents
from workbench.diffusion.guidance import guide
from workbench.diffusion.paths import get_path, velocity_to_z
from workbench.diffusion.precision import tf32
from workbench.features.extract import extract, noisy_latents, opened_latents
from workbench.features.grid import FeatureGrid
from workbench.runs.models import check_null_class, load_backbone
from workbench.runs.store import Run
from workbench.runs.weak import Weak

_BATCH = 50
_FEWEST_ROWS = 2  # tokens to fit on, per number of a token

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map of tokens, f -> f A + b, and its error on tokens that it was not fitted on.

    `error` is the mean squared error of held-out tokens over their variance: 0 is exact, 1 as good as their mean.
    """

    matrix: Float64[Tensor, "d d"]
    offset: Float64[Tensor, " d"]
    error: float

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return (tokens.double() @ self.matrix + self.offset).to(tokens.dtype)


def check_fit(images: int, tokens: int, width: int) -> None:
    """Raise ValueError for too few images to fit an affine map of their tokens on."""
    least = _FEWEST_ROWS * (width + 1)
    if images * tokens < least:
        raise ValueError(
            f"got {images * tokens:,} tokens of {images} images to fit an affine map of {width} numbers on; it needs "
            f"at least {least:,}, which are {-(-least // tokens)} images"
        )


def fit_affine(
    x: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"], held_x: Float[Tensor, "h n d"], held_y: Float[Tensor, "h n d"]
) -> Affine:
    """The affine map from tokens x to y of least squares, in float64, with its error on the held-out tokens.

    Raises ValueError for fewer than 2 (d + 1) tokens.
    """
    check_fit(*x.shape)
    inputs, outputs = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    centre, target = inputs.mean(dim=0), outputs.mean(dim=0)
    inputs = inputs - centre
    # By the normal equations, so that memory does not grow with the tokens; directions without variance stay 0.
    solved = torch.linalg.pinv(inputs.T @ inputs, rtol=1e-12, hermitian=True) @ (inputs.T @ (outputs - target))
    affine = Affine(solved, target - centre @ solved, 0.0)
    expected = held_y.double()
    wrong = (affine(held_x.double()) - expected).square().mean()
    variance = (expected - expected.mean(dim=(0, 1))).square().mean()
    return Affine(affine.matrix, affine.offset, float(wrong / variance))


def check_guidance(run: Run, label: str, w: float, weak: Weak | None) -> None:
    """Raise ValueError for a wrong label or w, a weak model without effect, or an untrained null label."""
    if label not in ("true", "null"):
        raise ValueError(f"label is {label!r}; allowed are true and null")
    if isinstance(w, bool) or not isinstance(w, int | float | np.number) or not math.isfinite(w):
        raise ValueError(f"w is {w!r}; allowed are finite numbers")
    if w == 1 and weak is not None:
        raise ValueError(f"weak is {weak.text}, but at w = 1 it changes nothing: choose another w, such as w=2")
    if label == "null":
        check_null_class(run, 'choose label="true"')
        if w != 1 and weak is None:
            raise ValueError(
                f'w is {w:g} and label "null", but without a weak model guidance needs both labels: choose label="true"'
            )
    elif w != 1 and weak is None:
        check_null_class(run, "features cannot be guided without one, except against a weak model (weak=)")


@dataclass(frozen=True, eq=False)
class Readings:
    """What each layer predicts of held-out images.

    `z` are the clean latents of those that are shown, and `x_t` the noisy ones by t. `predicted[kind][t, layer]` are
    their predicted clean latents, with kind "raw" or "tuned", and `errors[kind]` the mean squared errors of the
    predictions of all held-out images (latents have about unit variance). `fits` are the held-out errors of the affine
    maps (`Affine.error`).
    """

    z: Float[Tensor, "n c h w"]
    x_t: Float[Tensor, "t n c h w"]
    predicted: dict[str, Float[Tensor, "t l n c h w"]]
    errors: dict[str, Float64[np.ndarray, "t l"]]
    fits: Float64[np.ndarray, "t l"] | None


def read_layers(
    run: Run,
    fitted: Sequence[int],
    held: Sequence[int],
    layers: Sequence[int],
    times: Sequence[float],
    *,
    shown: Sequence[int],
    label: str = "true",
    tuned: bool = True,
    step: int | None = None,
    w: float = 1.0,
    weak: Weak | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
    root: Path,
    progress: Progress | None = None,
) -> Readings:
    """Predictions of the clean latent by layer and time: z_hat of the velocity that the final layer gives for tokens.

    `fitted`, `held` and `shown` are row numbers of training images; `shown` are some of `held`. Tuned: the tokens are
    mapped to the last layer's first, by one affine map per layer and time, of the images `fitted`.

    With w other than 1 the tokens are the guided ones, f_u + w (f_c - f_u), or with `weak` f_weak + w (f - f_weak); the
    final layer and the affine maps, fitted at w = 1, are the same. Raises ValueError as `extract` and `fit_affine`, for
    guidance of f_u against itself, and for a backbone whose velocity is not made by `read_out`.
    """
    check_guidance(run, label, w, weak)
    backbone = load_backbone(run, step)
    for layer in layers:
        if not 0 <= layer <= backbone.depth:
            raise ValueError(f"layers has {layer}; allowed are 0 (the patch embedding) to {backbone.depth}")
    if tuned:
        check_fit(len(fitted), backbone.tokens, backbone.width)
    latents = opened_latents(run, data, "train", root, len(fitted) + len(held))
    rows, depth = [*fitted, *held], backbone.depth
    grid = extract(
        run,
        rows,
        [*layers, depth],
        times,
        step=step,
        labels=(label,),
        data=data,
        seed=seed,
        root=root,
        progress=None if progress is None else lambda done, total: progress("features", done, total),
    )
    base = None
    if w != 1:
        of = Weak(run, grid.step) if weak is None else weak
        base = extract(
            of.run,
            list(held),
            layers,
            times,
            step=of.step,
            labels=("null" if weak is None else label,),
            data=data or run.config.data,  # a weak model may have been trained on fewer of the images
            seed=seed,
            root=root,
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = _Reading(run, backbone.to(device), latents, grid, len(fitted), seed, w, base)
    where = [list(held).index(row) for row in shown]
    kinds = ("raw", "tuned") if tuned else ("raw",)
    errors = {kind: np.zeros((len(times), len(layers))) for kind in kinds}
    predicted: dict[str, list[list[Tensor]]] = {kind: [] for kind in kinds}
    noisy, fits = [], np.zeros((len(times), len(layers)))
    for row, t in enumerate(times):
        z, x_t = job.points(t)
        job.check(x_t, t, label)
        noisy.append(x_t[where])
        for kind in kinds:
            predicted[kind].append([])
        for column, layer in enumerate(layers):
            if tuned:
                affine = job.fit(layer, t, label)
                fits[row, column] = affine.error
            for kind in kinds:
                z_hat = job.read(layer, x_t, t, label, affine if kind == "tuned" else None)
                predicted[kind][-1].append(z_hat[where])
                errors[kind][row, column] = float((z_hat - z).double().square().mean())
            if progress:
                progress("lens", row * len(layers) + column + 1, len(times) * len(layers))
    stacked = {kind: torch.stack([torch.stack(by_layer) for by_layer in of]) for kind, of in predicted.items()}
    return Readings(z[where], torch.stack(noisy), stacked, errors, fits if tuned else None)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Reads the held-out images of a grid, those from number `first` on.

    `base` has their features f_u, or f_weak, from which the others are extrapolated with w.
    """

    run: Run
    backbone: TransformerBackbone
    latents: Latents
    grid: FeatureGrid
    first: int
    seed: int
    w: float
    base: FeatureGrid | None

    @property
    def path(self):
        return get_path(self.run.config.diffusion.path)

    def points(self, t: float) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """The clean latents and x_t of the held-out images."""
        return noisy_latents(self.latents, np.asarray(self.grid.rows[self.first :]), self.path, t, self.seed)

    def fit(self, layer: int, t: float, label: str) -> Affine:
        x, y = (self.grid.read(number, t, label).float() for number in (layer, self.backbone.depth))
        return fit_affine(x[: self.first], y[: self.first], x[self.first :], y[self.first :])

    @torch.no_grad()
    def read(
        self, layer: int, x_t: Float[Tensor, "n c h w"], t: float, label: str, affine: Affine | None
    ) -> Float[Tensor, "n c h w"]:
        """The clean latents that the tokens of a layer predict."""
        tokens = self.grid.read(layer, t, label)[self.first :].float()
        if self.base is not None:
            tokens = guide(self.base.read(layer, t, self.base.labels[0]).float(), tokens, self.w)
        tokens = tokens if affine is None else affine(tokens)
        with tf32(self.run.config.training.tf32):
            v = torch.cat([self.backbone.read_out(*part).cpu() for part in self._batches(tokens, x_t, t, label)])
        return velocity_to_z(self.path, x_t, torch.full((len(x_t),), t), v)

    @torch.no_grad()
    def check(self, x_t: Float[Tensor, "n c h w"], t: float, label: str) -> None:
        """Raise ValueError unless the last layer's tokens are read out as the model's own velocity."""
        tokens = self.grid.read(self.backbone.depth, t, label)[self.first :].float()
        f, *points = next(self._batches(tokens, x_t, t, label))
        own, read = self.backbone(*points), self.backbone.read_out(f, *points)
        if not (own - read).abs().max() <= 1e-2 * own.abs().max() + 1e-4:  # far above rounding, with TF32 too
            raise ValueError(
                f"backbone {self.run.config.backbone.name} makes its velocity in another way than by its final_layer "
                f"from the last tokens, so there is no lens; it can override read_out"
            )

    def _batches(self, tokens: Tensor, x_t: Tensor, t: float, label: str) -> Iterator[tuple[Tensor, ...]]:
        device = next(self.backbone.parameters()).device
        true = self.grid.true[self.first :]
        y = true if label == "true" else torch.full_like(true, self.backbone.null_label)
        for start in range(0, len(tokens), _BATCH):
            part = slice(start, start + _BATCH)
            times = torch.full((len(tokens[part]),), t)
            yield tuple(values.to(device) for values in (tokens[part], x_t[part], times, y[part]))
