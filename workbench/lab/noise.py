"""Pictures of what a model was given and of what it predicts, in few bytes; decoded once and cached."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from workbench.data.vae import VAE
from workbench.features.cache import array_file, damage, read_array, turn_to_compute, write_array
from workbench.features.grid import FeatureGrid
from workbench.features.predictions import Predictions, predict_clean
from workbench.lab.progress import Report
from workbench.lab.snippets import PACKED, deflated
from workbench.lab.sources import Subject
from workbench.runs.models import load_run_vae
from workbench.runs.store import Run
from workbench.runs.weak import Weak

ARRAYS = {
    "noisy?": ("uint8", "given t n high wide c"),  # one for all runs if they were given the same
    "predicted?": ("uint8", "run step t stop n high wide c"),
}
# Guidance scales of predictions, the most important first: as many as there is room for.
STOPS = (1.0, 5.0, 0.0, 10.0, 2.0, 30.0)
_SIDE, _SMALLEST = 128, 32  # pixels
_FEWEST = 3  # scales to have before pictures have more pixels
# Pixels are multiples of these, which halves their size: noise hides the coarser ones.
_NOISY_STEP, _STEP = 8, 4


def noise_pictures(
    subject: Subject,
    grids: Sequence[Sequence[FeatureGrid]],
    stops: Sequence[float],
    room: float | int,
    report: Report,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The arrays of `ARRAYS` and their guidance scales, in at most `room` bytes of a page; ({}, []) if they do not fit.

    `grids` are features of each run and step with the last layer; `stops` the scales, the most important first. The
    prediction of a scale is decoded from the guided latent, as pictures cannot be mixed.
    """
    decoders = []
    for number, (run, by_step) in enumerate(zip(subject.runs, grids, strict=True)):
        vae = cache(partial(load_run_vae, run, "cuda" if torch.cuda.is_available() else "cpu"))
        weak = subject.weak[number] if subject.weak else None
        decoders.append([_Decoder(run, of, subject, vae, weak) for of in by_step])
    stage, total = "predicted images", len(stops) + 1
    noisy = [by_step[0].noisy() for by_step in decoders]
    same = all(np.array_equal(noisy[0], other) for other in noisy[1:])
    given = np.stack(noisy[:1] if same else noisy)
    report(stage, 1, total)
    first = _at_scale(decoders, stops[0])
    side = given.shape[-2]
    while side > _SIDE or (side > _SMALLEST and _bytes(given, first, side) > room):
        side //= 2
    given = smaller(given, side, _NOISY_STEP)
    used, shown = PACKED * deflated(given), {}
    for number, w in enumerate(stops):
        pictures = smaller(_at_scale(decoders, w) if number else first, side, _STEP)
        used += PACKED * deflated(pictures)
        if used > room:
            break
        shown[float(w)] = pictures
        report(stage, number + 2, total)
    report(stage, total, total)
    kept = sorted(shown)
    return ({"noisy": given, "predicted": np.stack([shown[w] for w in kept], axis=3)} if kept else {}), kept


def _at_scale(decoders: Sequence[Sequence["_Decoder"]], w: float) -> UInt8[np.ndarray, "run step t n high wide k"]:
    return np.stack([np.stack([of.predicted(w) for of in by_step]) for by_step in decoders])


@dataclass(frozen=True, eq=False)
class _Decoder:
    """Decodes what a model was given and what it predicts, once: pictures are cached beside the features."""

    run: Run
    features: FeatureGrid
    subject: Subject
    vae: Callable[[], VAE]
    weak: Weak | None = None

    def noisy(self) -> UInt8[np.ndarray, "t n high wide k"]:
        return self._pictures("given", lambda: self._latents.x_t)

    def predicted(self, w: float) -> UInt8[np.ndarray, "t n high wide k"]:
        # At w = 1 the prediction is the run's own, whatever it is guided against.
        of = "" if self.features.weak is None or w == 1 else f"weak-{self.features.weak.folder.name}-"
        return self._pictures(f"{of}w{float(w)!r}", lambda: self._latents.guided(w))

    @cached_property
    def _latents(self) -> Predictions:
        root = self.run.folder.parent
        return predict_clean(self.run, self.features, data=self.subject.data, root=root, weak=self.weak)

    def _pictures(self, name: str, latents: Callable[[], Float[Tensor, "t n c h w"]]) -> np.ndarray:
        last = max(self.features.layers)
        files = [array_file(self.features.folder, name, t, last, "picture") for t in self.features.times]
        found = [picture for file in files if (picture := _cached(file)) is not None]
        if len(found) < len(files):
            z = latents()
            images = self.vae().decode(rearrange(z, "t n c h w -> (t n) c h w"))
            found = list(rearrange(images, "(t n) k y x -> t n y x k", t=len(z)).numpy())
            if os.access(self.features.folder, os.W_OK):
                with turn_to_compute(self.features.folder):
                    for file, picture in zip(files, found, strict=True):
                        write_array(file, picture)
        return np.stack(found)


def _cached(file: Path) -> np.ndarray | None:
    return read_array(file) if file.is_file() and damage(file, numbers=True) is None else None


def _bytes(given: np.ndarray, first: np.ndarray, side: int) -> float:
    """Bytes of pictures of this size in a page, with as few scales as are wanted before more pixels are."""
    sizes = deflated(smaller(given, side, _NOISY_STEP)), deflated(smaller(first, side, _STEP))
    return PACKED * (sizes[0] + _FEWEST * sizes[1])


def smaller(
    images: UInt8[np.ndarray, "*axes high wide k"], side: int, step: int
) -> UInt8[np.ndarray, "*axes side side k"]:
    """The images with at most `side` pixels a row, their values rounded to multiples of `step` and to 255."""
    if images.shape[-2] > side:
        flat = rearrange(torch.from_numpy(images.reshape(-1, *images.shape[-3:])), "b y x k -> b k y x").float()
        small = rearrange(adaptive_avg_pool2d(flat, side), "b k y x -> b y x k")
        images = small.reshape(*images.shape[:-3], side, side, -1).numpy()
    return np.minimum(np.rint(images.astype(np.float32) / step) * step, 255).astype(np.uint8)
