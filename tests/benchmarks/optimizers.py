"""Muon or AdamW: loss on held-out images over a training, for both backbones and several seeds."""

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from harness import check_report, main, saying, write_report
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.cli.arguments import Command
from workbench.cli.terminal import Console
from workbench.config import Config, load_config
from workbench.data.latents import open_latents
from workbench.evaluation.statistics import t_interval
from workbench.objectives.base import Batch
from workbench.runs.models import load_backbone
from workbench.runs.store import home, prepare_run
from workbench.training.batches import draw_batch
from workbench.training.loop import fit

# The rate of the presets with AdamW, three times it as a control, and what is recommended for Muon.
KINDS = (("adamw", 1e-3), ("adamw", 3e-3), ("muon", 3e-3))
_BLOCK = 250  # images at a time


@dataclass(frozen=True)
class Held:
    """Mean squared error of the velocity on held-out images, at some steps of one training."""

    backbone: str
    optimizer: str
    learning_rate: float
    seed: int
    loss: dict[int, float]


@dataclass(frozen=True)
class Optimizers(Command):
    """Loss on held-out images, with the same noise and t for all, of trainings that differ in optimizer and rate.

    Runs are kept under the runs folder, so an interrupted benchmark goes on where it was.
    """

    backbones: Annotated[tuple[str, ...], tyro.conf.arg(help="Backbones.")] = ("sit", "lightningdit")
    seeds: Annotated[int, tyro.conf.arg(help="Number of training seeds.")] = 3
    steps: Annotated[int, tyro.conf.arg(help="Training steps; the loss is measured four times.")] = 220
    images: Annotated[int, tyro.conf.arg(help="Held-out images.")] = 1000
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(help="Further options of all trainings.")] = ()
    report: Annotated[Path | None, tyro.conf.arg(help="Where to write all numbers, as JSON.")] = None

    def execute(self) -> None:
        """Train, measure, and print tables in Markdown."""
        check_report(self.report)
        console, found = Console(), []
        with saying(console) as say:
            for backbone, seed, (optimizer, rate) in product(self.backbones, range(self.seeds), KINDS):
                say(f"{backbone} with {optimizer} at {rate:g}, seed {seed}")
                found.append(self._held(backbone, optimizer, rate, seed))
                about = {"images": self.images, "steps": self.steps, "overrides": self.overrides}
                write_report(self.report, {**about, "trainings": [asdict(held) for held in found]})
        for backbone in self.backbones:
            self._print(console, backbone, [held for held in found if held.backbone == backbone])

    def _config(self, backbone: str, optimizer: str, rate: float, seed: int) -> Config:
        every = self.steps // 4
        changes = (
            *("name=optimizer", f"backbone.name={backbone}", f"training.optimizer={optimizer}"),
            *(f"training.learning_rate={rate}", f"training.seed={seed}", f"training.steps={self.steps}"),
            *("training.batch=64", f"training.milestone_every={every}", f"training.checkpoint_every={every}"),
        )
        return load_config("demo/plain", (*changes, *self.overrides))

    def _held(self, backbone: str, optimizer: str, rate: float, seed: int) -> Held:
        config, root = self._config(backbone, optimizer, rate, seed), home()
        for _ in fit(config, root):
            pass
        run = prepare_run(config, root)
        latents = open_latents(config, "test", root / ".latents")
        # Noise and t of another seed than any training's, the same for all.
        drawn = replace(config, training=replace(config.training, seed=10_000))
        batch = draw_batch(drawn, latents, {}, 0, range(min(self.images, len(latents))))
        steps = [checkpoint.step for checkpoint in run.checkpoints]
        loss = {step: held_out(load_backbone(run, step, weights="raw"), batch) for step in steps}
        return Held(backbone, optimizer, rate, seed, loss)

    def _print(self, console: Console, backbone: str, found: list[Held]) -> None:
        steps = list(found[0].loss)  # of each training the mean of the seeds, and their range
        rows = [[backbone, *(f"step {step}" for step in steps)], ["---"] * (len(steps) + 1)]
        by_kind = {kind: [h for h in found if (h.optimizer, h.learning_rate) == kind] for kind in KINDS}
        for (optimizer, rate), trainings in by_kind.items():
            cells = []
            for step in steps:
                losses = np.array([held.loss[step] for held in trainings])
                cells.append(f"{losses.mean():.3f} ({losses.min():.3f} to {losses.max():.3f})")
            rows.append([f"{optimizer}, {rate:g}", *cells])
        muon = by_kind[KINDS[-1]]
        for kind in KINDS[:-1]:
            cells = []
            for step in steps:
                less = [a.loss[step] - b.loss[step] for a, b in zip(muon, by_kind[kind], strict=True)]
                interval = t_interval(less)
                cells.append(f"{np.mean(less):+.3f} ({interval.low:+.3f} to {interval.high:+.3f})")
            rows.append([f"Muon less {kind[0]} at {kind[1]:g}", *cells])
        console.print()
        for row in rows:
            console.print(f"| {' | '.join(row)} |", soft_wrap=True)


@torch.no_grad()
def held_out(backbone: TransformerBackbone, batch: Batch) -> float:
    """Mean squared error of the velocity."""
    errors: list[Tensor] = []
    for x_t, t, y, v in zip(*(tensor.split(_BLOCK) for tensor in (batch.x_t, batch.t, batch.y, batch.v)), strict=True):
        errors.append((backbone(x_t, t, y) - v).square().flatten(1).mean(1))
    return float(torch.cat(errors).mean())


if __name__ == "__main__":
    main(Optimizers)
