"""What a guided step costs: plain, guided as released, guided with a selecting window, in one process, in turn."""

import statistics
import time
from dataclasses import dataclass

import torch

from workbench.backbones.sit import Backbone
from workbench.config import Config, from_dict
from workbench.objectives.base import Batch
from workbench.training.student import Losses, Student, build_student


@dataclass(frozen=True)
class _Shape:
    """The part of an encoded data set that building a student needs."""

    channels: int
    height: int
    classes: tuple[str, ...]


def bench_step(
    size: str, *, patch: int, height: int, batch: int, repeats: int, teacher_precision: str
) -> dict[str, float]:
    """Median seconds of forward and backward for each kind of step, their ratios to plain, and the matmul ceiling.

    Random weights and latents; times evenly spread over [0, 1], so that 30 % of a large batch lies in the window.
    The kinds alternate, so a drift of the machine's speed touches all of them. ``ceiling_share`` is the plain step's
    arithmetic (6 multiply-adds a block weight and token) over that of square matrix products timed in the same run.
    """
    shape = _Shape(4, height, tuple(str(k) for k in range(1000)))
    options = {"name": "sit", "size": size, "patch": patch}
    teacher = Backbone(**{k: v for k, v in options.items() if k != "name"}, channels=4, height=height, classes=1000)
    teacher.initialize(torch.Generator().manual_seed(1))
    teacher.eval().requires_grad_(False)
    if teacher_precision == "bfloat16":
        teacher.to(torch.bfloat16)
    guided = {"name": "self_transcendence", "teacher": "bench", "teacher_precision": teacher_precision}
    guided["head_width"] = 256 if size == "nano" else 2048
    objectives = {
        "plain": {"name": "denoise"},
        "guided, all samples": guided,
        "guided, selected": {**guided, "window": "select"},
    }
    draws = [_draw(batch, height, seed) for seed in range(repeats)]
    students = {}
    for kind, objective in objectives.items():
        config: Config = from_dict({"backbone": options, "objective": objective})
        students[kind] = build_student(config, shape, teacher, {})
    seconds: dict[str, list[float]] = {kind: [] for kind in students}
    for draw in draws[:1] + draws:  # the first round warms up
        for kind, student in students.items():
            seconds[kind].append(_time_step(student, draw))
    medians = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}
    weights = 18 * teacher.width**2 * teacher.depth * batch * teacher.tokens
    weights -= 6 * teacher.width**2 * teacher.depth * batch * (teacher.tokens - 1)  # modulation is once an image
    share = 6 * weights / medians["plain"] / _matmul_rate()
    ratios = {f"{kind} / plain": medians[kind] / medians["plain"] for kind in list(medians)[1:]}
    return {**medians, **ratios, "ceiling_share": share}


def _draw(batch: int, height: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 4, height, height, generator=generator)
    eps = torch.randn(batch, 4, height, height, generator=generator)
    t = (torch.arange(batch) + torch.rand(1, generator=generator)) / batch
    labels = torch.randint(1000, (batch,), generator=generator)
    mix = t.reshape(-1, 1, 1, 1)
    return Batch(z=z, eps=eps, t=t, x_t=(1 - mix) * z + mix * eps, v=eps - z, y=labels, labels=labels, u=t, targets={})


def _time_step(student: Student, batch: Batch) -> float:
    started = time.perf_counter()
    losses: Losses = student(batch, student.objective.weight_at(0) > 0)
    total = losses.denoise.mean()
    if losses.alignment is not None:
        total = total + 0.5 * losses.alignment.mean()
    total.backward()
    student.zero_grad()
    return time.perf_counter() - started


def _matmul_rate(side: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a second of float32 matrix products; best of ``repeats``."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
