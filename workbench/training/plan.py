"""What a training will cost before it starts: the run and the teachers that it needs, each with size, time and disk.

A plan only reads: presets, run folders, what `training.pace` has measured. Its ``launch`` launches the whole chain;
`table` and `notes` are the plan as text, for a terminal and for the wizard.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.config import Config, backbone_sizes, fingerprint, load_config, presets, teacher_overrides
from workbench.runs.state import LIVE
from workbench.runs.store import Run, find_runs, open_run, runs_root
from workbench.training.launch import Launched, candidates, launch
from workbench.training.pace import Pace, known_pace, measure_pace
from workbench.training.sizes import Size, capacity, disk_bytes, encoded, model_size, size_text
from workbench.training.slots import who_trains
from workbench.training.student import Shape
from workbench.words import duration


@dataclass(frozen=True)
class Stage:
    """One training of a plan.

    ``run`` is the run that has this fingerprint already, ``state`` its state ("new" without one) and ``done`` the step
    that it would go on from. ``disk`` bytes are written, ``pace`` is None before it was measured on this machine.
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

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def left(self) -> int:
        """Steps to go."""
        return 0 if self.finished else self.steps - self.done

    @property
    def memory(self) -> int:
        """Bytes at the fullest, of a real step where one was measured, else of the formula: without activations."""
        return self.pace.memory if self.pace else self.size.standing

    def seconds(self, since: int = 0) -> float | None:
        """Of training from step ``since`` to the end, by the measured steps; None if none was measured."""
        aligned = max(0, self.size.aligned_steps - since)
        plain = self.steps - since - aligned
        return aligned * self.pace.aligned + plain * self.pace.plain if self.pace else None

    def operations(self) -> int | None:
        """Floating-point operations of the whole training; None where they were not counted."""
        if self.pace is None or self.pace.aligned_operations is None or self.pace.plain_operations is None:
            return None
        plain = self.steps - self.size.aligned_steps
        return self.size.aligned_steps * self.pace.aligned_operations + plain * self.pace.plain_operations


@dataclass(frozen=True)
class Plan:
    """The trainings that one asks for, teachers first, and where they would run.

    ``devices`` would be taken now, where ``beside`` names who trains there already; ``encode`` images and ``latents``
    bytes are to be encoded first; ``free`` bytes are free on the disk of the runs, ``capacity`` is the device's memory.
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

    @property
    def measured(self) -> bool:
        """Whether the time of every stage that has to be trained is known."""
        return all(stage.pace is not None or not stage.left for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of training that is to come, the teachers' included; None before it was measured."""
        return sum((stage.seconds(stage.done) for stage in self.stages if stage.left), 0.0) if self.measured else None

    @property
    def disk(self) -> int:
        """Bytes that will be written."""
        return self.latents + sum(stage.disk for stage in self.stages if stage.left)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What stands in the way, a sentence each."""
        found = []
        if self.disk > self.free:
            found.append(f"{size_text(self.disk)} will be written; the disk of {self.root} has {size_text(self.free)}")
        most = max((stage.memory for stage in self.stages if stage.left), default=0)
        if most > self.capacity:
            found.append(f"a step holds {size_text(most)} or more; {self.devices[0]} has {size_text(self.capacity)}")
        if any(s.config.training.precision == "fp16" for s in self.stages) and not torch.cuda.is_available():
            found.append("training.precision fp16 needs a GPU; on a CPU take bf16 or no")
        if self.beside:
            found.append(f"{', '.join(self.beside)} trains on the same device: queued, this waits for it")
        return tuple(found)

    def measure(self, again: bool = False) -> "Plan":
        """The plan with every stage measured that has steps to go: some seconds a stage, once on a machine or again."""
        most = max((stage.size.standing for stage in self.stages if stage.left), default=0)
        if most > self.capacity:
            raise ValueError(f"a step holds {size_text(most)} and more; there are {size_text(self.capacity)}")
        shape = encoded(self.stages[-1].config).shape
        done = [
            replace(stage, pace=measure_pace(stage.config, shape, self.processes, again)) if stage.left else stage
            for stage in self.stages
        ]
        return replace(self, stages=tuple(done))

    def launch(self, queue: bool = True) -> tuple[Launched, ...]:
        """Send all stages on their way, each after the one that it learns from; finished ones are returned as such.

        In the queue, as by default, the chain survives restarts of notebook and machine; without it only a plan with
        one stage left can start. ValueError as in `launch`.
        """
        sent: list[Launched] = []
        for stage in self.stages:
            config, after = stage.config, None
            if sent and "teacher" in config.objective.options:
                options = {**config.objective.options, "teacher": str(sent[-1].run.folder)}
                config = replace(config, objective=replace(config.objective, options=options))
                after = None if sent[-1].state == "finished" else sent[-1].run
            if stage.finished and stage.run is not None:
                sent.append(Launched(stage.run, None, "finished", attached=True))
            else:
                sent.append(launch(config, processes=self.processes, root=self.root, queue=queue, after=after))
        return tuple(sent)


def plan(config: Config, root: Path | None = None, *, teacher: Config | None = None, processes: int = 1) -> Plan:
    """The plan of ``config`` under ``root``, with the teachers that it learns from, if it does.

    A teacher is what ``objective.teacher`` names, a preset or a run, or ``teacher``, which then need not have a run.
    ValueError for whatever the configuration gets wrong: layers that the model does not have, a patch that does not
    fit, another backbone than the teacher's, images that are not there.
    """
    root = (root or runs_root()).resolve()
    chain = _chain(config, root, teacher)
    latents = encoded(config)
    marks: list[str] = []
    existing = {run.fingerprint: run for run in reversed(find_runs(root))}
    stages = []
    for number, (one, run) in enumerate(chain):
        marks.append(run.fingerprint if run else _fingerprint(one, chain[number - 1][0] if number else None, marks))
        role = "run" if len(chain) == 1 else "student" if number == len(chain) - 1 else "teacher"
        stages.append(_stage(one, run or existing.get(marks[-1]), role, latents.shape, processes))
    _check(stages, processes)
    index = root / ".latents" / latents.content[:16] / "index.json"
    ready = index.is_file() or not any(stage.left for stage in stages)
    devices, beside = who_trains(candidates(None, processes), 1 if not torch.cuda.is_available() else processes)
    own = {stage.run.name for stage in stages if stage.run}
    there = root if root.exists() else next(parent for parent in root.parents if parent.exists())
    return Plan(
        stages=tuple(stages),
        root=root,
        processes=processes,
        devices=devices,
        beside=tuple(name for name in beside if name not in own),
        encode=0 if ready else latents.images,
        latents=0 if ready else latents.images * latents.row_bytes,
        free=shutil.disk_usage(there).free,
        capacity=capacity(),
    )


def _chain(config: Config, root: Path, teacher: Config | None) -> list[tuple[Config, Run | None]]:
    """The teachers that have to be trained before, first to last, and the configuration itself; with a named run."""
    reference = config.objective.options.get("teacher")
    if reference is None:
        return [(config, None)]
    if teacher is None and reference not in presets():
        run = open_run(reference, root)
        return [(run.config, run), (config, None)]
    taught_by = teacher or load_config(reference, teacher_overrides(config), named=False)
    return [*_chain(taught_by, root, None), (config, None)]


def _fingerprint(config: Config, teacher: Config | None, marks: Sequence[str]) -> str:
    """The fingerprint that the run will have, although its teacher may have no run yet."""
    if teacher is None:
        return fingerprint(config)
    step = config.objective.options.get("teacher_step")
    return fingerprint(config, f"{marks[-1]}@{teacher.training.steps if step is None else step}")


def _stage(config: Config, run: Run | None, role: str, shape: Shape, processes: int) -> Stage:
    status = run.status if run else {"state": "new", "step": 0}
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
    )


def _check(stages: Sequence[Stage], processes: int) -> None:
    """ValueError for a batch that cannot be shared, and for a teacher whose features are not of the student's kind."""
    for stage in stages:
        stage.config.training.check_processes(processes)
    for teacher, student in zip(stages, stages[1:], strict=False):
        theirs, ours = teacher.config, student.config
        for what, of in (
            ("backbone", _features),
            ("vae", lambda c: c.vae.name),
            ("path", lambda c: c.diffusion.path),
        ):
            if of(theirs) != of(ours):
                raise ValueError(f"the teacher has {what} {of(theirs)}, the student {of(ours)}; they must be the same")
        if theirs.diffusion.label_dropout == 0:
            raise ValueError("the teacher is trained with diffusion.label_dropout 0, so its null class is untrained")
        layer, depth = ours.objective.options.get("teacher_layer"), _depth(theirs)
        if layer is not None and not 1 <= layer <= depth:
            raise ValueError(f"objective.teacher_layer {layer} is outside 1..{depth}")


def _features(config: Config) -> dict[str, Any]:
    options = {"name": config.backbone.name, **config.backbone.options}
    return {key: value for key, value in options.items() if key not in ("learn_sigma", "checkpoint_blocks")}


def _depth(config: Config) -> int:
    return backbone_sizes(config.backbone.name)[config.backbone.options["size"]].depth


def table(found: Plan) -> list[tuple[str, ...]]:
    """A plan as rows of text: a heading, then a line for each quantity with a column for each stage and the total."""
    stages = found.stages
    left = [stage for stage in stages if stage.left]
    total = found.seconds
    operations = [stage.operations() for stage in left]
    rows = [
        ("", *(f"{stage.role} ({stage.config.objective.name})" for stage in stages), "in all"),
        ("run", *(_reuse(stage) for stage in stages), ""),
        ("parameters", *(_parameters_text(stage) for stage in stages), ""),
        ("memory", *(_memory_text(stage) for stage in stages), ""),
        ("a step", *(_step_text(stage) for stage in stages), ""),
        ("steps", *(_steps_text(stage) for stage in stages), f"{sum(stage.left for stage in left):,}"),
        ("time", *(duration_text(stage.seconds(stage.done)) if stage.left else "–" for stage in stages),
         duration_text(total)),
        ("arithmetic", *(operations_text(stage.operations()) for stage in stages),
         operations_text(None if None in operations else sum(operations))),
        ("disk", *(size_text(stage.disk) if stage.left else "–" for stage in stages), size_text(found.disk)),
    ]  # fmt: skip
    return rows if len(stages) > 1 else [row[:-1] for row in rows]


def notes(found: Plan) -> list[str]:
    """What the table of a plan does not say: images to encode, the device, who trains there, what stands in the way."""
    said = [f"device: {', '.join(found.devices)}" + (f", {found.processes} processes" if found.processes > 1 else "")]
    if found.encode:
        said.append(f"{found.encode:,} images are encoded first ({size_text(found.latents)})")
    loads = [stage.pace.load for stage in found.stages if stage.pace and stage.left]
    if loads and max(loads) > 0.7:
        said.append(f"measured while the machine's load was {max(loads):.1f}: alone it may be faster")
    return [*said, *found.warnings]


def duration_text(seconds: float | int | None) -> str:
    """Seconds in the unit that suits them."""
    return "not measured" if seconds is None else duration(seconds)


def operations_text(operations: float | int | None) -> str:
    """Floating-point operations with the prefix that leaves one to three digits before the point."""
    if operations is None:
        return "not measured"
    for unit, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if operations >= factor:
            return f"{operations / factor:.3g} {unit}FLOP"
    return f"{operations / 1e9:.3g} GFLOP"


def _reuse(stage: Stage) -> str:
    if stage.run is None:
        return "new"
    at = f", goes on at step {stage.done:,}" if stage.done and not stage.finished and stage.state not in LIVE else ""
    return f"{stage.run.name}: {stage.state}{', reused' if stage.finished else at}"


def _parameters_text(stage: Stage) -> str:
    heads = f" + {stage.size.heads / 1e6:.3g} M of the method" if stage.size.heads else ""
    return f"{stage.size.backbone / 1e6:.3g} M{heads}"


def _memory_text(stage: Stage) -> str:
    return f"{size_text(stage.memory)} (a real step)" if stage.pace else f"{size_text(stage.memory)} + activations"


def _step_text(stage: Stage) -> str:
    if stage.pace is None:
        return "not measured"
    aligned, plain = (_short(seconds) for seconds in (stage.pace.aligned, stage.pace.plain))
    stopped = f", {plain} after the stop" if 0 < stage.size.aligned_steps < stage.steps else ""
    return f"{aligned if stage.size.aligned_steps else plain}{stopped}"


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _steps_text(stage: Stage) -> str:
    return f"{stage.steps:,}" if not stage.done or stage.finished else f"{stage.left:,} of {stage.steps:,}"
