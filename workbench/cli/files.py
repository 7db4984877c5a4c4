"""Commands that import and export weights, unpack the shipped runs, and list the presets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.cli.arguments import Ending, Names, OneOf, RunReference
from workbench.cli.terminal import Console
from workbench.config import presets as preset_names
from workbench.config import refuse_unknown
from workbench.config.layers import preset_description
from workbench.config.ranges import FromStep, Range
from workbench.files import WEIGHT_ENDINGS
from workbench.runs.store import open_run, runs_root

_FAMILIES = ("sit", "repa", "self-transcendence", "sra", "layersync", "lightningdit", "dit")


@dataclass(frozen=True)
class ImportFile:
    """Import a published checkpoint, a .pt, .pth or .safetensors file, as a run. No code in the file is executed."""

    file: Annotated[Path, tyro.conf.Positional, Names.FILE, Ending(WEIGHT_ENDINGS)]
    family: Annotated[str | None, OneOf(_FAMILIES)] = None
    """Code base that wrote the file: sit, repa, self-transcendence, sra, layersync, lightningdit or dit. Detected from
    the file if possible."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights of the file: EMA weights, or "raw" ones."""
    name: str | None = None
    """Name of the run; by default the family and the file name."""
    vae: str | None = None
    """VAE of the latents; by default sd-vae for 4 channels and va-vae for 32."""
    pixel_channels: Annotated[int, Range(at_least=1, at_most=64)] = 3
    """Number of image channels of the VAE."""
    height: Annotated[int, Range(at_least=1, at_most=1024)] | None = None
    """Adapt the model to latents of this height, such as 64 for 512 pixels."""
    classes: Annotated[int, Range(at_least=1, at_most=100_000)] | None = None
    """Number of classes, without the null class, if the file does not contain it."""

    def execute(self) -> None:
        from workbench.runs.imported import import_run

        run = import_run(
            self.file,
            runs_root(),
            family=self.family,
            weights=self.weights,
            name=self.name,
            vae=self.vae,
            pixel_channels=self.pixel_channels,
            height=self.height,
            classes=self.classes,
        )
        origin = run.provenance["origin"]
        lines = [
            f"{origin['family']}, {origin['layout']} file: {origin['tensors']} tensors, and {len(origin['heads'])} of "
            f"heads, stored separately; converted: {origin['converted']}",
            origin.get("label_table"),  # missing in runs imported by an older version
            str(run.folder),
        ]
        Console().print("\n".join(filter(None, lines)), soft_wrap=True, markup=False)


@dataclass(frozen=True)
class ExportRun:
    """Export a run's weights in the format of a published code base, or as a folder for diffusers."""

    run: RunReference
    path: Annotated[Path, tyro.conf.Positional]
    family: Annotated[str, OneOf((*_FAMILIES, "diffusers"))]
    """Code base to export for, as for `import`, or diffusers, for which the path is a folder."""
    step: FromStep | None = None
    weights: Literal["ema", "raw"] = "ema"
    """Which weights go into a flat state dict; formats of training checkpoints contain both."""

    def execute(self) -> None:
        if self.family != "diffusers":
            refuse_unknown("the ending of a checkpoint's name", self.path.suffix, WEIGHT_ENDINGS)
        from workbench.runs.imported import export_diffusers, export_run

        run = open_run(self.run)
        step = run.checkpoint(self.step).step
        if self.family == "diffusers":
            path = export_diffusers(run, self.path, step=step, weights=self.weights)
        else:
            path = export_run(run, self.path, family=self.family, step=step, weights=self.weights)
        Console().print(f"{run.name}, step {step}, as {self.family}: {path}", soft_wrap=True)


@dataclass(frozen=True)
class Zoo:
    """Add the shipped runs, each trained for about an hour, to the runs: a teacher, a plain and a guided one, on grey
    garments and on scenes."""

    pack: bool = False
    """Instead, rebuild the shipped files from finished runs of their presets."""

    def execute(self) -> None:
        from workbench.runs.zoo import PRESETS, pack
        from workbench.runs.zoo import zoo as opened

        folders = pack(runs_root()) if self.pack else [opened(name, runs_root()).folder for name in PRESETS]
        Console().print("\n".join(map(str, folders)), soft_wrap=True)


@dataclass(frozen=True)
class Presets:
    """List the presets, each with a sentence."""

    def execute(self) -> None:
        names = preset_names()
        wide = max(map(len, names))
        for name in names:
            print(f"{name:{wide}}  {preset_description(name)}")
