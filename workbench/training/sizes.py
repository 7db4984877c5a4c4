"""Size of a training: latent shape, parameters, memory between steps, disk space. No weights are allocated."""

import json
import os
from dataclasses import dataclass
from functools import cache

import torch

from workbench.config import Config, from_dict, to_dict
from workbench.data.encoders import load_encoder
from workbench.data.latents import latent_source
from workbench.training.muon import matrices
from workbench.training.student import Shape, build_backbone, build_objective

_RECORD = 320  # bytes per line of metrics.jsonl


@dataclass(frozen=True)
class Encoded:
    """The latents of a configuration, encoded or not: shape, number of images, bytes per image, hash of the content."""

    shape: Shape
    images: int
    row_bytes: int
    content: str


@dataclass(frozen=True)
class Size:
    """Size of a model.

    ``backbone`` and ``heads`` are numbers of parameters, ``moments`` that of the optimizer's values: two for each
    parameter (AdamW), one for those that Muon updates. ``aligned_steps`` is the number of steps with the objective, and
    ``standing`` the memory between two steps in bytes.
    """

    backbone: int
    heads: int
    moments: int
    aligned_steps: int
    standing: int


def encoded(config: Config) -> Encoded:
    """The latents of a configuration; ValueError if images or VAE are missing or do not fit."""
    tree = to_dict(config)
    return _encoded(json.dumps(tree["data"], sort_keys=True), json.dumps(tree["vae"], sort_keys=True))


def model_size(config: Config, shape: Shape) -> Size:
    """The size of a configuration's model; ValueError for a layer outside it or a patch that does not divide it."""
    return _model(json.dumps(to_dict(config), sort_keys=True), shape)


def disk_bytes(config: Config, size: Size) -> int:
    """Largest disk space of a run in bytes: its checkpoints, with one that is being written, and its records."""
    training, ema, weights = config.training, 4 * size.backbone, 4 * (size.backbone + size.heads)
    count = max(1, training.steps // training.checkpoint_every)
    resumable = min(training.keep, count) + 1
    older = training.steps // training.milestone_every if training.milestone_every else 0
    milestones = max(0, older - training.keep)
    records = training.steps // training.log_every * _RECORD
    return resumable * (weights + 4 * size.moments + ema) + milestones * (weights + ema) + records


def standing_bytes(student: torch.nn.Module, ema: torch.nn.Module, teacher: torch.nn.Module | None) -> int:
    """Bytes in memory between two steps: weights, gradients, AdamW's two moments, the EMA and the teacher.

    Muon has one moment of each matrix, so with it this is an upper bound.
    """

    def size(module: torch.nn.Module | None) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters()) if module is not None else 0

    return 4 * size(student) + size(ema) + size(teacher)


def capacity() -> int:
    """Memory of the training device in bytes: the GPU's, or the machine's if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size_text(size: float | int) -> str:
    """Format a number of bytes with a decimal unit."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"


@cache
def _encoded(data: str, vae: str) -> Encoded:
    config = from_dict({"data": json.loads(data), "vae": json.loads(vae), "objective": {"name": "denoise"}})
    source = latent_source(config, "train")
    described = source.described
    shape = Shape(described["shape"][0] // 2, described["shape"][1], tuple(described["classes"]))
    return Encoded(shape, len(source.labels), source.row_bytes, described["content"])


@cache
def _model(text: str, shape: Shape) -> Size:
    config = from_dict(json.loads(text))
    options = config.objective.options
    encoders = [name.strip() for name in options["encoder"].split(",")] if "encoder" in options else []
    widths = {name: load_encoder(name).width for name in encoders}
    with torch.device("meta"):
        model = build_backbone(config, shape)
        teacher = model if "teacher" in options else None
        objective = build_objective(config, model, teacher, widths)
    steps = config.training.steps
    stop = steps if objective.stop_step is None else min(objective.stop_step, steps)
    student = torch.nn.ModuleList([model, objective])
    standing = standing_bytes(student, model, teacher)
    count = [sum(p.numel() for p in module.parameters()) for module in (model, objective)]
    updated = matrices(model) if config.training.optimizer == "muon" else []
    moments = 2 * sum(count) - sum(p.numel() for p in updated)
    return Size(count[0], count[1], moments, stop if objective.weight_at(0) > 0 else 0, standing)
