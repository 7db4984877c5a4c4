"""Check a machine with a GPU: arithmetic against float32 on the processor, resuming, speed and memory, as one JSON.

Each item is written as soon as it is measured, so that a time limit keeps what there is. An item says what is ``ok``
and what it needs for that; without such a condition it is a measurement.
"""

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from workbench import plugins
from workbench.config import Config, from_dict, load_config, plugin_options
from workbench.data.latents import open_latents
from workbench.diffusion.precision import reduced, tf32
from workbench.diffusion.sampling import sample
from workbench.evaluation.suite import score
from workbench.features.extract import extract
from workbench.files import reason, write_json
from workbench.runs.checkpoints import PARTS
from workbench.runs.store import find_runs, machine
from workbench.training.batches import draw_batch
from workbench.training.loop import fit
from workbench.training.memory import kept_memory
from workbench.training.pace import Pace, measure_here, random_batch, random_student
from workbench.training.saving import Saver
from workbench.training.sizes import activation_bytes, forward_operations, model_size
from workbench.training.student import Shape, build_backbone

MINUTES = 8.0
_TOLERANCE = {"bf16": 0.05, "fp16": 0.02, "compiled": 0.05, "no": 0.01}  # of loss and norm, relative to float32
_GOALS = {"sit-b": 0.45, "sit-xl": 0.5}  # MFU of the plain step
_RATIOS = {"all": 1.35, "select": 1.15}  # guided steps of SiT-B over the plain one
# Dense bfloat16 operations a second, by the maker.
_PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
_SMALL = ["data.name=digits", "data.limit=64", "vae.name=identity", "backbone.patch=8", "backbone.size=pico"]


@dataclass(frozen=True)
class Scale:
    """Sizes of what is measured: ``steps`` are (backbone size, batch), the others of the first of them."""

    steps: tuple[tuple[str, int], ...]
    shape: Shape
    precision: str
    compiled: bool
    precisions: tuple[str, ...]  # compared with float32
    trainings: tuple[str, ...]  # precisions of short trainings
    gated: tuple[str, int]  # size and batch of LightningDiT
    images: int  # sampled or extracted at a time
    sampler_steps: int


_CLASSES = tuple(str(number) for number in range(1000))
FULL = Scale(
    steps=(("b", 256), ("xl", 32)),
    shape=Shape(4, 32, _CLASSES),
    precision="bf16",
    compiled=True,
    precisions=("no", "bf16", "fp16", "compiled"),
    trainings=("bf16", "fp16"),
    gated=("b", 128),
    images=100,
    sampler_steps=20,
)
TINY = Scale(
    steps=(("pico", 4),),
    shape=Shape(4, 8, _CLASSES[:10]),
    precision="no",
    compiled=False,
    precisions=("no", "bf16"),
    trainings=("bf16",),
    gated=("nano", 2),
    images=4,
    sampler_steps=2,
)


def check_gpu(
    file: Path, device: str = "cuda", minutes: float = MINUTES, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run all items on ``device`` within ``minutes`` and write them to ``file``; returns the record.

    On "cpu" everything is tiny, which checks the program and not the machine. Items that no time is left for have the
    key "left out", and those that fail "error". ``ok`` is whether every condition held.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no GPU here, and check-gpu measures one; --device cpu runs a tiny version")
    scale = FULL if device == "cuda" else TINY
    deadline = time.monotonic() + 60 * minutes
    record: dict[str, Any] = {"device": _device(device), **machine(), "minutes": minutes, "items": {}, "ok": False}
    with tempfile.TemporaryDirectory() as folder, kept_memory():
        for name, (item, seconds) in _items(scale, device, Path(folder)).items():
            left = deadline - time.monotonic()
            began = time.monotonic()
            if left < seconds and device == "cuda":
                found: dict[str, Any] = {"left out": f"{left:.0f} s are left; it takes about {seconds} s"}
            else:
                say(name)
                found = _measured(item)
            record["items"][name] = {**found, "seconds": round(time.monotonic() - began, 1)}
            record["ok"] = all(each.get("ok", "error" not in each) for each in record["items"].values())
            write_json(file, record)
    return record


def _items(scale: Scale, device: str, folder: Path) -> dict[str, tuple[Callable[[], dict[str, Any]], int]]:
    """The items, the most important first, with the seconds that each takes on an H100."""
    size = scale.steps[0][0]
    found: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
        f"objectives {precision}": (partial(_agreement, scale, device, precision), 20) for precision in scale.precisions
    }
    found["resume"] = (partial(_resume, folder), 20)
    found |= {f"train {name}": (partial(_train, folder, name, scale.compiled), 15) for name in scale.trainings}
    found["no samples"] = (partial(_no_samples, scale, device), 5)
    for size, batch in scale.steps:
        for kind in ("plain", "all", "select"):
            found[f"step sit-{size} {batch} {kind}"] = (partial(_step, scale, size, batch, kind, device), 25)
    found["loader"] = (partial(_loader, folder, device, scale), 10)
    found["score and extract"] = (partial(_score, folder, scale), 25)
    found["checkpoint"] = (partial(_checkpoint, scale, scale.steps[-1][0], device, folder), 40)
    size = scale.steps[0][0]
    found |= {f"sample sit-{size} {way}": (partial(_sample, scale, size, way, device), 10) for way in _WAYS}
    found |= {f"features sit-{size} {way}": (partial(_features, scale, size, way, device), 10) for way in _WAYS}
    size, batch = scale.gated
    found[f"step lightningdit-{size} {batch}"] = (
        partial(_step, scale, size, batch, "plain", device, "lightningdit"),
        25,
    )
    if scale.compiled:
        eager = replace(scale, compiled=False)
        for size, batch in scale.steps:
            found[f"step sit-{size} {batch} eager"] = (partial(_step, eager, size, batch, "plain", device), 15)
    return found


def _measured(item: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return item()
    except Exception as error:  # of any kernel or compiler: the other items are still measured
        return {"error": reason(error)[:500]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _device(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"kind": device}
    about = torch.cuda.get_device_properties(0)
    return {
        "kind": device,
        "name": about.name,
        "gigabytes": about.total_memory / 1e9,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "matmul bf16 FLOP/s": _matmul_rate(),
        "peak bf16 FLOP/s": _peak(about.name),
    }


def _peak(name: str) -> float | None:
    return next((rate for device, rate in _PEAKS.items() if device in name), None)


def _matmul_rate() -> float:
    """Operations a second of square products in bfloat16, the best of five."""
    side, best = 8192, float("inf")
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(6):
        best = min(best, _seconds("cuda", lambda: a @ b))
    return 2 * side**3 / best


def _seconds(device: str, work: Callable[[], Any]) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# Arithmetic


def _agreement(scale: Scale, device: str, precision: str) -> dict[str, Any]:
    """Loss, alignment and gradient norm of each objective on the device, relative to float32 on the processor."""
    wrong, tolerance = {}, _TOLERANCE[precision]
    differences = {}
    for name in plugins.names("objective"):
        config = _config(name, "nano", batch=4)
        expected = _expected(name)
        found = _outcome(config, device, precision)
        differences[name] = [abs(f - e) / abs(e) if e else abs(f) for f, e in zip(found, expected, strict=True)]
        if not max(differences[name]) <= tolerance:
            wrong[name] = {"expected": expected, "found": found}
    return {"ok": not wrong, "tolerance": tolerance, "loss, alignment, norm": differences, "wrong": wrong}


@cache
def _expected(objective: str) -> list[float]:
    return _outcome(_config(objective, "nano", batch=4), "cpu", "no")


def _outcome(config: Config, device: str, precision: str) -> list[float]:
    """Denoising loss, alignment loss and gradient norm of a batch."""
    shape = Shape(4, 8, _CLASSES[:10])
    student, targets = random_student(config, shape, device)
    student = student.to(device)
    with torch.no_grad():  # the output layer and modulations of a new model are zero
        generator = torch.Generator().manual_seed(5)
        for weight in student.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator).to(device))
    if precision == "compiled":
        for block in student.backbone.blocks:
            block.compile()
    draw = random_batch(config.training.batch, shape, 0)
    generator = torch.Generator().manual_seed(6)
    tokens = {
        name: torch.randn(target.tokens()[: len(draw.z)].shape, generator=generator) for name, target in targets.items()
    }
    batch = replace(draw, targets=tokens).to(device)
    scale = 1024.0 if precision == "fp16" else 1.0  # as a gradient scaler would
    with tf32(False), reduced(precision, device):
        losses = student(batch, student.objective.weight_at(0) > 0, student.backbone)
        alignment = losses.denoise.new_zeros(()) if losses.alignment is None else losses.alignment.mean()
        ((losses.denoise.mean() + 0.5 * alignment) * scale).backward()
    gradients = [p.grad.float() / scale for p in student.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [losses.denoise.mean().item(), alignment.item(), norm.item()]


def _config(objective: str, size: str, batch: int, name: str = "sit", **training: Any) -> Config:
    """A configuration of a backbone with an objective by name, or "all" and "select" for the guided steps."""
    section: dict[str, Any] = {"name": objective}
    if objective in ("all", "select"):
        section = {"name": "self_transcendence", **({"window": "select"} if objective == "select" else {})}
    options = plugin_options("objective", section["name"])
    section |= {"teacher": "random"} if "teacher" in options else {}
    section |= {"head_width": 256} if "head_width" in options and size in ("pico", "nano") else {}
    training = {"batch": batch, **training}
    patch = 2 if size not in ("pico", "nano") else 1
    return from_dict(
        {"backbone": {"name": name, "size": size, "patch": patch}, "objective": section, "training": training}
    )


def _resume(folder: Path) -> dict[str, Any]:
    """Largest relative difference of the weights of a training that was stopped and resumed."""
    config = load_config("demo/plain", [*_SMALL, "training.steps=12", "training.batch=8", "training.log_every=4"])
    list(fit(config, folder / "whole"))
    for record in fit(config, folder / "cut"):
        if record["step"] == 8:
            break
    list(fit(config, folder / "cut"))
    whole, cut = (find_runs(folder / name)[0].checkpoint(12) for name in ("whole", "cut"))
    first, second = whole.load("ema"), cut.load("ema")
    worst = max(
        float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-6)) for name in first
    )
    return {"ok": worst <= 1e-3, "relative difference": worst, "bit-identical": worst == 0}


def _train(folder: Path, precision: str, compiled: bool) -> dict[str, Any]:
    """Losses of a short training in a precision; with fp16 the gradients are scaled."""
    options = [*_SMALL, "training.steps=30", "training.batch=8", "training.log_every=10"]
    options += [f"training.precision={precision}", f"training.compile={str(compiled).lower()}"]
    losses = [record["loss"] for record in fit(load_config("demo/plain", options), folder / precision)]
    return {"ok": len(losses) == 3 and losses[-1] < losses[0], "losses": losses}


def _no_samples(scale: Scale, device: str) -> dict[str, Any]:
    """Whether attention takes an empty batch, which a selection of samples may be; training does not depend on it."""
    backbone = _backbone(scale, scale.steps[0][0], device)
    x_t = torch.randn(0, backbone.channels, backbone.height, backbone.height, device=device)
    t, y = torch.zeros(0, device=device), torch.zeros(0, dtype=torch.long, device=device)
    try:
        with torch.no_grad(), reduced("bf16", device):
            return {"taken": backbone(x_t, t, y).shape[0] == 0}
    except RuntimeError as error:
        return {"taken": False, "reason": reason(error)[:200]}


def _score(folder: Path, scale: Scale) -> dict[str, Any]:
    """Seconds of generated and detected images of a small run, and of extracted features, with the disk."""
    options = [*_SMALL, "training.steps=2", "training.batch=8", "sampling.steps=4", "sampling.precision=auto"]
    config = load_config("demo/plain", [*options, f"sampling.count={scale.images}"])
    list(fit(config, folder / "scored"))
    run = find_runs(folder / "scored")[0]
    began = time.perf_counter()
    # Its weights are so new that every image is noise: finite numbers are all there is to see.
    scores = score(run, 2, run.config.sampling, detector="randomconv", detector_precision="auto", small_ok=True)
    scored = time.perf_counter() - began
    began = time.perf_counter()
    grid = extract(run, scale.images // 4, [6], [0.5], precision="auto", root=folder / "scored")
    found = {"score seconds": scored, "extract seconds": time.perf_counter() - began}
    finite = bool(grid.read(6, 0.5, "true").isfinite().all())
    return {"ok": finite and len(scores) > 3, **found}


# Speed and memory


def _step(scale: Scale, size: str, batch: int, kind: str, device: str, name: str = "sit") -> dict[str, Any]:
    """Milliseconds of a step, its model FLOP utilization and its peak memory beside the plan."""
    config, pace = _pace(scale, size, batch, kind, name)
    planned = model_size(config, scale.shape).standing + activation_bytes(config, scale.shape, batch)
    found: dict[str, Any] = {"milliseconds": 1e3 * pace.aligned, "memory GB": pace.memory / 1e9, "steps": pace.steps}
    found |= {"planned GB": planned / 1e9, "memory / plan": pace.memory / planned}
    found["images a second"] = batch / pace.aligned
    if kind != "plain":
        ratio, goal = pace.aligned / pace.plain, _RATIOS[kind]
        found |= {"plain milliseconds": 1e3 * pace.plain, "guided / plain": ratio}
        return {**found, "ok": ratio <= goal, "goal": goal} if (device, size) == ("cuda", "b") else found
    peak = _peak(torch.cuda.get_device_name()) if device == "cuda" else None
    if name != "sit" or not scale.compiled:
        return found
    if peak is not None:
        used = 3 * forward_operations(config, scale.shape, batch) / pace.plain / peak
        goal = _GOALS.get(f"sit-{size}", 0.0)
        found |= {"MFU": used, "goal": goal, "ok": used >= goal}
    return found


@cache
def _pace(scale: Scale, size: str, batch: int, kind: str, name: str = "sit") -> tuple[Config, Pace]:
    """A configuration and what its step costs here, measured once."""
    objective = "denoise" if kind == "plain" else kind
    config = _config(objective, size, batch, name, precision=scale.precision, compile=scale.compiled, steps=1000)
    with tf32(True):
        return config, measure_here(config, scale.shape)


# Precision of the network, and whether float32 products may be in TF32.
_WAYS: Mapping[str, tuple[str, bool]] = {"float32": ("no", False), "tf32": ("no", True), "bf16": ("bf16", True)}


def _sample(scale: Scale, size: str, way: str, device: str) -> dict[str, Any]:
    """Images a second of a sampler of 250 steps with guidance, from a few of its steps."""
    backbone, count, (precision, allowed) = _backbone(scale, size, device), scale.images, _WAYS[way]
    noise = torch.randn(count, backbone.channels, backbone.height, backbone.height, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    take = partial(sample, backbone, noise, labels, null_label=backbone.null_label, sampler="euler")
    with tf32(allowed), reduced(precision, device):
        take(steps=1)
        seconds = _seconds(device, lambda: take(steps=scale.sampler_steps))
    return {"images a second, 250 steps": count * scale.sampler_steps / 250 / seconds}


def _features(scale: Scale, size: str, way: str, device: str) -> dict[str, Any]:
    """Images a second of an extraction of all layers, without the disk."""
    backbone, count, (precision, allowed) = _backbone(scale, size, device), scale.images, _WAYS[way]
    x_t = torch.randn(count, backbone.channels, backbone.height, backbone.height, device=device)
    t, y = torch.full((count,), 0.5, device=device), torch.zeros(count, dtype=torch.long, device=device)
    layers = tuple(range(1, backbone.depth + 1))
    with torch.no_grad(), tf32(allowed), reduced(precision, device):
        backbone.features(x_t, t, y, layers)
        seconds = statistics.median(_seconds(device, lambda: backbone.features(x_t, t, y, layers)) for _ in range(5))
    return {"images a second": count / seconds}


def _backbone(scale: Scale, size: str, device: str) -> Any:
    backbone = build_backbone(_config("denoise", size, 1), scale.shape)
    backbone.initialize(torch.Generator().manual_seed(0))
    return backbone.eval().requires_grad_(False).to(device)


def _loader(folder: Path, device: str, scale: Scale) -> dict[str, Any]:
    """Images a second that one thread draws of latents in the page cache, and that a GPU receives and trains on.

    The images drawn are smaller than those of the steps, so their rate is divided by the ratio of their numbers.
    """
    config = load_config("demo/plain", [*_SMALL, "training.batch=256"])
    latents = open_latents(config, "train", folder / ".latents")
    draw = partial(draw_batch, config, latents, {}, rows=range(256))
    draw(0)
    drawn = statistics.median(_seconds("cpu", partial(draw, k)) for k in range(1, 6))
    batch = draw(0)
    batch = batch.pinned() if device == "cuda" else batch
    sent = statistics.median(_seconds(device, lambda: batch.to(device)) for _ in range(5))
    size, images = scale.steps[0]
    smaller = scale.shape.channels * scale.shape.height**2 / (latents.channels * latents.height**2)
    rates = {"drawn images a second": 256 / drawn / smaller, "sent images a second": 256 / sent / smaller}
    trained = images / _pace(scale, size, images, "plain")[1].plain
    found = {**rates, "trained images a second": trained}
    return {**found, "ok": min(rates.values()) >= trained} if device == "cuda" else found


def _checkpoint(scale: Scale, size: str, device: str, folder: Path) -> dict[str, Any]:
    """How long training stops for a checkpoint, how long it is written, and a plain write of as many bytes."""
    backbone = _backbone(scale, size, device)
    weights = dict(backbone.state_dict())
    named = [
        (part, f"{name}/{k}", w) for part in PARTS for name, w in weights.items() for k in range(1 + (part == PARTS[2]))
    ]
    bytes = sum(w.numel() * w.element_size() for _, _, w in named)
    plain = _seconds("cpu", lambda: _plain_write(folder / "plain", bytes))
    saver = Saver(folder / "checkpoints", keep=1, milestone_every=None)
    stops, settled, whole = [], [], []
    for step in (1, 2):  # the first one allocates the memory for the copy
        began = time.perf_counter()
        stops.append(_seconds("cpu", partial(saver.save, step, bytes, named, {})))
        settled.append(_seconds(device, saver.settle))
        saver.finish()
        whole.append(time.perf_counter() - began)
    saver.close()
    found = {"gigabytes": bytes / 1e9, "stop seconds": stops, "copy seconds": settled, "save seconds": whole}
    found["plain write seconds"] = plain
    return {**found, "ok": stops[-1] + settled[-1] <= 0.5} if device == "cuda" else found


def _plain_write(file: Path, size: int) -> None:
    block = torch.rand(2**22).view(torch.uint8).numpy().data
    with file.open("wb", buffering=0) as handle:
        for start in range(0, size, len(block)):
            handle.write(block[: size - start])
        os.fsync(handle.fileno())
    file.unlink()


def summary(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of text: item, whether it is ok, what was found."""
    rows = []
    for name, found in record["items"].items():
        state = (
            "left out"
            if "left out" in found
            else "error"
            if "error" in found
            else {True: "ok", False: "no"}.get(found.get("ok"), "")
        )
        shown = {k: v for k, v in found.items() if k not in ("ok", "seconds", "wrong") and not isinstance(v, dict)}
        rows.append((name, state, ", ".join(f"{k} {_text(v)}" for k, v in shown.items())))
    return rows


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
