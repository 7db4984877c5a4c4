"""Does sampling with f_g in place of f_c help? Scores of the zoo's runs with edits, beside guided sampling."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from harness import check_report, main, write_report

import workbench as wb
from workbench.cli.arguments import Command
from workbench.cli.terminal import Console
from workbench.config import SamplingConfig
from workbench.evaluation.generate import Samples, generate
from workbench.evaluation.suite import score_pairs
from workbench.runs.store import Run
from workbench.runs.zoo import GARMENTS

Record = dict[str, Any]
_LAYER = 8  # of the paper's guided features
_SCALES = (1.5, 2.0, 4.0, 10.0)
_GUIDANCE = (1.5, 2.0, 4.0)  # of the velocity
_MORE: tuple[Record, ...] = (  # edits of the last run only
    {"layer": 4, "w": 2.0},
    {"layer": 12, "w": 2.0},
    {"layer": _LAYER, "w": 4.0, "t": (0.4, 0.7)},
    {"layer": _LAYER, "w": 4.0, "t": (0.7, 1.0)},
)


@dataclass(frozen=True)
class Edits(Command):
    """Score samples of the zoo's runs with guided features in place of f_c, and with guided velocities.

    Both are compared with samples from the same noise without guidance, and at the same w with each other. Intervals
    are over the choice of images.
    """

    count: Annotated[int, tyro.conf.arg(help="Images of each kind.")] = 300
    steps: Annotated[int, tyro.conf.arg(help="Steps of the Euler sampler.")] = 16
    seed: Annotated[int, tyro.conf.arg(help="Seed of the noise.")] = 0
    report: Annotated[Path | None, tyro.conf.arg(help="Where to write all numbers, as JSON.")] = None

    def execute(self) -> None:
        """Measure, and print a table in Markdown."""
        check_report(self.report)
        console, records = Console(), []
        console.print(f"{self.count} images of each kind, Euler with {self.steps} steps, seed {self.seed}")
        for name in GARMENTS:
            run = wb.zoo(name)
            for record in self._of_run(run, _MORE if name == GARMENTS[-1] else ()):
                records.append({"run": name, **record})
                console.print(line(records[-1]), soft_wrap=True)
                write_report(self.report, {"count": self.count, "seed": self.seed, "records": records})

    def _of_run(self, run: Run, more: tuple[Record, ...]) -> Iterator[Record]:
        settings = SamplingConfig(sampler="euler", steps=self.steps, count=self.count, seed=self.seed)
        step = run.checkpoint().step
        plain = generate(run, step, settings)
        guided = {w: generate(run, step, replace(settings, guidance_scale=w)) for w in _GUIDANCE}
        for w, samples in guided.items():
            yield {"what": f"guided velocity, w = {w:g}", "scores": pair(run, plain, samples, self.seed)}
        for options in (*({"layer": _LAYER, "w": w} for w in _SCALES), *more):
            patched = wb.patch(run, **options, count=self.count, seed=self.seed, sampling=settings, progress=_silent)
            after, text = Samples(patched.after, patched.labels), patched.edit.text
            yield {"what": text, "scores": pair(run, plain, after, self.seed)}
            if options.keys() == {"layer", "w"} and options["layer"] == _LAYER and options["w"] in guided:
                before = guided[options["w"]]
                yield {"what": f"{text} against guided velocity", "scores": pair(run, before, after, self.seed)}


def _silent(*_: Any) -> None:
    """Ignore progress."""


def pair(run: Run, before: Samples, after: Samples, seed: int) -> dict[str, Record]:
    """Frechet distance and class agreement, by kind."""
    records = score_pairs(run, before, after, seed=seed)
    for record in records:
        del record["machine"]  # it is in the report once
    return dict(zip(("fd", "class-agreement"), records, strict=True))


def line(record: Record) -> str:
    """A row of the table."""
    cells = [record["run"], record["what"]]
    for score in record["scores"].values():
        cells.append(f"{score['before']['value']:.2f} → {score['after']['value']:.2f}")
        cells.append(f"{score['difference']:+.2f} ({score['low']:+.2f} to {score['high']:+.2f})")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Edits)
