"""Targets of the alignment methods, as tokens of a run's images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from workbench.config import Config, DataConfig, backbone_sizes, refuse_unknown
from workbench.config.layers import placement
from workbench.data.encoders import ENCODERS, load_encoder
from workbench.data.images import load_images
from workbench.data.vae import sample_posterior
from workbench.diffusion.randomness import normal
from workbench.diffusion.tokens import patchify
from workbench.features.extract import extract, opened_latents
from workbench.features.masks import token_side
from workbench.objectives import layersync, sra
from workbench.runs.store import Run, runs_root

CLEAN = ("vae", *ENCODERS)  # targets of the image without noise
TARGETS = (*CLEAN, "layersync", "sra")
_SRA_OFFSET = 0.2  # for runs of other methods, as in the paper and the released code


def target_tokens(
    name: str,
    run: Run,
    rows: Sequence[int],
    times: Sequence[float],
    *,
    step: int | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
    root: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[float, Float[Tensor, "n m d"]]:
    """Tokens of the target that a method aligns with, for the same images and noise as `wb.extract`.

    "vae" are patches of the latent, the target of Eq. 1. An encoder ("effnet-lite0", "dinov2-b") gives its tokens of
    the image, the target of REPA. Both are the same at every time. "layersync" is the deeper layer of the run at `step`
    (of its first pair). "sra" is the deep layer of the EMA model at t minus half the offset, which is SRA's mean time.
    The layers of the last two are those of the run's objective if it is that method, else the published ones for such a
    backbone; they get the true label.

    Args:
        name: One of these targets.
        run: The run whose images and token grid are used.
        rows: Row numbers of the images in the training split.
        times: Noise levels t in 0..1.
        step: Step of the checkpoint for "layersync" and "sra"; the newest by default.
        data: The image set, if it is not the run's own.
        seed: Seed of the noise.
        root: Folder of the runs, where the cache is; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        progress: Called with (done, total) images.

    Returns:
        Tokens ``n m d`` (images, tokens, width of the target) by time.

    Raises:
        ValueError: For an unknown name, or if no layer is published for such a backbone.

    Examples:
        >>> tokens = wb.target_tokens("vae", wb.zoo("guided"), rows=[0, 1], times=[0.5])
        >>> tokens[0.5].shape
        torch.Size([2, 64, 4])
    """
    refuse_unknown("target", name, TARGETS)
    root = runs_root() if root is None else Path(root)
    chosen: dict[str, Any] = {"step": step, "data": data, "seed": seed, "root": root, "progress": progress}
    if name == "layersync":
        (_, layer), *_ = _option(run, "layersync", "pairs", layersync.PLACEMENT)
        return _deep_layer(run, rows, layer, {t: t for t in times}, chosen)
    if name == "sra":
        layer = _option(run, "sra", "teacher_layer", sra.PLACEMENT)
        own = run.config.objective.name == "sra"
        offset = run.config.objective.options["offset"] if own else _SRA_OFFSET
        return _deep_layer(run, rows, layer, {t: round(max(0.0, t - offset / 2), 9) for t in times}, chosen)
    tokens = (_latent if name == "vae" else _encoded)(name, run, list(rows), data, seed, root)
    return dict.fromkeys(times, tokens)


def _deep_layer(
    run: Run, rows: Sequence[int], layer: int, target_times: dict[float, float], chosen: dict[str, Any]
) -> dict[float, Float[Tensor, "n m d"]]:
    """A layer of the EMA model at the target's time, by the student's time."""
    features = extract(run, list(rows), [layer], list(target_times.values()), labels=("true",), **chosen)
    return {t: features.read(layer, at, "true").float() for t, at in target_times.items()}


def _latent(
    name: str, run: Run, rows: list[int], data: DataConfig | None, seed: int, root: Path
) -> Float[Tensor, "n m d"]:
    latents = opened_latents(run, data, "train", root, len(rows))
    indices, shape = np.asarray(rows), (latents.channels, latents.height, latents.height)
    z = sample_posterior(latents.moments(indices), normal(seed, "feature-posterior", indices, shape))
    return patchify(z, run.config.backbone.options["patch"])


def _encoded(
    name: str, run: Run, rows: list[int], data: DataConfig | None, seed: int, root: Path
) -> Float[Tensor, "n m d"]:
    encoder = load_encoder(name)
    images = load_images(_configured(run, data).data, "train")
    return encoder.tokens(images.batch(rows), token_side(run))


def _configured(run: Run, data: DataConfig | None) -> Config:
    return run.config if data is None else replace(run.config, data=data)


def _option(run: Run, method: str, option: str, table: dict[Any, dict[str, Any]]) -> Any:
    """An option of the run's objective if it is `method`, else the published value for the run's backbone and depth."""
    config = run.config
    if config.objective.name == method:
        return config.objective.options[option]
    depth = backbone_sizes(config.backbone.name)[config.backbone.options["size"]].depth
    published = placement(table, config.backbone.name, depth)
    if published is None:
        known = ", ".join(map(str, table))
        raise ValueError(
            f"no {option} of {method} is published for {config.backbone.name} of depth {depth}; there are values for "
            f"depth {known}"
        )
    return published[option]
