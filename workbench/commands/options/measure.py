"""Options of the commands about data and speed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import ConfigReference, Names, Overrides, Processes, Repeats
from workbench.config.ranges import Count, Patch, Range, Width


@dataclass(frozen=True)
class BenchStep:
    """Time the plain step and guided steps (all methods with --every), in one process and in turn."""

    backbone: str = "sit"
    size: str = "nano"
    patch: Patch | None = None
    """1 for nano, 2 for the others, by default."""
    batch: Repeats = 32
    repeats: Repeats = 7
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

    images: Count = 4096
    batch: Repeats = 256
    repeats: Repeats = 9
    folder: Path | None = None
    """On the disk to measure; the system's temporary folder by default."""


@dataclass(frozen=True)
class BenchScores:
    """Time each score beside SciPy and torch-fidelity (extra "test") on the same numbers, one thread each."""

    dimensions: Width = 2048
    count: Count = 5000
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""


@dataclass(frozen=True)
class BenchViews:
    """Measure how soon views answer in JupyterLab and in an exported page, in headless Chromium, beside the goals."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, Names.RUN] = ()
    """The demo's newest plain run by default."""
    report: Path | None = None
    """Also write the figures, with the machine, versions and load, to this JSON file."""
    presses: Repeats = 30
    """Key presses of each slider; ten times as many moves for the growth of memory."""
    extraction: bool = True
    """Also time the extraction of features, into a cache of its own."""
    images: Count = 2000
    """How many images it is of."""


@dataclass(frozen=True)
class BenchConsole:
    """Measure how soon the training console answers and what watching costs a training, beside the goals."""

    overrides: Overrides = ()
    """Dotted options of the training, which is that of demo/plain, such as backbone.size=small."""
    seconds: Annotated[float, Range(above=0, at_most=86_400)] = 60.0
    """Of lines that are drawn, and of blocks without panels and as many with, in a kernel and in a browser each."""
    report: Path | None = None
    """Also write the figures, with the machine, versions and load, to this JSON file."""
    logged: Count = 1_000_000
    """Steps of the long run that is opened."""
    listed: Repeats = 200
    """Runs that are listed."""


@dataclass(frozen=True)
class Encode:
    """Encode a configuration's images into latents ahead of training; stopped, it goes on when run again."""

    config: ConfigReference
    overrides: Overrides = ()
    """Dotted options, such as data.path=/data/imagenet."""
    split: Literal["train", "test"] = "train"
    processes: Processes = 1
    """Processes on this machine; several share a GPU, so that one reads images while another encodes."""
    device: str | None = None
    """Such as cuda:1 or cpu; by default the GPUs in turn, or the CPU if there are none."""
