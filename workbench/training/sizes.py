"""Size of a training: latent shape, parameters, memory, arithmetic, disk space. No weights are allocated."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from workbench.config import Config, backbone_sizes, from_dict, to_dict
from workbench.data.encoders import load_encoder
from workbench.data.latents import latent_source
from workbench.files import home_path
from workbench.objectives.base import Batch
from workbench.training.muon import matrices
from workbench.training.student import Shape, Student, build_backbone, build_objective

_LATENTS = {"sd-vae": (4, 8), "sd-vae-ft-ema": (4, 8), "sd-vae-ft-mse": (4, 8), "va-vae": (32, 16)}
_IMAGES, _CLASSES = 1_281_167, 1000  # of ImageNet
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


def encoded_or_assumed(config: Config) -> tuple[Encoded, str]:
    """`encoded`, or, if the images are not at hand, latents of as many images and classes as ImageNet; then in words.

    ValueError as `encoded` for anything else that is wrong, and for an autoencoder whose shape is not known without it.
    """
    data, known = config.data, _LATENTS.get(config.vae.name)
    if data.path is None or home_path(data.path).exists() or known is None:
        return encoded(config), ""
    channels, factor = known
    shape = Shape(channels, data.size // factor, tuple(map(str, range(_CLASSES))))
    row_bytes = (1 + data.flip) * 2 * channels * shape.height**2 * np.dtype(data.precision).itemsize
    words = f"{_IMAGES:,} images of {_CLASSES:,} classes, latents of {channels} x {shape.height} x {shape.height}"
    return Encoded(shape, data.limit or _IMAGES, row_bytes, "0" * 64), words


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


def activation_bytes(config: Config, shape: Shape, rows: int) -> int:
    """Bytes that a micro-batch of ``rows`` samples keeps on a GPU for the backward pass, at the fullest.

    Counted with fake tensors, so nothing is computed and no GPU is needed. Compiled blocks keep less. With
    ``checkpoint_blocks`` the activations of the block that is computed again are counted too.
    """
    options = {**config.backbone.options}
    recomputed = options.pop("checkpoint_blocks", False)
    kept = _kept_bytes(json.dumps(to_dict(config), sort_keys=True), shape, rows)
    if not recomputed:
        return kept
    tree = to_dict(config)
    tree["backbone"]["checkpoint_blocks"] = False
    depth = backbone_sizes(config.backbone.name)[options["size"]].depth
    return kept + _kept_bytes(json.dumps(tree, sort_keys=True), shape, rows) // depth


def forward_operations(config: Config, shape: Shape, rows: int) -> int:
    """Floating-point operations of the backbone's forward pass; a backward pass takes about twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        model = build_backbone(config, shape)
        x_t = torch.empty(rows, shape.channels, shape.height, shape.height)
        model(x_t, torch.empty(rows), torch.zeros(rows, dtype=torch.long))
    return counter.get_total_flops()


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
def _kept_bytes(text: str, shape: Shape, rows: int) -> int:
    """Bytes of all tensors that a forward pass with the objective saves, without weights."""
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

    config = from_dict(json.loads(text))
    objective, precision = config.objective.options, config.training.precision
    encoders = [name.strip() for name in objective["encoder"].split(",")] if "encoder" in objective else []
    widths = {name: load_encoder(name).width for name in encoders}
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "auto": torch.bfloat16}.get(precision)
    saved: dict[int, int] = {}  # by address of the storage

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), _autocast_on_gpu(dtype):
        backbone, ema = build_backbone(config, shape), build_backbone(config, shape)
        teacher = build_backbone(config, shape) if "teacher" in objective else None
        student = Student(backbone, build_objective(config, backbone, teacher, widths), config.diffusion.cosine_weight)
        for frozen in filter(None, (ema, teacher)):
            frozen.requires_grad_(False)
        z, eps, x_t, v = (torch.empty(rows, shape.channels, shape.height, shape.height) for _ in range(4))
        t, u, y = torch.empty(rows), torch.empty(rows), torch.zeros(rows, dtype=torch.long)
        targets = {name: torch.empty(rows, backbone.tokens, width) for name, width in widths.items()}
        draw = Batch(z=z, eps=eps, t=t, x_t=x_t, v=v, y=y, labels=y, u=u, targets=targets)
        aligned = student.objective.weight_at(0) > 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            try:
                losses = student(draw, aligned, ema)  # kept until the sizes are summed
            except DynamicOutputShapeException:  # samples are selected by their times, which fake tensors do not have
                saved.clear()
                losses = student(draw, False, ema)
        for parameter in student.parameters():
            saved.pop(parameter.untyped_storage()._cdata, None)
        total = sum(saved.values())
        del losses
    return total


@contextlib.contextmanager
def _autocast_on_gpu(dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast of a GPU, on fake tensors where there is none: `torch.autocast` would switch itself off."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


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
