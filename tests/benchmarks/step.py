"""What a training step costs: every kind of step in one process, in turn, beside the plain one."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import harness
import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from workbench import plugins
from workbench.cli.arguments import Repeats
from workbench.cli.bars import bars
from workbench.cli.terminal import Console
from workbench.config import Config, backbone_sizes, from_dict, plugin_options, refuse_unknown
from workbench.config.ranges import Patch, Range
from workbench.data.encoders import load_encoder
from workbench.diffusion.precision import tf32
from workbench.objectives.base import Batch
from workbench.training.memory import kept_memory
from workbench.training.state import TrainState, accelerate
from workbench.training.student import Shape, build_backbone, build_student

# The run of section 4.5, the teacher of Table 5, and B's stop of section 4.1 (20 epochs; 4.5 itself stops at 50 k).
PAPER_STEPS, TEACHER_STEPS, GUIDED_STEPS = 1_000_000, 200_000, 100_000


@dataclass(frozen=True)
class StepCost:
    """A kind of step: median seconds, their ratio to plain, bytes, and the paper's schedule in plain schedules.

    ``memory`` counts parameters, gradients, average, optimizer, teacher and the activations kept for the backward
    pass. ``total`` is the cost of a million steps, the paper's longest run for SiT-B, over that of a million plain
    ones; ``total_with_teacher`` adds the 200 k steps of the teacher, which the paper leaves out.
    """

    kind: str
    seconds: float
    ratio: float
    memory: int
    total: float
    total_with_teacher: float


@dataclass(frozen=True)
class _Computed:
    """Targets that cost one run of the encoder on random images, or, stored, nothing."""

    width: int
    tokens: Callable[[np.ndarray, np.ndarray | None], Tensor]


def kinds(head_width: int, teacher_precision: str, every: bool, fast: bool) -> dict[str, dict]:
    """Configuration sections by the name of the step: plain and the two guided ones, every method, the fast ones."""
    guided = {"name": "self_transcendence", "teacher": "bench", "teacher_precision": teacher_precision}
    guided["head_width"] = head_width
    chosen = {
        "plain": {"name": "denoise"},
        "guided, all samples": guided,
        "guided, selected": {**guided, "window": "select"},
    }
    if every:
        timed = {objective["name"] for objective in chosen.values()}
        for name in (name for name in plugins.names("objective") if name not in timed):
            options = plugin_options("objective", name)
            objective: dict[str, object] = {"name": name}
            objective |= {"head_width": head_width} if "head_width" in options else {}
            objective |= {"teacher": "bench"} if "teacher" in options else {}
            if "stored" in options:  # of an encoder's tokens
                chosen[f"{name}, encoder at each step"] = {**objective, "stored": False}
                chosen[f"{name}, stored targets"] = objective
            else:
                chosen[name] = objective
    sections: dict[str, dict] = {kind: {"objective": objective} for kind, objective in chosen.items()}
    if fast:
        sections["plain, bfloat16"] = {"training": {"precision": "bf16"}}
        sections["plain, compiled"] = {"training": {"compile": True}}
        sections["plain, bfloat16, compiled"] = {"training": {"precision": "bf16", "compile": True}}
        sections["plain, bfloat16, compiled, Muon"] = {
            "training": {"precision": "bf16", "compile": True, "optimizer": "muon"}
        }
    return sections


def bench_steps(
    backbone: Mapping[str, object],
    *,
    batch: int,
    repeats: int,
    teacher_precision: str = "ambient",
    precision: str = "no",
    compiled: bool = False,
    every: bool = False,
    fast: bool = False,
    height: int | None = None,
) -> Iterator[tuple[int, int, list[StepCost]]]:
    """Time whole optimizer steps, all kinds in turn, yielding (rounds done, rounds, costs so far).

    ``backbone`` is a configuration's section. Random weights and latents: by default of the shapes of the published
    models at 256 pixels (4 x 32 x 32, for LightningDiT 32 x 16 x 16), and 4 x 8 x 8 for size nano. Times are evenly
    spread over [0, 1], so that 30 % of a large batch lies in the window. On a processor the kinds alternate, so that a
    drift of the machine's speed touches all of them. On a GPU one model is held at a time, as several do not fit. The
    first round warms up and is not counted.
    """
    shape = _shape(backbone, height)
    training = {"batch": batch, "precision": precision, "compile": compiled}
    head_width = 256 if backbone["size"] == "nano" else 2048
    sections = kinds(head_width, teacher_precision, every, fast)
    seconds: dict[str, list[float]] = {kind: [] for kind in sections}
    memory = {}
    rounds = [[kind] for kind in sections] if torch.cuda.is_available() else [list(sections)]
    for number, together in enumerate(rounds):
        states = {}
        for kind in together:
            own = {**training, **sections[kind].get("training", {})}
            states[kind] = _state(from_dict({"backbone": dict(backbone), **sections[kind], "training": own}), shape)
        for done in range(repeats + 1):
            draw = _draw(batch, shape, done)
            for kind, (state, targets) in states.items():
                with tf32(state.config.tf32):
                    if not done:
                        memory[kind] = _memory(state, draw, targets)
                    seconds[kind].append(_time_step(state, draw, targets))
            timed = {kind: values[1:] for kind, values in seconds.items() if len(values) > 1}
            if done:
                yield number * repeats + done, len(rounds) * repeats, _costs(timed, memory)
        del states, state, targets
        gc.collect()


def plain_matmul_share(
    backbone: Mapping[str, object], batch: int, seconds: float, precision: str, height: int | None = None
) -> float:
    """The arithmetic of a plain step (6 operations a block weight and token) over the machine's matmul rate.

    The rate is that of square products in ``precision`` on the device that trains, timed now; best of five.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side, best = 2048, float("inf")
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    with torch.device("meta"):
        model = build_backbone(from_dict({"backbone": dict(backbone)}), _shape(backbone, height))
    weights = [(name, w) for name, w in model.blocks.named_parameters() if w.ndim == 2]
    # Modulation works on one vector an image, the rest on every token.
    used = sum(w.numel() * batch * (1 if "adaLN" in name else model.tokens) for name, w in weights)
    return 6 * used / seconds / (2 * side**3 / best)


def _shape(backbone: Mapping[str, object], height: int | None) -> Shape:
    channels, side = (32, 16) if backbone["name"] == "lightningdit" else (4, 32)
    channels, side = (4, 8) if backbone["size"] == "nano" else (channels, side)
    return Shape(channels, height or side, tuple(str(k) for k in range(1000)))


def _state(config: Config, shape: Shape) -> tuple[TrainState, dict[str, _Computed]]:
    teacher, targets, options = None, {}, config.objective.options
    if "teacher" in options:
        teacher = build_backbone(config, shape)
        teacher.initialize(torch.Generator().manual_seed(1))
        teacher.eval().requires_grad_(False)
    if "encoder" in options:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoder, side = load_encoder(options["encoder"], device), shape.height // config.backbone.options["patch"]
        images = torch.randint(256, (config.training.batch, 3, 8 * shape.height, 8 * shape.height), dtype=torch.uint8)
        stored = torch.randn(len(images), side**2, encoder.width)
        read = (lambda *_: stored) if options.get("stored", True) else (lambda *_: encoder.tokens(images, side))
        targets = {options["encoder"]: _Computed(encoder.width, read)}
    accelerator = accelerate(config)
    student = build_student(config, shape, teacher.to(accelerator.device) if teacher else None, targets)
    return TrainState(student, config, accelerator), targets


def _draw(batch: int, shape: Shape, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    z, eps = (torch.randn(batch, shape.channels, shape.height, shape.height, generator=generator) for _ in range(2))
    t = (torch.arange(batch) + torch.rand(1, generator=generator)) / batch
    labels = torch.randint(1000, (batch,), generator=generator)
    mix = t.reshape(-1, 1, 1, 1)
    x_t = (1 - mix) * z + mix * eps
    return Batch(z=z, eps=eps, t=t, x_t=x_t, v=eps - z, y=labels, labels=labels, u=t, targets={})


def _time_step(state: TrainState, draw: Batch, targets: Mapping[str, _Computed]) -> float:
    """Seconds of one whole step."""
    _wait(state.accelerator.device)
    started = time.perf_counter()
    _step(state, draw, targets)
    _wait(state.accelerator.device)
    return time.perf_counter() - started


def _step(state: TrainState, draw: Batch, targets: Mapping[str, _Computed]) -> None:
    rows = np.arange(len(draw.z))

    def batches() -> Iterator[Batch]:
        while True:
            yield replace(draw, targets={name: source.tokens(rows, None) for name, source in targets.items()})

    state.step(batches(), state.student.objective.weight_at(0), 1e-4)


def _memory(state: TrainState, draw: Batch, targets: Mapping[str, _Computed]) -> int:
    """Bytes that a step, which is not timed, holds at its fullest."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _step(state, draw, targets)
    student, teacher = state.student, state.student.objective.context.teacher
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    copies = 4 * _bytes(student) + _bytes(state.ema) + (_bytes(teacher) if teacher else 0)
    return activations + copies


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _costs(seconds: Mapping[str, list[float]], memory: Mapping[str, int]) -> list[StepCost]:
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = {kind: value / medians["plain"] for kind, value in medians.items()}
    costs = []
    for kind, ratio in ratios.items():
        guided = kind.startswith("guided")
        share = GUIDED_STEPS / PAPER_STEPS if guided else 1.0
        total = share * ratio + 1 - share
        # Where stage 1 was not timed, its step is taken as a plain one.
        teacher = TEACHER_STEPS / PAPER_STEPS * ratios.get("vae_align", 1.0) if guided else 0.0
        costs.append(StepCost(kind, medians[kind], ratio, memory[kind], total, total + teacher))
    return costs


@dataclass(frozen=True)
class Step:
    """Time the plain step and guided steps (all methods with --all), in one process and in turn."""

    backbone: str = "sit"
    size: str = "nano"
    patch: Patch | None = None
    """1 for nano, 2 for the others, by default."""
    batch: Repeats = 32
    repeats: Repeats = 7
    all: bool = False
    """Every method, not only the guided steps."""
    fast: bool = False
    """Also the plain step in bfloat16, with compiled blocks, with both, and with both and Muon."""
    height: Annotated[int, Range(at_least=1, at_most=1024)] | None = None
    """Of the latents: 8 for nano, 32 for the others, by default."""
    precision: str = "no"
    """Of all steps: no, bf16 or fp16."""
    compile: bool = False
    """Compile the blocks of student and teacher."""
    teacher_precision: str = "ambient"
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""

    def execute(self) -> None:
        refuse_unknown("size", self.size, backbone_sizes(self.backbone))
        harness.check_report(self.report)
        section = {"name": self.backbone, "size": self.size, "patch": self.patch or (1, 2)[self.size != "nano"]}
        options = {
            key: getattr(self, key) for key in ("batch", "repeats", "fast", "precision", "teacher_precision", "height")
        }
        options |= {"every": self.all, "compiled": self.compile}
        with bars(Console()) as update, kept_memory():
            for done, rounds, found in bench_steps(section, **options):
                update("time steps", done, rounds)
                costs = found
        share = plain_matmul_share(section, self.batch, costs[0].seconds, self.precision, self.height)
        title = f"{self.backbone}-{self.size}/{section['patch']}, batch {self.batch}, median of {self.repeats}"
        table = Table("step", "time", "/ plain", "memory", "1 M steps / plain", "with teacher", title=title)
        for cost in costs:
            ratios = (f"{cost.total:.3f}", f"{cost.total_with_teacher:.3f}")
            table.add_row(
                cost.kind, f"{cost.seconds * 1e3:.0f} ms", f"{cost.ratio:.3f}", f"{cost.memory / 1e6:,.0f} MB", *ratios
            )
        Console().print(table, f"Share of the machine's matrix-product rate in the plain step: {share:.2f}")
        figures = {"step": [asdict(cost) for cost in costs], "matmul_share": share, "backbone": section, **options}
        harness.write_report(self.report, figures)


if __name__ == "__main__":
    harness.main(Step)
