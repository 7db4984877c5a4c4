"""Options of the commands that carry runs in and out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import Ending, Names, RunReference
from workbench.config.ranges import FromStep, Range
from workbench.files import WEIGHT_ENDINGS

Family = Literal["sit", "repa", "self-transcendence", "sra", "layersync", "lightningdit", "dit"]


@dataclass(frozen=True)
class ImportFile:
    """Make a run of a published checkpoint: a .pt, .pth or .safetensors file; nothing in it is executed."""

    file: Annotated[Path, tyro.conf.Positional, Names.FILE, Ending(WEIGHT_ENDINGS)]
    family: Family | None = None
    """Whose code wrote it; told from the file if it can be."""
    weights: Literal["ema", "raw"] = "ema"
    """"raw" takes a file's weights before averaging."""
    name: str | None = None
    """Name of the run; the family and the file's own by default."""
    codec: str | None = None
    """Codec of its latents; by default sd-vae for 4 channels and va-vae for 32."""
    pixel_channels: Annotated[int, Range(at_least=1, at_most=64)] = 3
    """Channels of that codec's images."""
    height: Annotated[int, Range(at_least=1, at_most=1024)] | None = None
    """Move the model to latents of this height, such as 64 for 512 pixels."""
    classes: Annotated[int, Range(at_least=1, at_most=100_000)] | None = None
    """Number of real classes, where the file does not tell it: its label table may have a null row besides or not."""


@dataclass(frozen=True)
class ExportRun:
    """Write a run's weights as a published code base loads them, or as a folder for diffusers."""

    run: RunReference
    path: Annotated[Path, tyro.conf.Positional]
    family: Family | Literal["diffusers"]
    """Whose code is to load it; for diffusers the path is a folder."""
    step: FromStep | None = None
    weights: Literal["ema", "raw"] = "ema"
    """The set of a flat file; files of training hold both."""


@dataclass(frozen=True)
class Zoo:
    """Put the three shipped runs, trained for an hour, among the runs here: teacher, plain and guided."""

    pack: bool = False
    """The other way: make the shipped files anew from finished runs of the presets zoo/teacher, plain and guided."""


@dataclass(frozen=True)
class Presets:
    """List the presets."""
