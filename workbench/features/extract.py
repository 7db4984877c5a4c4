"""Features of a run: tokens by layer, time and label mode, computed once and cached on disk."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import DataConfig, flatten
from workbench.data.latents import Latents, open_latents
from workbench.data.vae import sample_posterior
from workbench.diffusion.devices import FittingBatches, sent
from workbench.diffusion.paths import Path as NoisePath
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.precision import chosen_precision, reduced, tf32
from workbench.diffusion.randomness import normal
from workbench.features.cache import ArrayWriter, array_file, damage, features_folder, make_room, turn_to_compute
from workbench.features.grid import (
    FEWEST_TOKENS,
    LABELS,
    FeatureGrid,
    local_distant_similarity,
    real_numbers,
    whole_numbers,
    wrong_labels,
)
from workbench.runs.models import check_latents_of, load_backbone
from workbench.runs.store import Run, runs_root
from workbench.runs.weak import WeakLike, check_weak, find_weak

_BATCH = 100  # images at a time, fewer if these do not fit the GPU's memory
_CHECKED_BYTES = 1_000_000_000  # above this only file sizes are checked, as reading the data takes seconds


class NotFiniteFeatures(ValueError):
    """Features of `layer` are not finite."""

    def __init__(self, layer: int, message: str):
        super().__init__(message)
        self.layer = layer


def extract(
    run: Run,
    images: int | Sequence[int],
    layers: Sequence[int],
    times: Sequence[float],
    *,
    step: int | None = None,
    weights: Literal["ema", "raw"] = "ema",
    labels: Sequence[str] = ("null", "true"),
    pooling: Literal["tokens", "mean"] = "tokens",
    data: DataConfig | None = None,
    split: str = "train",
    seed: int = 0,
    weak: WeakLike = None,
    dtype: Literal["float32", "float16"] = "float32",
    precision: Literal["no", "bf16", "auto"] = "no",
    device: torch.device | str | None = None,
    root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureGrid:
    """Extract features of images at every layer x time x label mode; cached on disk.

    The noise of an image depends only on `seed` and its row, so every model, layer and label mode gets the same x_t, on
    the noise path of the run. Features are cached under `root`/.features, and an interrupted call continues at the
    (time, label mode) it had reached. One forward pass computes all layers and stops at the deepest missing one. Uses a
    GPU if there is one.

    Args:
        run: The run whose model is used.
        images: Number of images (the first ones), or row numbers in the split.
        layers: Layers, counted from 1; 0 is the patch embedding.
        times: Noise levels t in 0..1; 0 is data, 1 is noise.
        step: Step of the checkpoint; the newest by default.
        weights: "ema" or "raw".
        labels: Label modes: "null" (f_u), "true" (f_c), "wrong" (the label of another image), "noise-null" and
            "noise-true" (noise in place of the image).
        pooling: "tokens" keeps every token, "mean" their mean and the LDS of each image.
        data: The image set, if it is not the run's own; required for an imported run.
        split: "train" or "test".
        seed: Seed of the noise.
        weak: A weak model to guide against, in place of the null label: another run, a step of this run, or (run,
            step). Its features of the same x_t are extracted too; they are `weak` of the result.
        dtype: Stored type, "float32" or "float16".
        precision: Of the model: "no" (float32, with TF32 on a GPU if the run was trained with it), "bf16", or "auto",
            bfloat16 where this machine multiplies matrices in it. Features of each are cached apart.
        device: Such as "cuda:1".
        root: Folder of the runs, where the cache is; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        progress: Called with (done, total) images.

    Returns:
        A ``FeatureGrid``. ``read(layer, t, label)`` gives features ``n m d`` (images, tokens, width), or ``n d`` for
        pooling "mean"; ``guided(layer, t, scale)`` gives f_u + scale (f_c - f_u), Eq. 3, or with `weak`
        f_weak + scale (f - f_weak). ``true`` and ``given`` are the true and the wrong labels.

    Raises:
        ValueError: For arguments that are not allowed, a step without a checkpoint, a weak model that does not fit or
            is the run itself, non-finite features, and features that do not fit the cap
            (``$WORKBENCH_FEATURES_GB``), the disk or float16.

    Examples:
        >>> features = wb.extract(wb.zoo("guided"), images=4, layers=[4, 8], times=[0.5])
        >>> features.read(8, 0.5, "true").shape, features.guided(8, 0.5, scale=10.0).shape
        (torch.Size([4, 64, 48]), torch.Size([4, 64, 48]))
    """
    root = runs_root() if root is None else Path(root)
    _check_words(weights=weights, pooling=pooling, dtype=dtype, precision=precision)
    precision = chosen_precision(precision)
    images = images if isinstance(images, int) else whole_numbers("images", images)
    reads = images if isinstance(images, int) else len(images)
    checkpoint, other = run.checkpoint(step), None if weak is None else find_weak(weak, run)
    if other is not None:
        check_weak(run, [checkpoint.step], other, whole_numbers("layers", layers))
    latents = opened_latents(run, data, split, root, reads)
    described = {
        "run": run.fingerprint,
        "step": checkpoint.step,
        "weights": checkpoint.hash("ema" if weights == "ema" else "model"),
        "backbone": flatten(run.config.backbone),
        "images": latents.content,
        "rows": _rows(images, len(latents)),
        "seed": seed,
        "path": run.config.diffusion.path,
        "pooling": pooling,
        "dtype": dtype,
    }
    if precision != "no":  # older features lack it
        described["precision"] = precision
    grid = _grid(run.name, latents, described, (layers, times, labels), root)
    grid = replace(grid, split=split, data=data)
    if _missing(grid):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with turn_to_compute(grid.folder):
            missing = _missing(grid)  # another process may have computed some of them
            if missing:
                backbone = load_backbone(run, checkpoint.step, weights).to(device)
                job = _Job(grid, backbone, latents, run.config.diffusion.path, seed, np.dtype(dtype))
                make_room(root, list(chain(*_files(grid).values())), *job.sizes(missing))
                with tf32(run.config.training.tf32), reduced(precision, device):
                    job.run(missing, progress)
    if other is None:
        return grid
    of_weak = extract(
        other.run,
        images,
        layers,
        times,
        step=other.step,
        weights=weights,
        labels=labels,
        pooling=pooling,
        data=data or run.config.data,  # a weak model may have been trained on fewer of the images
        split=split,
        seed=seed,
        dtype=dtype,
        precision=precision,
        device=device,
        root=root,
        progress=progress,
    )
    return replace(grid, weak=of_weak)


def opened_latents(run: Run, data: DataConfig | None, split: str, root: Path, reads: int) -> Latents:
    """The latents of the run's images, or of another set, of which `reads` images will be read.

    ValueError if the run cannot look at them.
    """
    config = run.config if data is None else replace(run.config, data=data)
    latents = open_latents(config, split, root / ".latents", reads=reads)
    check_latents_of(run, latents)
    return latents


def noisy_latents(
    latents: Latents, chosen: np.ndarray, path: NoisePath, t: float, seed: int
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """The clean latents z of the rows ``chosen``, and x_t, as `extract` gives them to a model."""
    shape = (latents.channels, latents.height, latents.height)
    z = sample_posterior(latents.moments(chosen), normal(seed, "feature-posterior", chosen, shape))
    times = torch.full((len(chosen),), t)
    return z, interpolate(path, z, normal(seed, "feature-noise", chosen, shape), times).x_t


def _grid(
    name: str, latents: Latents, described: dict[str, Any], axes: tuple[Sequence, Sequence, Sequence], root: Path
) -> FeatureGrid:
    """The grid of the layers, times and label modes in `axes`; nothing is computed."""
    layers, times, labels = axes
    rows, seed = described["rows"], described["seed"]
    true = latents.labels[np.asarray(rows)].astype(np.int64)
    return FeatureGrid(
        run=name,
        step=described["step"],
        layers=_chosen(
            "layers", whole_numbers("layers", layers), lambda layer: layer >= 0, "0 (the patch embedding) and more"
        ),
        times=real_numbers("times", times, 0.0, 1.0),
        labels=_chosen("labels", labels, LABELS.__contains__, ", ".join(LABELS)),
        pooling=described["pooling"],
        rows=tuple(rows),
        true=torch.from_numpy(true),
        given=torch.from_numpy(wrong_labels(true, seed=seed)),
        classes=latents.classes,
        folder=features_folder(root, described),
    )


@dataclass(frozen=True)
class _Job:
    """Computes the missing features of a grid."""

    grid: FeatureGrid
    backbone: TransformerBackbone
    latents: Latents
    path: str
    seed: int
    dtype: np.dtype
    fitting: FittingBatches = field(default_factory=lambda: FittingBatches(_BATCH))

    @property
    def _shape(self) -> tuple[int, ...]:
        tokens = (self.backbone.tokens,) if self.grid.pooling == "tokens" else ()
        return (len(self.grid.rows), *tokens, self.backbone.width)

    def sizes(self, missing: dict[tuple[float, str], list[int]]) -> tuple[int, int]:
        """Bytes of the whole grid, and of what is missing."""
        grid, n = self.grid, len(self.grid.rows)
        each = int(np.prod(self._shape)) * self.dtype.itemsize + (8 * n if grid.pooling == "mean" else 0)
        count = sum(map(len, missing.values()))
        return each * len(grid.layers) * len(grid.times) * len(grid.labels), each * count

    @torch.no_grad()
    def run(self, missing: dict[tuple[float, str], list[int]], progress: Callable[[int, int], None] | None) -> None:
        """Compute and store missing features, with one pass over the images per time and label mode."""
        n, done = len(self.grid.rows), 0
        for (t, label), layers in missing.items():
            writers = self._writers(t, label, layers)
            try:
                for part, features in self._batches(t, label, tuple(layers)):
                    for layer, tokens in features.items():
                        self._write(writers, layer, t, label, tokens)
                    done += part.stop - part.start
                    if progress:
                        progress(done, len(missing) * n)
                for writer in writers.values():
                    writer.finish()
            finally:
                for writer in writers.values():
                    writer.discard()

    def _writers(self, t: float, label: str, layers: list[int]) -> dict[tuple[int, str], ArrayWriter]:
        kinds = {"features": (self._shape, self.dtype)}
        if self.grid.pooling == "mean":
            kinds["lds"] = (self._shape[:1], np.dtype("float64"))
        return {
            (layer, of): ArrayWriter(array_file(self.grid.folder, label, t, layer, of), *kind)
            for layer in layers
            for of, kind in kinds.items()
        }

    def _batches(
        self, t: float, label: str, layers: tuple[int, ...]
    ) -> Iterator[tuple[slice, dict[int, Float[Tensor, "b m d"]]]]:
        grid, device = self.grid, next(self.backbone.parameters()).device
        noise, condition = LABELS[label]
        path = get_path(self.path)
        shape = (self.latents.channels, self.latents.height, self.latents.height)
        if condition == "null":
            labels = torch.full_like(grid.true, self.backbone.null_label)
        else:
            labels = {"true": grid.true, "given": grid.given}[condition]

        def features(part: slice) -> dict[int, Tensor]:
            chosen = np.asarray(grid.rows[part])
            times = torch.full((len(chosen),), t)
            if noise:  # standard normal like a latent, so x_t has about the usual variance at this time
                z = normal(self.seed, "feature-noise-image", chosen, shape)
                x_t = interpolate(path, z, normal(self.seed, "feature-noise", chosen, shape), times).x_t
            else:
                _, x_t = noisy_latents(self.latents, chosen, path, t, self.seed)
            x_t, times, y = (sent(of, device) for of in (x_t, times, labels[part]))
            return self.backbone.features(x_t, times, y, layers)

        yield from self.fitting(features, len(grid.rows))

    def _write(
        self, writers: dict[tuple[int, str], ArrayWriter], layer: int, t: float, label: str, tokens: Tensor
    ) -> None:
        tokens = tokens.float().cpu()
        if not tokens.isfinite().all():
            raise NotFiniteFeatures(
                layer,
                f"layer {layer}, t = {t:g}, {label}: features are not all finite; did {self.grid.run} diverge before "
                f"step {self.grid.step}?",
            )
        pooled = self.grid.pooling == "mean"
        features = tokens.mean(dim=1) if pooled else tokens
        if self.dtype == np.float16 and (most := features.abs().max()) > np.finfo(np.float16).max:
            raise ValueError(f"layer {layer}, t = {t:g}, {label}: numbers up to {most:.3g} do not fit float16")
        writers[layer, "features"].write(features.numpy().astype(self.dtype))
        if pooled and tokens.shape[1] < FEWEST_TOKENS:
            writers[layer, "lds"].write(np.full(len(tokens), np.nan))
        elif pooled:
            try:
                writers[layer, "lds"].write(local_distant_similarity(tokens).numpy())
            except ValueError as error:
                raise ValueError(f"layer {layer}, t = {t:g}, {label}: {error}") from error


def _files(grid: FeatureGrid) -> dict[tuple[float, str, int], list[Path]]:
    """The files of each time, label mode and layer."""
    kinds = ("features", "lds") if grid.pooling == "mean" else ("features",)
    return {
        (t, label, layer): [array_file(grid.folder, label, t, layer, of) for of in kinds]
        for t in grid.times
        for label in grid.labels
        for layer in grid.layers
    }


def _missing(grid: FeatureGrid) -> dict[tuple[float, str], list[int]]:
    """The layers without a complete file, by time and label mode; warns of damaged files."""
    missing: dict[tuple[float, str], list[int]] = {}
    wanted = _files(grid)
    stored = sum(file.stat().st_size for files in wanted.values() for file in files if file.is_file())
    numbers = stored <= _CHECKED_BYTES
    for (t, label, layer), files in wanted.items():
        if not all(_whole(file, numbers) for file in files):
            missing.setdefault((t, label), []).append(layer)
    return missing


def _whole(file: Path, numbers: bool) -> bool:
    if not file.is_file():
        return False
    reason = damage(file, numbers)
    if reason and file.is_file():  # else another process deleted it to make room
        warnings.warn(f"{file} is damaged and computed again: {reason}", stacklevel=4)
        file.unlink(missing_ok=True)
    return not reason


def _rows(images: int | Sequence[int], count: int) -> list[int]:
    rows = list(range(images)) if isinstance(images, int) else list(images)
    if not rows or not 0 <= min(rows) <= max(rows) < count or len(set(rows)) < len(rows):
        ends = f"{sorted(rows)[:1]} to {sorted(rows)[-1:]}"
        given = images if isinstance(images, int) else f"{len(rows)} row numbers, {ends}"
        raise ValueError(f"images is {given}; allowed are 1 to {count}, or different row numbers of 0 to {count - 1}")
    return rows


def _chosen(name: str, values, allowed: Callable, described: str) -> tuple:
    """The distinct values in order; ValueError if there are none, or one is not allowed."""
    values = tuple(dict.fromkeys(values))
    wrong = [value for value in values if not allowed(value)]
    if wrong or not values:
        raise ValueError(f"{name} has {repr(wrong[0]) if wrong else 'nothing'}; allowed are {described}")
    return values


def _check_words(**words: str) -> None:
    allowed: dict[str, tuple[str, ...]] = {"weights": ("ema", "raw"), "pooling": ("tokens", "mean")}
    allowed |= {"dtype": ("float32", "float16"), "precision": ("no", "bf16", "auto")}
    for name, value in words.items():
        if value not in allowed[name]:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed[name])}")
