"""Descriptions of our runs: model, images and steps, and known errors of their training.

In tables a row keeps the paper's name; our run beside it is described by these functions, never by that name.
"""

from collections.abc import Iterable

from workbench.config import Config
from workbench.runs.store import Run

_FAMILIES = {"sit": "SiT", "lightningdit": "LightningDiT", "dit": "DiT"}
_IMAGES = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "scikit-learn's digits"}
# Recorded by runs with rotary positions since the positions are those of the model's own grid.
_POSITIONS = "0..side-1"
_UNSCALED = 16  # tokens per side for which rescaled and correct positions are the same
_RESCALED = (
    "LightningDiT's numbers are of runs trained with rescaled rotary positions, before these were corrected; they have "
    "to be trained again."
)


def model_of(config: Config) -> str:
    """Name of the model, such as "SiT-nano/2"."""
    options = config.backbone.options
    size = options["size"].upper() if len(options["size"]) <= 2 else options["size"]
    return f"{_FAMILIES.get(config.backbone.name, config.backbone.name)}-{size}/{options['patch']}"


def images_of(config: Config) -> str:
    """Name of the data set, such as "Fashion-MNIST", or "imagenet, 256 x 256" for a folder."""
    data = config.data
    if data.name in _IMAGES:
        name = _IMAGES[data.name]
    else:
        folder = (data.path or data.name).rstrip("/").rpartition("/")[2]
        name = f"{folder}, {data.size} x {data.size}"
    return name if data.limit is None else f"{data.limit:,} images of {name}"


def described(run: Run, step: int | None = None, teacher_steps: int | None = None) -> str:
    """A run in words, such as "SiT-nano/2, Fashion-MNIST, 400 steps; teacher 200 steps".

    ``step`` None is the last step. Runs with rescaled rotary positions are marked.
    """
    config = run.config
    wrong = "" if correction(run) is None else " (rescaled positions)"
    step = config.training.steps if step is None else step
    teacher = "" if teacher_steps is None else f"; teacher {teacher_steps:,} steps"
    return f"{model_of(config)}{wrong}, {images_of(config)}, {step:,} steps{teacher}"


def correction(run: Run) -> str | None:
    """A sentence on a run trained by code that has been corrected since; None for all others."""
    options, latents = run.config.backbone.options, run.provenance.get("latents")
    if not options.get("rope") or latents is None or "origin" in run.provenance:
        return None
    right = run.provenance.get("rotary") == _POSITIONS or latents["height"] // options["patch"] == _UNSCALED
    return None if right else _RESCALED


def corrections(runs: Iterable[Run]) -> tuple[str, ...]:
    """The `correction` of each run, without repeats."""
    return tuple(dict.fromkeys(filter(None, map(correction, runs))))
