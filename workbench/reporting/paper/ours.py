"""Our side of a comparison in words: the model, images and steps of a run, and what is known to be wrong with it.

A row of the paper keeps the paper's name; what stands beside it here is said by these, never by that name.
"""

from collections.abc import Iterable

from workbench.config import Config
from workbench.runs.store import Run

_FAMILIES = {"sit": "SiT", "lightningdit": "LightningDiT", "dit": "DiT"}
_IMAGES = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "scikit-learn's digits"}
# What trainings with rotary positions record of them since these are those of the model's own grid.
_POSITIONS = "0..side-1"
_UNSCALED = 16  # tokens along a side, for which the rescaled positions were the same
_RESCALED = (
    "LightningDiT's numbers are of runs trained with rescaled rotary positions, before these were corrected; they are "
    "to be trained again."
)


def model_of(config: Config) -> str:
    """Such as "SiT-nano/2"."""
    options = config.backbone.options
    size = options["size"].upper() if len(options["size"]) <= 2 else options["size"]
    return f"{_FAMILIES.get(config.backbone.name, config.backbone.name)}-{size}/{options['patch']}"


def images_of(config: Config) -> str:
    """Such as "Fashion-MNIST", or "imagenet, 256 x 256" of a folder."""
    data = config.data
    if data.name in _IMAGES:
        name = _IMAGES[data.name]
    else:
        folder = (data.path or data.name).rstrip("/").rpartition("/")[2]
        name = f"{folder}, {data.size} x {data.size}"
    return name if data.limit is None else f"{data.limit:,} images of {name}"


def described(run: Run, step: int | None = None, teacher_steps: int | None = None) -> str:
    """Such as "SiT-nano/2, Fashion-MNIST, 400 steps; teacher 200 steps"; ``step`` None is the last.

    A model whose numbers are to be made again says so.
    """
    config = run.config
    wrong = "" if correction(run) is None else " (rescaled positions)"
    step = config.training.steps if step is None else step
    taught = "" if teacher_steps is None else f"; teacher {teacher_steps:,} steps"
    return f"{model_of(config)}{wrong}, {images_of(config)}, {step:,} steps{taught}"


def correction(run: Run) -> str | None:
    """A sentence on a run that was trained by code that has been corrected since; None for all others."""
    options, trained = run.config.backbone.options, run.provenance.get("latents")
    if not options.get("rope") or trained is None or "origin" in run.provenance:
        return None
    right = run.provenance.get("rotary") == _POSITIONS or trained["height"] // options["patch"] == _UNSCALED
    return None if right else _RESCALED


def corrections(runs: Iterable[Run]) -> tuple[str, ...]:
    """The sentences on these runs, each once."""
    return tuple(dict.fromkeys(filter(None, map(correction, runs))))
