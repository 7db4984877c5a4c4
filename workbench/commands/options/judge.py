"""Options of the commands that judge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.commands.options import ConfigReference, Names, Overrides, Processes
from workbench.config.ranges import FromStep


@dataclass(frozen=True)
class Evaluate:
    """Score a run at a step (the newest by default), or a file of images by any program, and print the scores."""

    run: Annotated[str | None, tyro.conf.Positional, Names.RUN] = None
    overrides: Overrides = ()
    """Other sampling than the run's own, such as guidance_scale=4 count=2000 sampler=heun labels=random."""
    step: FromStep | None = None
    samples: Annotated[Path | None, Names.FILE] = None
    """Score this .npz (ADM's layout, uint8 arr_0) instead of a run."""
    reference: str | None = None
    """A reference .npz (ADM's, or by `workbench reference`), or with --samples a preset or YAML file whose training
    images are meant; by default the run's own data."""
    detector: tuple[str, ...] = ("clf64",)
    """clf64, effnet-lite0, randomconv, pixels-pca64, inception-2015 (the only one whose scores are FID, sFID and IS) or
    dinov2."""
    processes: Processes = 1
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

    config: ConfigReference
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

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, Names.RUN]
    metric: tuple[str, ...] = ()
    """Such as fd-clf64; by default every score that belongs to no layer."""
    step: FromStep | None = None
    """By default the last step at which most seeds can be paired."""
    force: bool = False
    """Also compare, and mark, numbers that were not measured alike."""
