"""Models of runs: a backbone with the weights of a checkpoint, frozen."""

from pathlib import Path

import torch

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, plugin_class
from workbench.data.codecs import Codec, load_codec
from workbench.data.latents import Latents
from workbench.runs.store import Run, find_teacher


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
    checkpoint = run.checkpoint(step)
    if weights == "ema":
        tensors = checkpoint.load("ema")
    else:
        prefix = "backbone."
        tensors = {k.removeprefix(prefix): v for k, v in checkpoint.load("model").items() if k.startswith(prefix)}
    backbone.load_state_dict(tensors)
    return backbone.eval().requires_grad_(False)


def load_run_codec(run: Run) -> Codec:
    """The codec whose latents ``run`` was trained on; ValueError if it has changed since."""
    recorded = run.provenance["latents"]["codec"]
    codec = load_codec(run.config.codec.name, run.provenance["latents"]["pixel_channels"])
    if codec.hash != recorded["hash"]:
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
    if trained["codec"]["hash"] != latents.index["codec"]["hash"] or trained["classes"] != list(latents.classes):
        raise ValueError(f"the teacher {run.name} was trained on other latents or classes than the student's")
    if run.config.backbone != config.backbone:
        raise ValueError(
            f"the teacher {run.name} has backbone {_describe(run.config)}, the student {_describe(config)}; "
            f"they must be the same"
        )
    step = options["teacher_step"] or run.config.training.steps
    teacher = load_backbone(run, step, options["teacher_weights"])
    return teacher.to(torch.bfloat16) if options["teacher_precision"] == "bfloat16" else teacher


def _describe(config: Config) -> str:
    return f"{config.backbone.name} {dict(config.backbone.options)}"
