"""Models of runs: a backbone with the weights of a checkpoint, frozen."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, plugin_class
from workbench.data.codecs import Codec, load_codec
from workbench.data.latents import Latents
from workbench.runs.checkpoints import Checkpoint
from workbench.runs.store import Run, find_teacher

_NO_WEIGHTS = ("learn_sigma", "checkpoint_blocks")  # options of a backbone that change none of its features


def load_backbone(run: Run, step: int | None = None, weights: str = "ema") -> TransformerBackbone:
    """The frozen backbone of ``run`` at ``step`` (the newest if None), "ema" or "raw" weights.

    Raises ValueError for a step that was not kept and for damaged weights.
    """
    shape = run.provenance["latents"]
    backbone = plugin_class("backbone", run.config.backbone.name)(
        **run.config.backbone.options,
        channels=shape["channels"],
        height=shape["height"],
        classes=len(shape["classes"]),
    )
    backbone.load_state_dict(load_weights(run, step, weights))
    return backbone.eval().requires_grad_(False)


def load_weights(run: Run, step: int | None = None, weights: str = "ema") -> dict[str, Tensor]:
    """The state dict of the backbone of ``run``, as ``load_backbone`` chooses it."""
    checkpoint = run.checkpoint(step)
    return checkpoint.load("ema") if weights == "ema" else part_of_model(checkpoint, "backbone.")


def part_of_model(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The raw weights whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in checkpoint.load("model").items() if k.startswith(prefix)}


def load_run_codec(run: Run, device: torch.device | str = "cpu") -> Codec:
    """The codec whose latents ``run`` was trained on, on ``device``; ValueError if it has changed since.

    An imported run that knows its codec by name alone (its hash is None) takes any codec of that name with its number
    of channels.
    """
    latents = run.provenance["latents"]
    recorded = latents["codec"]["hash"]
    codec = load_codec(run.config.codec.name, latents["pixel_channels"], device)
    if codec.channels != latents["channels"] or recorded not in (None, codec.hash):
        raise ValueError(f"codec {codec.name!r} is not the one that run {run.name} was trained with")
    return codec


def load_teacher(config: Config, latents: Latents, root: Path) -> TransformerBackbone | None:
    """The frozen teacher that the objective names, or None if its method has none.

    Raises ValueError if the run is missing or unfinished at that step, or if its latents, classes or shape are not
    the student's: a random or mismatched teacher is never used.
    """
    options = config.objective.options
    if "teacher" not in options:
        return None
    run = find_teacher(config, root)
    trained = run.provenance.get("latents")
    if trained is None:
        raise ValueError(f"the teacher run {run.name} has not been trained yet")
    _check_latents(run, trained, latents)
    if _features_of(run.config) != _features_of(config):
        raise ValueError(
            f"the teacher {run.name} has backbone {_describe(run.config)}, the student {_describe(config)}; "
            f"they must be the same"
        )
    # The last step of a run that has not come so far has no checkpoint, so it is refused; an imported one was finished.
    last = run.checkpoint().step if "origin" in run.provenance else run.config.training.steps
    step = options["teacher_step"] or last
    teacher = load_backbone(run, step, options["teacher_weights"])
    return teacher.to(torch.bfloat16) if options["teacher_precision"] == "bfloat16" else teacher


def _check_latents(run: Run, trained: dict[str, Any], latents: Latents) -> None:
    """Raise ValueError unless codec, shape and classes are the student's.

    Of an imported run only the number of its classes is known, and of its codec, where the hash is None, the name.
    """
    imported, codec = "origin" in run.provenance, latents.index["codec"]
    if trained["codec"]["hash"]:
        same_codec = trained["codec"]["hash"] == codec["hash"]
    else:  # sd-vae-ft-ema and sd-vae-ft-mse have the encoder of sd-vae
        same_codec = trained["codec"]["name"].partition("-ft-")[0] == codec["name"].partition("-ft-")[0]
    same_shape = (trained["channels"], trained["height"]) == (latents.channels, latents.height)
    theirs, ours = trained["classes"], list(latents.classes)
    same_classes = len(theirs) == len(ours) if imported else theirs == ours
    if not (same_codec and same_shape and same_classes):
        raise ValueError(
            f"the teacher {run.name} was trained on other latents or classes than the student's: codec "
            f"{trained['codec']['name']!r}, {trained['channels']} x {trained['height']}, {len(theirs)} classes; the "
            f"student's are codec {codec['name']!r}, {latents.channels} x {latents.height}, {len(ours)} classes"
        )


def _features_of(config: Config) -> tuple[str, dict[str, Any]]:
    options = config.backbone.options
    return config.backbone.name, {key: value for key, value in options.items() if key not in _NO_WEIGHTS}


def _describe(config: Config) -> str:
    return f"{config.backbone.name} {dict(config.backbone.options)}"
