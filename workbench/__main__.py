"""The command line. Each command parses its options and calls one function; errors are one sentence, exit code 2."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Overrides = Annotated[tuple[str, ...], tyro.conf.Positional]
Reference = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class Demo:
    """Train a teacher, a plain and a guided model on embedded images, and write the report that compares them.

    Stopped with Ctrl-C it saves; run again it goes on where it was.
    """

    overrides: Overrides = ()
    """Changes to all three runs, such as training.steps=200."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    report: Path = Path("reports/out/demo.html")
    """Where the report goes."""


@dataclass(frozen=True)
class Train:
    """Train a preset ("demo/guided") or a YAML file; the same fingerprint continues or reuses its run."""

    config: Reference
    overrides: Overrides = ()
    """Dotted options, such as objective.guidance_scale=5."""
    processes: int = 1
    """Processes on this machine, CPU or GPU; on each node with --print-launch."""
    nodes: int = 1
    """Machines, for --print-launch."""
    print_launch: bool = False
    """Print the torchrun and accelerate commands of this training and start nothing."""


@dataclass(frozen=True)
class Runs:
    """List the runs: state, step, method, last loss, newest scores."""


@dataclass(frozen=True)
class Evaluate:
    """Score a run at a step (the newest by default) and print the scores."""

    run: Reference
    overrides: Overrides = ()
    """Other sampling than the run's own, such as guidance_scale=4 count=2000 sampler=heun."""
    step: int | None = None


@dataclass(frozen=True)
class Compare:
    """Say which differences between runs the data support: paired by training seed, against the first run's
    configuration.

    Runs that differ only in seed are one group; a group's name is its configuration's.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    metric: tuple[str, ...] = ()
    """Such as fd-clf64; by default every score that belongs to no layer."""
    step: int | None = None
    """By default the last step at which most seeds can be paired."""
    force: bool = False
    """Also compare, and mark, numbers that were not measured alike."""


@dataclass(frozen=True)
class Methods:
    """Train presets with several seeds, score them alike and write a table, a picture and the data."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional]
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path = Path("reports/out/methods")
    """Where README.md, methods.png and methods.json go."""
    set: tuple[str, ...] = ()
    """Dotted options for every run, such as training.steps=200."""


@dataclass(frozen=True)
class Codec:
    """Train the codec on the training images and write codec.safetensors and codec.json.

    A training that was stopped goes on when it is asked for again.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    steps: int = 4500
    seed: int = 0
    data: str = "fashion-mnist"


@dataclass(frozen=True)
class Classifier:
    """Train the 64-dimension classifier that FD-clf64 uses and write clf64.safetensors and clf64.json."""

    folder: Annotated[Path, tyro.conf.Positional]
    epochs: int = 12
    seed: int = 0


@dataclass(frozen=True)
class BenchStep:
    """Time the plain step and guided steps (all methods with --every), in one process and in turn."""

    backbone: str = "sit"
    size: str = "nano"
    patch: int | None = None
    """1 for nano, 2 for the others, by default."""
    batch: int = 32
    repeats: int = 7
    all: bool = False
    """Every method, not only the guided steps."""
    fast: bool = False
    """Also the plain step in bfloat16 with compiled blocks."""
    precision: str = "no"
    """Of all steps: no, bf16 or fp16."""
    compile: bool = False
    """Compile the blocks of student and teacher."""
    teacher_precision: str = "ambient"
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""


@dataclass(frozen=True)
class BenchLoading:
    """Time reading latents in random batches: shards, one file an image, and a memory copy, on generated data."""

    images: int = 4096
    batch: int = 256
    repeats: int = 9
    folder: Path | None = None
    """On the disk to measure; the system's temporary folder by default."""


@dataclass(frozen=True)
class Encode:
    """Encode a configuration's images into latents ahead of training; stopped, it goes on when run again."""

    config: Reference
    overrides: Overrides = ()
    """Dotted options, such as data.path=/data/imagenet."""
    split: Literal["train", "test"] = "train"
    processes: int = 1
    """Processes on this machine; several share a GPU, so that one reads images while another encodes."""
    device: str | None = None
    """Such as cuda:1 or cpu; by default the GPUs in turn, or the CPU if there are none."""


@dataclass(frozen=True)
class ImportFile:
    """Make a run of a published checkpoint: a .pt, .pth or .safetensors file; nothing in it is executed."""

    file: Annotated[Path, tyro.conf.Positional]
    family: str | None = None
    """Whose code wrote it: sit, repa, self-transcendence, sra, layersync, lightningdit or dit; told from the file if
    it can be."""
    weights: str = "ema"
    """"raw" takes a file's weights before averaging."""
    name: str | None = None
    """Name of the run; the family and the file's own by default."""
    codec: str | None = None
    """Codec of its latents; by default sd-vae for 4 channels and va-vae for 32."""
    pixel_channels: int = 3
    """Channels of that codec's images."""
    height: int | None = None
    """Move the model to latents of this height, such as 64 for 512 pixels."""


@dataclass(frozen=True)
class ExportRun:
    """Write a run's weights as a published code base loads them, or as a folder for diffusers."""

    run: Reference
    path: Annotated[Path, tyro.conf.Positional]
    family: str
    """sit, repa, self-transcendence, sra, layersync, lightningdit, dit, or diffusers (the path is then a folder)."""
    step: int | None = None
    weights: str = "ema"
    """The set of a flat file; files of training hold both."""


@dataclass(frozen=True)
class Presets:
    """List the presets."""


# Each command's options, and the file of workbench/commands that serves it.
COMMANDS = {
    "demo": (Demo, "train"),
    "train": (Train, "train"),
    "runs": (Runs, "look"),
    "evaluate": (Evaluate, "look"),
    "compare": (Compare, "look"),
    "methods": (Methods, "train"),
    "encode": (Encode, "measure"),
    "import": (ImportFile, "look"),
    "export": (ExportRun, "look"),
    "codec-train": (Codec, "train"),
    "classifier-train": (Classifier, "train"),
    "bench-step": (BenchStep, "measure"),
    "bench-loading": (BenchLoading, "measure"),
    "presets": (Presets, "look"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 0, 2 for what the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # "codec train" reads better than "codec-train": two words make one command.
    if len(arguments) > 1 and f"{arguments[0]}-{arguments[1]}" in COMMANDS:
        arguments[:2] = [f"{arguments[0]}-{arguments[1]}"]
    # Idle threads that spin would take the cores from another process on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command = tyro.extras.subcommand_cli_from_dict(
        {name: options for name, (options, _) in COMMANDS.items()},
        prog="workbench",
        description="See, compare and use the features inside a diffusion transformer.",
        args=arguments,
    )
    try:
        _run(command)
    except (ValueError, OSError) as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("workbench: interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
        sys.exit(130)


def _run(command: object) -> None:
    room = next(room for options, room in COMMANDS.values() if options is type(command))
    module = importlib.import_module(f"workbench.commands.{room}")
    getattr(module, type(command).__name__.lower())(command)


if __name__ == "__main__":
    main()
