"""Options of the commands that train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from workbench.commands.options import ConfigReference, Device, Names, Overrides, Processes, Repeats
from workbench.config.ranges import Range, Seed, Steps


@dataclass(frozen=True)
class Demo:
    """Train a teacher, a plain and a guided model on embedded images, and write the report that compares them.

    Stopped with Ctrl-C it saves; run again it goes on where it was.
    """

    overrides: Overrides = ()
    """Changes to all three runs, such as training.steps=200."""
    seed: Seed = 0
    """Seed of initial weights, data order and noise."""
    report: Path = Path("reports/out/demo.html")
    """Where the report goes."""


@dataclass(frozen=True)
class Train:
    """Train a preset ("demo/guided") or a YAML file; the same fingerprint continues or reuses its run."""

    config: ConfigReference
    overrides: Overrides = ()
    """Dotted options, such as objective.guidance_scale=5."""
    processes: Processes = 1
    """Processes on this machine, CPU or GPU; on each node with --print-launch and --print-slurm."""
    detach: bool = False
    """Train in a process that outlives this terminal; its output goes to log.txt of the run."""
    queue: bool = False
    """Detached, when a device is free and those who asked before had their turn."""
    after: Annotated[str | None, Names.RUN] = None
    """Detached, in the queue, once this run has finished: a student after its teacher."""
    devices: tuple[Device, ...] = ()
    """GPUs that a detached training may take; all by default."""
    nodes: Processes = 1
    """Machines, for --print-launch and --print-slurm."""
    print_launch: bool = False
    """Print the torchrun and accelerate commands of this training and start nothing."""
    print_slurm: bool = False
    """Print a batch script for sbatch and start nothing."""
    dry_run: bool = False
    """Print what it would take, its teacher included: parameters, memory, time, disk, what is reused; train nothing.

    The time is measured, some seconds of real steps, once on a machine."""
    hours: Annotated[int, Range(at_least=1, at_most=8760)] | None = None
    """Time that --print-slurm asks for; 48 by default."""


@dataclass(frozen=True)
class Codec:
    """Train the codec on the training images and write codec.safetensors and codec.json.

    A training that was stopped goes on when it is asked for again.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    steps: Steps = 4500
    seed: Seed = 0
    data: str = "fashion-mnist"


@dataclass(frozen=True)
class Classifier:
    """Train the 64-dimension classifier that FD-clf64 uses and write clf64.safetensors and clf64.json."""

    folder: Annotated[Path, tyro.conf.Positional]
    epochs: Repeats = 12
    seed: Seed = 0
