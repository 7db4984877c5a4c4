"""Estimate a training before it starts: the run and the teachers that it needs, with size, time and disk space.

A plan only reads presets, run folders and measurements of `training.pace`. `Plan.launch` launches all its trainings;
`table` and `notes` format it for a terminal and for the wizard.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.config import Config, backbone_sizes, fingerprint, load_config, presets, teacher_overrides
from workbench.runs.state import LIVE
from workbench.runs.store import Run, find_runs, open_run, runs_root
from workbench.training.launch import Launched, candidates, launch
from workbench.training.pace import Pace, known_pace, measure_pace
from workbench.training.sizes import (
    Size,
    activation_bytes,
    capacity,
    disk_bytes,
    encoded,
    encoded_or_assumed,
    model_size,
    size_text,
)
from workbench.training.slots import who_trains
from workbench.training.student import Shape
from workbench.words import duration

_USED = 0.92  # share of a GPU's memory that training may take; the rest is fragments, kernels and communication
_MOST_ACCUMULATED = 64


@dataclass(frozen=True)
class Stage:
    """One training of a plan.

    ``run`` is the existing run with this fingerprint, ``state`` its state ("new" if there is none) and ``done`` the
    step that it would resume from. ``disk`` is the number of bytes to write. ``pace`` is None if it has not been
    measured on this machine. ``activations`` are the bytes kept for a backward pass on a GPU; 0 if not counted.
    """

    role: str
    config: Config
    run: Run | None
    state: str
    done: int
    steps: int
    size: Size
    disk: int
    pace: Pace | None
    shape: Shape
    activations: int = 0

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def left(self) -> int:
        """Number of remaining steps."""
        return 0 if self.finished else self.steps - self.done

    @property
    def memory(self) -> int:
        """Peak memory in bytes: measured if possible, else estimated, without activations if they are not counted."""
        return self.pace.memory if self.pace else self.size.standing + self.activations

    def seconds(self, since: int = 0) -> float | None:
        """Estimated training time from step ``since`` to the end; None if the pace has not been measured."""
        aligned = max(0, self.size.aligned_steps - since)
        plain = self.steps - since - aligned
        return aligned * self.pace.aligned + plain * self.pace.plain if self.pace else None

    def operations(self) -> int | None:
        """Floating-point operations of the whole training; None if they have not been counted."""
        if self.pace is None or self.pace.aligned_operations is None or self.pace.plain_operations is None:
            return None
        plain = self.steps - self.size.aligned_steps
        return self.size.aligned_steps * self.pace.aligned_operations + plain * self.pace.plain_operations


@dataclass(frozen=True)
class Plan:
    """The trainings of a configuration and its teachers, teachers first, and the machine that they would run on.

    ``devices`` would be used if they started now; ``beside`` names the runs that already train there. ``encode`` is the
    number of images to encode first, as ``latents`` bytes. ``free`` is the free disk space in the folder of the runs
    and ``capacity`` the memory of the device, both in bytes. ``elsewhere`` is whether it is planned for GPUs that are
    not here. ``assumed`` says what latents are planned for if the
    images are not at hand.
    """

    stages: tuple[Stage, ...]
    root: Path
    processes: int
    devices: tuple[str, ...]
    beside: tuple[str, ...]
    encode: int
    latents: int
    free: int
    capacity: int
    elsewhere: bool = False
    assumed: str = ""

    @property
    def measured(self) -> bool:
        """Whether the time of every unfinished stage is known."""
        return all(stage.pace is not None or not stage.left for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Remaining training time, teachers included; None if it has not been measured."""
        return _total(stage.seconds(stage.done) for stage in self.stages if stage.left)

    @property
    def disk(self) -> int:
        """Number of bytes that will be written."""
        return self.latents + sum(stage.disk for stage in self.stages if stage.left)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why training may fail or has to wait, one sentence each."""
        sentences = []
        if self.disk > self.free and not self.elsewhere:
            free = size_text(self.free)
            sentences.append(f"{size_text(self.disk)} will be written; the disk of {self.root} has {free}")
        most = max((stage.memory for stage in self.stages if stage.left), default=0)
        if most > self.capacity:
            sentences.append(
                f"a step takes {size_text(most)} or more; {self.devices[0]} has {size_text(self.capacity)}"
                + self._fitting()
            )
        half = any(s.config.training.precision == "fp16" for s in self.stages)
        if half and not (self.elsewhere or torch.cuda.is_available()):
            sentences.append("training.precision fp16 needs a GPU; on a CPU take bf16 or no")
        if self.beside:
            sentences.append(f"{', '.join(self.beside)} trains on the same device: queued, this waits for it")
        return tuple(sentences)

    def _fitting(self) -> str:
        """An option with which the largest stage fits, if activations were counted."""
        stage = max(self.stages, key=lambda stage: stage.memory)
        if not stage.activations:
            return ""
        found = ((text, size) for text, size in smaller(stage, self.processes) if size < _USED * self.capacity)
        for text, size in found:
            return f"; it fits with {text} ({size_text(size)})"
        return "; neither accumulation nor checkpoint_blocks is enough: take training.sharding=fsdp or more GPUs"

    def measure(self, again: bool = False) -> "Plan":
        """Measure the pace of every unfinished stage, which takes several seconds per stage; returns the new plan.

        Results are stored per machine; ``again`` ignores the stored ones. Raises ValueError if the model does not fit
        into memory.
        """
        most = max((stage.size.standing for stage in self.stages if stage.left), default=0)
        if most > self.capacity:
            raise ValueError(
                f"a step takes {size_text(most)} or more; {self.devices[0]} has {size_text(self.capacity)}"
            )
        shape = encoded(self.stages[-1].config).shape
        stages = [
            replace(stage, pace=measure_pace(stage.config, shape, self.processes, again)) if stage.left else stage
            for stage in self.stages
        ]
        return replace(self, stages=tuple(stages))

    def launch(self, queue: bool = True) -> tuple[Launched, ...]:
        """Launch all stages; each starts after its teacher has finished. Finished stages are returned as they are.

        Queued stages survive a restart of the notebook or the machine. Without ``queue`` only a plan with one
        unfinished stage can start. Raises ValueError as `launch` does.
        """
        launched: list[Launched] = []
        for stage in self.stages:
            config, after = stage.config, None
            if launched and "teacher" in config.objective.options:
                teacher = launched[-1]
                options = {**config.objective.options, "teacher": str(teacher.run.folder)}
                config = replace(config, objective=replace(config.objective, options=options))
                after = None if teacher.state == "finished" else teacher.run
            if stage.finished and stage.run is not None:
                launched.append(Launched(stage.run, None, "finished", attached=True))
            else:
                launched.append(launch(config, processes=self.processes, root=self.root, queue=queue, after=after))
        return tuple(launched)


def plan(
    config: Config,
    root: Path | None = None,
    *,
    teacher: Config | None = None,
    processes: int = 1,
    gpu_gigabytes: float | None = None,
) -> Plan:
    """Plan the training of ``config``, and of its teachers if it has any, under ``root``.

    The teacher is the preset or run ``objective.teacher``, or ``teacher``, which does not need to have a run. With
    ``gpu_gigabytes`` it is planned for GPUs with that memory, which do not need to be here: the memory of a step is
    counted with fake tensors, and images that are not at hand are taken to be like ImageNet. Raises ValueError for an
    invalid configuration: a layer outside the model, a patch that does not divide the latents, a teacher with another
    backbone, missing images.
    """
    root = (root or runs_root()).resolve()
    chain = _chain(config, root, teacher)
    latents, assumed = encoded_or_assumed(config) if gpu_gigabytes else (encoded(config), "")
    known: list[str] = []  # fingerprints
    existing = {run.fingerprint: run for run in reversed(find_runs(root))}
    stages = []
    for number, (trained, run) in enumerate(chain):
        known.append(run.fingerprint if run else _fingerprint(trained, chain[number - 1][0] if number else None, known))
        role = "run" if len(chain) == 1 else "student" if number == len(chain) - 1 else "teacher"
        stage = _stage(trained, run or existing.get(known[-1]), role, latents.shape, processes)
        if gpu_gigabytes:
            rows = trained.training.batch // (processes * trained.training.accumulation)
            stage = replace(stage, pace=None, activations=activation_bytes(trained, latents.shape, rows))
        stages.append(stage)
    _check(stages, processes)
    index = root / ".latents" / latents.content[:16] / "index.json"
    ready = index.is_file() or not any(stage.left for stage in stages)
    devices: tuple[str, ...]
    beside: tuple[str, ...] = ()
    if gpu_gigabytes:
        devices = (f"a GPU of {gpu_gigabytes:g} GB",)
    else:
        devices, beside = who_trains(candidates(None, processes), 1 if not torch.cuda.is_available() else processes)
    own = {stage.run.name for stage in stages if stage.run}
    folder = root if root.exists() else next(parent for parent in root.parents if parent.exists())
    return Plan(
        stages=tuple(stages),
        root=root,
        processes=processes,
        devices=devices,
        beside=tuple(name for name in beside if name not in own),
        encode=0 if ready else latents.images,
        latents=0 if ready else latents.images * latents.row_bytes,
        free=shutil.disk_usage(folder).free,
        capacity=int(gpu_gigabytes * 1e9) if gpu_gigabytes else capacity(),
        elsewhere=bool(gpu_gigabytes),
        assumed=assumed,
    )


def smaller(stage: Stage, processes: int) -> Iterator[tuple[str, int]]:
    """Options that lower the memory of a stage without changing what it trains, with the bytes of a step."""
    config, training = stage.config, stage.config.training
    shape, counted = stage.shape, 2 * training.accumulation
    while training.batch % (processes * counted) == 0 and counted <= _MOST_ACCUMULATED * training.accumulation:
        rows = training.batch // (processes * counted)
        kept = activation_bytes(replace(config, training=replace(training, accumulation=counted)), shape, rows)
        yield f"training.accumulation={counted}", stage.size.standing + kept
        counted *= 2
    if config.backbone.options.get("checkpoint_blocks") is False:
        options = {**config.backbone.options, "checkpoint_blocks": True}
        changed = replace(config, backbone=replace(config.backbone, options=options))
        rows = training.batch // (processes * training.accumulation)
        yield "backbone.checkpoint_blocks=true", stage.size.standing + activation_bytes(changed, shape, rows)


def _chain(config: Config, root: Path, teacher: Config | None) -> list[tuple[Config, Run | None]]:
    """The configurations of all teachers, first to last, and the configuration itself, each with the run it names."""
    reference = config.objective.options.get("teacher")
    if reference is None:
        return [(config, None)]
    if teacher is None and reference not in presets():
        run = open_run(reference, root)
        return [(run.config, run), (config, None)]
    teacher = teacher or load_config(reference, teacher_overrides(config), named=False)
    return [*_chain(teacher, root, None), (config, None)]


def _fingerprint(config: Config, teacher: Config | None, known: Sequence[str]) -> str:
    """Fingerprint of a run whose teacher may have no run yet; the last of the ``known`` ones is the teacher's."""
    if teacher is None:
        return fingerprint(config)
    step = config.objective.options.get("teacher_step")
    return fingerprint(config, f"{known[-1]}@{teacher.training.steps if step is None else step}")


def _stage(config: Config, run: Run | None, role: str, shape: Shape, processes: int) -> Stage:
    status: dict[str, Any] = run.status if run else {"state": "new", "step": 0}
    steps, done = config.training.steps, status["step"]
    if run and status["state"] not in (*LIVE, "finished"):
        done = max((c.step for c in run.checkpoints if c.resumable), default=0)
    size = model_size(config, shape)
    return Stage(
        role=role,
        config=config,
        run=run,
        state=status["state"],
        done=min(done, steps),
        steps=steps,
        size=size,
        disk=disk_bytes(config, size),
        pace=known_pace(config, shape, processes),
        shape=shape,
    )


def _check(stages: Sequence[Stage], processes: int) -> None:
    """Raise ValueError if a batch cannot be divided among the processes, or a teacher does not fit its student."""
    for stage in stages:
        stage.config.training.check_processes(processes)
    for teacher, student in zip(stages, stages[1:], strict=False):
        above, below = teacher.config, student.config
        for name, first, second in (
            ("backbone", _features(above), _features(below)),
            ("vae", above.vae.name, below.vae.name),
            ("path", above.diffusion.path, below.diffusion.path),
        ):
            if first != second:
                raise ValueError(f"the teacher has {name} {first}, the student {second}; they must be the same")
        if above.diffusion.label_dropout == 0:
            raise ValueError("the teacher is trained with diffusion.label_dropout 0, so its null class is untrained")
        layer, depth = below.objective.options.get("teacher_layer"), _depth(above)
        if layer is not None and not 1 <= layer <= depth:
            raise ValueError(f"objective.teacher_layer {layer} is outside 1..{depth}")


def _features(config: Config) -> dict[str, Any]:
    """The backbone options that determine its features."""
    options = {"name": config.backbone.name, **config.backbone.options}
    return {key: value for key, value in options.items() if key not in ("learn_sigma", "checkpoint_blocks")}


def _depth(config: Config) -> int:
    return backbone_sizes(config.backbone.name)[config.backbone.options["size"]].depth


def table(plan: Plan) -> list[tuple[str, ...]]:
    """A plan as rows of text: a header, then a row per quantity with a column per stage and the total."""
    stages = plan.stages
    left = [stage for stage in stages if stage.left]
    rows = [
        ("", *(f"{stage.role} ({stage.config.objective.name})" for stage in stages), "total"),
        ("run", *(_reuse(stage) for stage in stages), ""),
        ("parameters", *(_parameters_text(stage) for stage in stages), ""),
        ("memory", *(_memory_text(stage) for stage in stages), ""),
        ("a step", *(_step_text(stage) for stage in stages), ""),
        ("steps", *(_steps_text(stage) for stage in stages), f"{sum(stage.left for stage in left):,}"),
        ("time", *(duration_text(stage.seconds(stage.done)) if stage.left else "–" for stage in stages),
         duration_text(plan.seconds)),
        ("arithmetic", *(operations_text(stage.operations()) for stage in stages),
         operations_text(_total(stage.operations() for stage in left))),
        ("disk", *(size_text(stage.disk) if stage.left else "–" for stage in stages), size_text(plan.disk)),
    ]  # fmt: skip
    return rows if len(stages) > 1 else [row[:-1] for row in rows]


def notes(plan: Plan) -> list[str]:
    """Sentences to print below the table of a plan: the device, images to encode, the load, warnings."""
    sentences = [f"device: {', '.join(plan.devices)}" + (f", {plan.processes} processes" if plan.processes > 1 else "")]
    if plan.assumed:
        sentences.append(f"the images are not here; planned for {plan.assumed}")
    if plan.encode:
        sentences.append(f"{plan.encode:,} images are encoded first ({size_text(plan.latents)})")
    loads = [stage.pace.load for stage in plan.stages if stage.pace and stage.left]
    if loads and max(loads) > 0.7:
        sentences.append(f"measured at a load average of {max(loads):.1f}; training may be faster on an idle machine")
    return [*sentences, *plan.warnings]


def duration_text(seconds: float | int | None) -> str:
    """Format a duration in seconds with a suitable unit."""
    return "not measured" if seconds is None else duration(seconds)


def operations_text(operations: float | int | None) -> str:
    """Format a number of floating-point operations with an SI prefix."""
    if operations is None:
        return "not measured"
    for unit, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if operations >= factor:
            return f"{operations / factor:.3g} {unit}FLOP"
    return f"{operations / 1e9:.3g} GFLOP"


def _total(values: Iterable[float | None]) -> float | None:
    """Sum of the values; None if one is unknown."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known, 0.0) if len(known) == len(listed) else None


def _reuse(stage: Stage) -> str:
    if stage.run is None:
        return "new"
    resumes = stage.done and not stage.finished and stage.state not in LIVE
    more = ", reused" if stage.finished else f", resumes at step {stage.done:,}" if resumes else ""
    return f"{stage.run.name}: {stage.state}{more}"


def _parameters_text(stage: Stage) -> str:
    heads = f" + {stage.size.heads / 1e6:.3g} M in heads" if stage.size.heads else ""
    return f"{stage.size.backbone / 1e6:.3g} M{heads}"


def _memory_text(stage: Stage) -> str:
    counted = " (measured)" if stage.pace else "" if stage.activations else " + activations"
    return size_text(stage.memory) + counted


def _step_text(stage: Stage) -> str:
    if stage.pace is None:
        return "not measured"
    aligned, plain = (_short(seconds) for seconds in (stage.pace.aligned, stage.pace.plain))
    stopped = f", {plain} after stop_step" if 0 < stage.size.aligned_steps < stage.steps else ""
    return f"{aligned if stage.size.aligned_steps else plain}{stopped}"


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _steps_text(stage: Stage) -> str:
    return f"{stage.steps:,}" if not stage.done or stage.finished else f"{stage.left:,} of {stage.steps:,}"
