"""Do classes separate when features are guided against an earlier step? kNN accuracy over w, beside the null label."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from harness import check_report, main, write_report
from torch import Tensor

import workbench as wb
from workbench.cli.arguments import Command
from workbench.cli.terminal import Console
from workbench.diffusion.guidance import guide
from workbench.evaluation.separability import separability
from workbench.features.grid import LABELS, FeatureGrid
from workbench.runs.zoo import GARMENTS

_SCALES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_VERSIONS = ("true", "noise", "null")  # the labels of `FeatureGrid.guided`, and no label at all
_NEIGHBOURS = 20


@dataclass(frozen=True)
class WeakModel(Command):
    """kNN accuracy of mean tokens of the zoo's runs, guided against the null label and against the first milestone.

    With the true label, with the label over noise (the control: chance if the label does not leak), and with the null
    label for both models, where all that is found comes from the image. Held-out images, 95 % Wilson intervals.
    """

    images: Annotated[int, tyro.conf.arg(help="Images of a run.")] = 2000
    layer: Annotated[int, tyro.conf.arg(help="Layer.")] = 8
    t: Annotated[float, tyro.conf.arg(help="Noise level.")] = 0.5
    seed: Annotated[int, tyro.conf.arg(help="Seed of noise and splits.")] = 0
    report: Annotated[Path | None, tyro.conf.arg(help="Where to write all numbers, as JSON.")] = None

    def execute(self) -> None:
        """Measure, and print a table in Markdown."""
        check_report(self.report)
        console, records = Console(), []
        console.print(f"{self.images} images, layer {self.layer}, t = {self.t:g}, seed {self.seed}; w = {_SCALES}")
        for name in GARMENTS:
            for record in self._of_run(name):
                records.append(record)
                cells = [f"{found['value']:.3f}" for found in record["knn"]]
                console.print(f"| {name} | {record['against']} | {record['label']} | {' | '.join(cells)} |")
            about = {"images": self.images, "layer": self.layer, "t": self.t, "seed": self.seed, "scales": _SCALES}
            write_report(self.report, {**about, "neighbours": _NEIGHBOURS, "records": records})

    def _of_run(self, name: str) -> Iterator[dict[str, Any]]:
        run = wb.zoo(name)
        first = run.checkpoints[0].step
        for against in (None, first):
            features = wb.extract(
                run, self.images, [self.layer], [self.t], labels=LABELS, pooling="mean", seed=self.seed, weak=against
            )
            for label in _VERSIONS if against else _VERSIONS[:2]:
                found = [self._knn(features, label, w) for w in _SCALES]
                shown = "null label" if against is None else f"step {first:,}"
                yield {"run": name, "against": shown, "label": label, "knn": found}

    def _knn(self, features: FeatureGrid, label: str, w: float) -> dict[str, float]:
        rows: Tensor
        if label == "null":
            assert features.weak is not None
            ends = (of.read(self.layer, self.t, "null").float() for of in (features.weak, features))
            rows = guide(*ends, w)
        else:
            rows = features.guided(self.layer, self.t, w, label)
        return asdict(separability(rows, features.true, seed=self.seed, neighbours=_NEIGHBOURS).knn.report)


if __name__ == "__main__":
    main(WeakModel)
