"""Load models from runs: frozen backbones with the weights of a checkpoint, VAEs and teachers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, plugin_class
from workbench.data.latents import Latents
from workbench.data.vae import VAE, load_vae
from workbench.runs.checkpoints import Checkpoint
from workbench.runs.store import Run, find_teacher

ROTARY = "0..side-1"  # provenance of runs with rotary positions as in the released LightningDiT
_NOT_IN_FEATURES = ("learn_sigma", "checkpoint_blocks")  # backbone options that do not affect features


def load_backbone(run: Run, step: int | None = None, weights: str = "ema") -> TransformerBackbone:
    """Load the frozen backbone of ``run`` at ``step`` (the newest if None) with "ema" or "raw" weights.

    Raises ValueError for a step without a checkpoint, damaged weights, and weights of other rotary positions.
    """
    trained = run.latents
    shape = {"channels": trained["channels"], "height": trained["height"], "classes": len(trained["classes"])}
    if not _has_null_row(run):
        shape["null_row"] = False
    backbone = plugin_class("backbone", run.config.backbone.name)(**run.config.backbone.options, **shape)
    try:
        backbone.load_state_dict(load_weights(run, step, weights))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the weights of run {run.name} cannot be used: {' '.join(str(error).split())}") from error
    return backbone.eval().requires_grad_(False)


def load_weights(run: Run, step: int | None = None, weights: str = "ema") -> dict[str, Tensor]:
    """Load the state dict of the backbone of ``run``; arguments as for ``load_backbone``."""
    checkpoint = run.checkpoint(step)
    return checkpoint.load("ema") if weights == "ema" else part_of_model(checkpoint, "backbone.")


def part_of_model(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The raw weights whose names start with ``prefix``, which is removed from the names."""
    return {k.removeprefix(prefix): v for k, v in checkpoint.load("model").items() if k.startswith(prefix)}


def load_run_vae(run: Run, device: torch.device | str = "cpu") -> VAE:
    """Load the VAE that ``run`` was trained with onto ``device``; ValueError if the VAE has changed since.

    For an imported run that only knows its VAE's name (its hash is None), any VAE with that name and number of
    channels is accepted.
    """
    latents = run.latents
    recorded = latents["vae"]["hash"]
    vae = load_vae(run.config.vae.name, latents["pixel_channels"], device)
    if vae.channels != latents["channels"] or recorded not in (None, vae.hash):
        raise ValueError(f"VAE {vae.name!r} is not the one that run {run.name} was trained with")
    return vae


def load_teacher(config: Config, latents: Latents, root: Path) -> TransformerBackbone | None:
    """Load the frozen teacher that the objective's option ``teacher`` names; None if the objective has no teacher.

    The options ``teacher_step`` (None: the last) and ``teacher_weights`` ("ema") select the weights, where the
    objective has them. Raises ValueError if the run is missing, has not reached that step or has an untrained null
    class, or if its latents, classes, backbone or noise path differ from the student's.
    """
    options = config.objective.options
    if "teacher" not in options:
        return None
    run = find_teacher(config, root)
    trained = run.provenance.get("latents")
    if trained is None:
        raise ValueError(f"the teacher run {run.name} has not been trained yet")
    _check_teacher(run, trained, config, latents)
    step = options.get("teacher_step")
    if step is None:
        # An unfinished run has no checkpoint of its last step, so it is refused. An imported run is always finished.
        step = run.checkpoint().step if "origin" in run.provenance else run.config.training.steps
    elif step < 1:
        raise ValueError(f"objective.teacher_step must be at least 1, or null for the teacher's last; got {step}")
    return load_backbone(run, step, options.get("teacher_weights", "ema"))


def stale_positions(run: Run) -> str | None:
    """Reason why a LightningDiT run is out of date, as a sentence; None if it is not.

    Earlier versions rescaled rotary positions to a 16 x 16 grid, which is wrong for any other grid. Newer runs have
    `ROTARY` in their provenance. For imported runs, loading the weights checks their positions.
    """
    backbone, provenance = run.config.backbone, run.provenance
    trained = provenance.get("latents")
    if not backbone.options.get("rope") or trained is None or "origin" in provenance:
        return None
    side = trained["height"] // backbone.options["patch"]
    if side == 16 or provenance.get("rotary") == ROTARY:
        return None
    return (
        f"run {run.name} was trained with rotary positions rescaled to a 16 x 16 grid, which {backbone.name} used "
        f"before they were corrected to 0..{side - 1}: it is out of date until it is trained again"
    )


def check_null_row(run: Run, purpose: str) -> None:
    """Raise ValueError if ``run`` is imported and its label table has no null row."""
    if not _has_null_row(run):
        raise ValueError(f"run {run.name} has no null row in its label table; {purpose}")


def check_null_class(run: Run, purpose: str) -> None:
    """Raise ValueError if ``run`` has no null class, or was trained without label dropout: the null class is random."""
    check_null_row(run, purpose)
    if run.config.diffusion.label_dropout == 0:
        raise ValueError(
            f"run {run.name} was trained with diffusion.label_dropout 0, so its null class is untrained; {purpose}"
        )


def check_current(run: Run) -> None:
    """Raise ValueError if the run has to be trained again, according to `stale_positions`."""
    stale = stale_positions(run)
    if stale is not None:
        raise ValueError(f"{stale}, after `workbench trash {run.name}`")


def _has_null_row(run: Run) -> bool:
    return (run.provenance.get("latents") or {}).get("null_row", True)


def check_latents_of(run: Run, latents: Latents) -> None:
    """ValueError unless ``latents`` are what ``run`` can look at: of its VAE and shape, with no more classes.

    The images may be others. Of an imported run that knows its VAE by name alone, the name counts.
    """
    trained = run.latents
    if not _same_latents(trained, latents) or len(latents.classes) > len(trained["classes"]):
        raise ValueError(f"run {run.name} was trained on other latents: {_both(trained, latents)}")


def _check_teacher(run: Run, trained: dict[str, Any], config: Config, latents: Latents) -> None:
    """Raise ValueError unless latents, classes, backbone and path match the student's and the null class is trained.

    For an imported run only the number of classes is known.
    """
    teacher, student = trained["classes"], list(latents.classes)
    same_classes = len(teacher) == len(student) if "origin" in run.provenance else teacher == student
    if not (_same_latents(trained, latents) and same_classes):
        raise ValueError(
            f"the teacher {run.name} was trained on other latents or classes than the student: "
            f"{_both(trained, latents)}"
        )
    if _features_of(run.config) != _features_of(config):
        raise ValueError(
            f"the teacher {run.name} has backbone {_describe(run.config)}, the student {_describe(config)}; "
            f"they must be the same"
        )
    paths = run.config.diffusion.path, config.diffusion.path
    if paths[0] != paths[1]:
        raise ValueError(
            f"the teacher {run.name} was trained on the {paths[0]} path, the student uses the {paths[1]} path; "
            f"they must be the same"
        )
    check_null_class(run, "it cannot be a teacher")


def _same_latents(trained: dict[str, Any], latents: Latents) -> bool:
    """Whether VAE and shape are the same; VAEs are compared by hash or, if it is None, by name."""
    vae = latents.index["vae"]
    if trained["vae"]["hash"]:
        same_vae = trained["vae"]["hash"] == vae["hash"]
    else:  # sd-vae-ft-ema and sd-vae-ft-mse have the encoder of sd-vae
        same_vae = trained["vae"]["name"].partition("-ft-")[0] == vae["name"].partition("-ft-")[0]
    return same_vae and (trained["channels"], trained["height"]) == (latents.channels, latents.height)


def _both(trained: dict[str, Any], latents: Latents) -> str:
    return (
        f"VAE {trained['vae']['name']!r}, {trained['channels']} x {trained['height']}, {len(trained['classes'])} "
        f"classes, not VAE {latents.index['vae']['name']!r}, {latents.channels} x {latents.height}, "
        f"{len(latents.classes)} classes"
    )


def _features_of(config: Config) -> tuple[str, dict[str, Any]]:
    options = config.backbone.options
    return config.backbone.name, {key: value for key, value in options.items() if key not in _NOT_IN_FEATURES}


def _describe(config: Config) -> str:
    return f"{config.backbone.name} {dict(config.backbone.options)}"
