"""Measure the training speed of a configuration on this machine: a few steps of the real model in its own process.

Latents and weights, the teacher's too, are random, since the cost of a step does not depend on them. Results are stored
by configuration and machine.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config, from_dict, to_dict
from workbench.data.encoders import load_encoder
from workbench.diffusion.precision import tf32
from workbench.files import read_json, write_json
from workbench.objectives.base import Batch
from workbench.runs.store import machine
from workbench.training.automatic import by_machine
from workbench.training.memory import kept_memory
from workbench.training.queue import surroundings
from workbench.training.sizes import Shape, standing_bytes
from workbench.training.slots import queue_folder
from workbench.training.state import TrainState, accelerate
from workbench.training.student import Student, build_backbone, build_student

_SECONDS, _STEPS = 3.0, 7  # limits of a measurement, whichever comes first; the first step is not counted
_PATIENCE = 180.0
# Options that do not change the time of a step.
_FREE = {"teacher", "teacher_step", "teacher_weights", "layer", "guidance_scale", "weight", "stop_step"}
_COUNTS = ("batch", "accumulation", "optimizer", "precision", "compile", "tf32")


@dataclass(frozen=True)
class Pace:
    """Cost of a training step on this machine, with the objective (``aligned``) and without it (``plain``).

    ``aligned`` and ``plain`` are medians over ``steps`` steps, in seconds. ``memory`` is the peak memory of a step with
    the objective in bytes, without that of the program itself. ``load`` is the load average before the measurement.
    Floating-point operations are None if they cannot be counted, as with compiled blocks.
    """

    aligned: float
    plain: float
    memory: int
    aligned_operations: int | None
    plain_operations: int | None
    load: float
    steps: int


@dataclass(frozen=True)
class RandomTargets:
    """Target tokens: random ones as if stored, or those of the encoder for random images."""

    width: int
    read: Callable[[], Tensor]

    def tokens(self, indices: np.ndarray | None = None, flipped: np.ndarray | None = None) -> Tensor:
        """Tokens of a micro-batch, whatever the images."""
        return self.read()


def known_pace(config: Config, shape: Shape, processes: int = 1) -> Pace | None:
    """The stored measurement, or None."""
    file = _file(config, shape, processes)
    return Pace(**read_json(file)["pace"]) if file.is_file() else None


def measure_pace(config: Config, shape: Shape, processes: int = 1, again: bool = False) -> Pace:
    """Return the stored measurement, or measure in another process, which takes several seconds.

    With several ``processes``, one process is measured with its share of the batch and of the cores, without
    communication. ``again`` ignores the stored measurement. Raises ValueError with the reason if measuring fails.
    """
    known = known_pace(config, shape, processes)
    if known is not None and not again:
        return known
    request = json.dumps({"config": to_dict(config), "shape": asdict(shape), "processes": processes})
    environment = surroundings({"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path]))})
    if processes > 1 and not torch.cuda.is_available():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = [sys.executable, "-m", "workbench.training.pace"]
    try:
        result = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=_PATIENCE, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"a few steps take more than {_PATIENCE:.0f} s on this machine") from error
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}: out of memory?"])[-1]
        raise ValueError(f"a step could not be measured: {last.removeprefix('ValueError: ')}")
    pace = Pace(**json.loads(result.stdout.splitlines()[-1]))
    write_json(_file(config, shape, processes), {"pace": asdict(pace), "machine": _machine(), "measured": time.time()})
    return pace


def _file(config: Config, shape: Shape, processes: int) -> Path:
    tree = to_dict(config)
    objective = {key: value for key, value in tree["objective"].items() if key not in _FREE}
    counts = {key: tree["training"][key] for key in _COUNTS}
    latents = [shape.channels, shape.height, len(shape.classes), processes, os.environ.get("OMP_NUM_THREADS")]
    identity = [tree["backbone"], objective, counts, tree["diffusion"], latents, _machine()]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = queue_folder() / "paces"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest}.json"


@cache
def _machine() -> dict:
    known = machine()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"processor": known["processor"], "cores": known["cores"], "torch": torch.__version__, "devices": devices}


def measure_here(config: Config, shape: Shape, processes: int = 1) -> Pace:
    """Measure in this process, without storing the result."""
    load = os.getloadavg()[0]
    state, targets = _state(config, shape)
    rows = config.training.batch // (processes * config.training.accumulation)
    weight = state.student.objective.weight_at(0)
    measured: dict[bool, tuple[float, int, int | None, int]] = {}
    for aligned in [True, False] if weight > 0 else [False]:
        draw, step = (
            random_batch(rows, shape, 0),
            partial(_step, state, targets=targets, weight=weight if aligned else 0.0),
        )
        memory = _memory(state, draw, step)
        seconds: list[float] = []
        started = time.perf_counter()
        while len(seconds) < 2 or (len(seconds) < _STEPS and time.perf_counter() - started < _SECONDS):
            before = time.perf_counter()
            step(random_batch(rows, shape, len(seconds)))
            seconds.append(time.perf_counter() - before)
        measured[aligned] = (statistics.median(seconds[1:]), memory, _operations(state, draw, step), len(seconds) - 1)
    plain, whole = measured[False], measured.get(True, measured[False])
    return Pace(whole[0], plain[0], whole[1], whole[2], plain[2], load, whole[3])


def _state(config: Config, shape: Shape) -> tuple[TrainState, dict[str, RandomTargets]]:
    config = by_machine(config)
    accelerator = accelerate(config)
    student, targets = random_student(config, shape, accelerator.device)
    return TrainState(student, config, accelerator), targets


def random_student(
    config: Config, shape: Shape, device: torch.device | str
) -> tuple[Student, dict[str, RandomTargets]]:
    """A student with random weights and, on ``device``, its teacher, and random targets of its encoders."""
    teacher: TransformerBackbone | None = None
    targets: dict[str, RandomTargets] = {}
    options = config.objective.options
    if "teacher" in options:
        teacher = build_backbone(config, shape)
        teacher.initialize(torch.Generator().manual_seed(1))
        teacher.eval().requires_grad_(False).to(device)
    if "encoder" in options:
        side = shape.height // config.backbone.options["patch"]
        targets = {name.strip(): _target(config, name.strip(), side) for name in options["encoder"].split(",")}
    return build_student(config, shape, teacher, targets), targets


def _target(config: Config, name: str, side: int) -> RandomTargets:
    encoder = load_encoder(name, "cuda" if torch.cuda.is_available() else "cpu")
    rows = config.training.batch // config.training.accumulation
    if config.objective.options.get("stored", True):
        stored = torch.randn(rows, side**2, encoder.width)
        return RandomTargets(encoder.width, lambda: stored)
    images = torch.randint(256, (rows, 3, encoder.stride * side, encoder.stride * side), dtype=torch.uint8)
    return RandomTargets(encoder.width, lambda: encoder.tokens(images, side))


def random_batch(rows: int, shape: Shape, seed: int) -> Batch:
    """A random batch; times are evenly spaced, so that an objective limited to some times gets its share."""
    generator = torch.Generator().manual_seed(seed)
    z, eps = (torch.randn(rows, shape.channels, shape.height, shape.height, generator=generator) for _ in range(2))
    t = (torch.arange(rows) + torch.rand(1, generator=generator)) / rows
    labels = torch.randint(len(shape.classes), (rows,), generator=generator)
    x_t = torch.lerp(z, eps, t.reshape(-1, 1, 1, 1))
    u = torch.rand(rows, generator=generator)
    return Batch(z=z, eps=eps, t=t, x_t=x_t, v=eps - z, y=labels, labels=labels, u=u, targets={})


def _step(state: TrainState, draw: Batch, targets: dict[str, RandomTargets], weight: float) -> None:
    """One optimizer step, including the encoder of computed targets."""
    device = state.accelerator.device

    def batches() -> Iterator[Batch]:
        while True:
            tokens = {name: target.tokens()[: len(draw.z)] for name, target in targets.items()} if weight else {}
            yield replace(draw, targets=tokens)

    state.step(batches(), weight, 1e-4)
    if device.type == "cuda":
        torch.cuda.synchronize()


def _memory(state: TrainState, draw: Batch, step: Callable[[Batch], None]) -> int:
    """Bytes of weights, gradients, EMA, optimizer and teacher, and of the activations saved for the backward pass."""
    if state.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(draw)
        return torch.cuda.max_memory_allocated()
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        step(draw)
    student, teacher = state.student, state.student.objective.context.teacher
    weights = {parameter.data_ptr() for parameter in student.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    return activations + standing_bytes(student, state.ema, teacher if isinstance(teacher, nn.Module) else None)


def _operations(state: TrainState, draw: Batch, step: Callable[[Batch], None]) -> int | None:
    from torch.utils.flop_counter import FlopCounterMode

    if state.config.compile:
        return None
    counter = FlopCounterMode(display=False)
    with counter:
        step(draw)
    return counter.get_total_flops()


if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    described = request["shape"]
    shape = Shape(described["channels"], described["height"], tuple(described["classes"]))
    os.environ.pop("WORKBENCH_PROCESSES", None)
    config = from_dict(request["config"])
    with tf32(config.training.tf32), kept_memory():
        print(json.dumps(asdict(measure_here(config, shape, request["processes"]))))
