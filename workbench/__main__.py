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
    """Processes on this machine, CPU or GPU; on each node with --print-launch and --print-slurm."""
    detach: bool = False
    """Train in a process that outlives this terminal; its output goes to log.txt of the run."""
    queue: bool = False
    """Detached, when a device is free and those who asked before had their turn."""
    after: str | None = None
    """Detached, in the queue, once this run has finished: a student after its teacher."""
    devices: tuple[int, ...] = ()
    """GPUs that a detached training may take; all by default."""
    nodes: int = 1
    """Machines, for --print-launch and --print-slurm."""
    print_launch: bool = False
    """Print the torchrun and accelerate commands of this training and start nothing."""
    print_slurm: bool = False
    """Print a batch script for sbatch and start nothing."""
    hours: int = 48
    """Time that --print-slurm asks for."""


@dataclass(frozen=True)
class Runs:
    """List the runs: state, step, method, options, cost, newest scores, tags."""

    filter: str = ""
    """Show runs in whose row this text stands, such as a method, a state or a tag."""
    sort: str = "created"
    """A column, such as step, loss, cost or fd-clf64; with a leading - the largest first (--sort=-step)."""


@dataclass(frozen=True)
class Watch:
    """Watch runs train, from any terminal that sees their folders; q or Ctrl-C leaves, the training goes on."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    once: bool = False
    """Print what there is and leave."""


@dataclass(frozen=True)
class Stop:
    """Save after the current step and end the training, or take the run out of the queue."""

    run: Reference


@dataclass(frozen=True)
class Pause:
    """Let a training wait after the current step, everything kept in memory and its device held."""

    run: Reference


@dataclass(frozen=True)
class Resume:
    """Let a paused training go on, or launch one that was stopped, lost or failed again, exactly as it was."""

    run: Reference


@dataclass(frozen=True)
class Checkpoint:
    """Save after the current step and go on."""

    run: Reference


@dataclass(frozen=True)
class SetOption:
    """Change learning_rate, stop_step, log_every or checkpoint_every from the next step on, resumes included."""

    run: Reference
    changes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Such as learning_rate=1e-4."""


@dataclass(frozen=True)
class Queue:
    """List the machine's queue of trainings: order, run, state, devices."""


@dataclass(frozen=True)
class QueueCancel:
    """Take a waiting run out of the queue."""

    run: Reference


@dataclass(frozen=True)
class QueueResume:
    """Start the waiting processes of the queue again, after a restart of the machine or a kill."""


@dataclass(frozen=True)
class Note:
    """Set a run's tags and notes."""

    run: Reference
    tags: tuple[str, ...] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Trash:
    """Move a run to the trash folder beside the runs; one that trains, or that taught another, is refused."""

    run: Reference
    force: bool = False
    """Also one that taught another."""


@dataclass(frozen=True)
class Restore:
    """Bring a run back from the trash; without a name, list what is there."""

    name: Annotated[str | None, tyro.conf.Positional] = None


@dataclass(frozen=True)
class Evaluate:
    """Score a run at a step (the newest by default), or a file of images by any program, and print the scores."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    overrides: Overrides = ()
    """Other sampling than the run's own, such as guidance_scale=4 count=2000 sampler=heun labels=random."""
    step: int | None = None
    samples: Path | None = None
    """Score this .npz (ADM's layout, uint8 arr_0) instead of a run."""
    reference: str | None = None
    """A reference .npz (ADM's, or by `workbench reference`), or with --samples a preset or YAML file whose training
    images are meant; by default the run's own data."""
    detector: tuple[str, ...] = ("clf64",)
    """clf64, effnet-lite0, randomconv, pixels-pca64, inception-2015 (the only one whose scores are FID, sFID and IS) or
    dinov2."""
    processes: int = 1
    """Processes that generate, GPUs in turn."""
    small_ok: bool = False
    """Allow, and mark, fewer images than twice the detector's dimensions."""
    force: bool = False
    """Allow, and mark, a detector that taught the run."""
    report: Path | None = None
    """Also write the records, with how each was measured, to this JSON file."""


@dataclass(frozen=True)
class ReferenceFile:
    """Write a data set's reference .npz in ADM's layout: 10,000 images, and moments of all for FID and sFID."""

    config: Reference
    file: Annotated[Path, tyro.conf.Positional]
    overrides: Overrides = ()
    """Dotted options, such as data.path=/data/imagenet."""
    detector: str = "inception-2015"
    split: Literal["train", "test"] = "train"


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
class BenchScores:
    """Time each score beside SciPy and torch-fidelity (extra "test") on the same numbers, one thread each."""

    dimensions: int = 2048
    count: int = 5000
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""


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
class Lab:
    """Open JupyterLab on the notebooks: for this machine alone, with a random token, asking nothing of the network."""

    port: int = 0
    """0 takes any that is free."""
    folder: Path | None = None
    """Where the notebooks are, or are copied to; by default ./notebooks if there is one, else ./workbench-notebooks.
    A notebook that is there is never overwritten."""
    no_browser: bool = False
    """Print the address and open nothing."""


@dataclass(frozen=True)
class Page:
    """Write a view of a run as one HTML file that works offline and without Python: for a class, for a colleague."""

    run: Reference
    file: Annotated[Path, tyro.conf.Positional]
    view: Literal["maps", "embedding", "separability", "leakage", "samples", "explore"] = "maps"
    images: int | None = None
    """How many images are shown and measured, or samples a row; each view has its own default."""


@dataclass(frozen=True)
class Presets:
    """List the presets."""


# Each command's options, and the file of workbench/commands that serves it.
COMMANDS = {
    "demo": (Demo, "train"),
    "train": (Train, "train"),
    "runs": (Runs, "console"),
    "watch": (Watch, "console"),
    "stop": (Stop, "console"),
    "pause": (Pause, "console"),
    "resume": (Resume, "console"),
    "checkpoint": (Checkpoint, "console"),
    "set": (SetOption, "console"),
    "queue": (Queue, "console"),
    "queue-cancel": (QueueCancel, "console"),
    "queue-resume": (QueueResume, "console"),
    "note": (Note, "console"),
    "trash": (Trash, "console"),
    "restore": (Restore, "console"),
    "evaluate": (Evaluate, "judge"),
    "reference": (ReferenceFile, "judge"),
    "compare": (Compare, "judge"),
    "methods": (Methods, "train"),
    "encode": (Encode, "measure"),
    "import": (ImportFile, "look"),
    "export": (ExportRun, "look"),
    "codec-train": (Codec, "train"),
    "classifier-train": (Classifier, "train"),
    "bench-step": (BenchStep, "measure"),
    "bench-loading": (BenchLoading, "measure"),
    "bench-scores": (BenchScores, "measure"),
    "lab": (Lab, "lab"),
    "page": (Page, "lab"),
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
