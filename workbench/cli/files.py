"""Commands that import and export weights, open the shipped runs, and list the presets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.cli.arguments import Ending, Names, OneOf, RunReference
from workbench.cli.terminal import Console
from workbench.config import presets as preset_names
from workbench.config import refuse_unknown
from workbench.config.ranges import FromStep, Range
from workbench.files import WEIGHT_ENDINGS
from workbench.runs.store import open_run, runs_root

_FAMILIES = ("sit", "repa", "self-transcendence", "sra", "layersync", "lightningdit", "dit")


@dataclass(frozen=True)
class ImportFile:
    """Make a run of a published checkpoint: a .pt, .pth or .safetensors file; nothing in it is executed."""

    file: Annotated[Path, tyro.conf.Positional, Names.FILE, Ending(WEIGHT_ENDINGS)]
    family: Annotated[str | None, OneOf(_FAMILIES)] = None
    """Whose code wrote it: sit, repa, self-transcendence, sra, layersync, lightningdit or dit; read from the file if it
    says so."""
    weights: Literal["ema", "raw"] = "ema"
    """"raw" takes a file's weights before averaging."""
    name: str | None = None
    """Name of the run; the family and the file's own by default."""
    vae: str | None = None
    """VAE of its latents; by default sd-vae for 4 channels and va-vae for 32."""
    pixel_channels: Annotated[int, Range(at_least=1, at_most=64)] = 3
    """Channels of that VAE's images."""
    height: Annotated[int, Range(at_least=1, at_most=1024)] | None = None
    """Move the model to latents of this height, such as 64 for 512 pixels."""
    classes: Annotated[int, Range(at_least=1, at_most=100_000)] | None = None
    """Number of real classes, where the file does not tell it: its label table may have a null row besides or not."""

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
        said = [
            f"{origin['family']}, {origin['layout']} file: {origin['tensors']} tensors, {len(origin['heads'])} more of "
            f"heads kept apart; converted: {origin['converted']}",
            origin.get("label_table"),  # runs that were imported before do not have it
            str(run.folder),
        ]
        Console().print("\n".join(filter(None, said)), soft_wrap=True, markup=False)


@dataclass(frozen=True)
class ExportRun:
    """Write a run's weights as a published code base loads them, or as a folder for diffusers."""

    run: RunReference
    path: Annotated[Path, tyro.conf.Positional]
    family: Annotated[str, OneOf((*_FAMILIES, "diffusers"))]
    """Whose code is to load it, as for `import`, or diffusers, for which the path is a folder."""
    step: FromStep | None = None
    weights: Literal["ema", "raw"] = "ema"
    """The set of a flat file; files of training hold both."""

    def execute(self) -> None:
        if self.family != "diffusers":
            refuse_unknown("the ending of a checkpoint's name", self.path.suffix, WEIGHT_ENDINGS)
        from workbench.runs.imported import export_diffusers, export_run

        run = open_run(self.run)
        step = run.checkpoint(self.step).step
        chosen = {"step": step, "weights": self.weights}
        if self.family == "diffusers":
            path = export_diffusers(run, self.path, **chosen)
        else:
            path = export_run(run, self.path, family=self.family, **chosen)
        Console().print(f"{run.name}, step {step}, as {self.family}: {path}", soft_wrap=True)


@dataclass(frozen=True)
class Zoo:
    """Put the three shipped runs, trained for an hour, among the runs here: teacher, plain and guided."""

    pack: bool = False
    """The other way: make the shipped files anew from finished runs of the presets zoo/teacher, plain and guided."""

    def execute(self) -> None:
        from workbench.runs.zoo import ANIMALS, pack
        from workbench.runs.zoo import zoo as opened

        folders = pack(runs_root()) if self.pack else [opened(name, runs_root()).folder for name in ANIMALS]
        Console().print("\n".join(map(str, folders)), soft_wrap=True)


@dataclass(frozen=True)
class Presets:
    """List the presets."""

    def execute(self) -> None:
        print("\n".join(preset_names()))
