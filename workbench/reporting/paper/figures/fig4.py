"""Fig. 4: the score over training of plain, VAE-aligned and guided models.

In the paper FID falls faster with VAE alignment than without, and faster still with self-guidance. The paper has one
run of each; here there are several seeds, with a band over them.

Look for whether the bands separate, and when. The steps of the guiding model are not counted, as in the paper;
`compute` counts them.

The laptop's score is FD-clf64 of 300 images. Its values cannot be compared with FID, only the order of the curves.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import MAIN, presets_of, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery
from workbench.reporting.paper.series import Series, series_of
from workbench.reporting.paper.table import Column, Table, rows_of

METHODS = ("plain", "vae", "guided")


@timed
def fig4(
    scale: str = "laptop",
    seeds: Sequence[int] = MAIN,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Fig. 4 (section 3.2): Frechet distance against steps, mean and 95 % interval over seeds, of three models.

    Every scored step is a point; `evaluate` computes missing scores of steps that were kept.
    """
    count = int(paper_numbers().stated_value("Fig. 4", "generated images"))
    query = ScoreQuery(count=count if scale == "paper" else None, evaluate=evaluate)
    found = runs_of(scale, presets_of(scale, METHODS), seeds, root, overrides)
    scores = series_of(found.runs, "fid", detector=DETECTORS[scale], query=query)
    shown = [method for method in METHODS if method in scores.values]
    curves = [scores.curve(method, style.NAMES[method], method) for method in shown]
    draw = partial(style.lines, curves, "training step", f"{scores.name} (lower is better)", floor=scores.floor)
    return Artifact(
        name="fig4",
        title="Fig. 4: score over training",
        caption=(
            f"Frechet distance over training of three models ({found.models}): {scores.how}. Means over seeds with "
            f"95 % t intervals. The paper's figure shows FID of {count:,} images, SiT-XL/2 on ImageNet 256 x 256, "
            "without values."
        ),
        figures={"score": draw()} if shown else {},
        alts={"score": _alt(scores, shown)} if shown else {},
        tables={"score": _table(scores, shown)} if shown else {},
        claims=tuple(_claims(scores)),
        remarks=(
            "As in the paper, the guided model's steps do not include those of its guiding model; `compute` does.",
        ),
        runs=distinct(found.all),
        missing=(*found.missing, *scores.missing),
    )


def _claims(scores: Series) -> Iterator[Claim]:
    pairs = (
        ("VAE alignment learns faster than plain training", "plain", "vae"),
        ("Self-Transcendence improves on VAE alignment", "vae", "guided"),
        ("Self-Transcendence learns faster than plain training", "plain", "guided"),
    )
    for text, base, other in pairs:
        steps = sorted(scores.values.get(base, {}).keys() & scores.values.get(other, {}).keys())
        names = (style.NAMES[base], style.NAMES[other])
        if not steps:
            yield claim(text, {}, {}, lower=True, of=scores.name, names=names)
        for step in sorted({*steps[:1], *steps[-1:]}):
            first, second = scores.values[base][step], scores.values[other][step]
            yield claim(f"{text}, at step {step:,}", first, second, lower=True, of=scores.name, names=names)


def _table(scores: Series, shown: Sequence[str]) -> Table:
    columns = (
        Column("model"),
        Column("step", "count"),
        Column(scores.name, "number", "mean"),
        Column("95 % interval", "text", "over seeds"),
        Column("seeds", "count"),
    )
    lines = [
        (style.NAMES[method], step, number, number.interval, number.n)
        for method in shown
        for step, number in scores.points(method)
    ]
    return Table(f"The points of the figure. {scores.how}.", columns, rows_of(lines), keys=1)


def _alt(scores: Series, shown: Sequence[str]) -> str:
    parts = []
    for method in shown:
        curve = scores.curve(method, "", method)
        parts.append(f"{style.NAMES[method]} {curve.mean[0]:.3g} at step {curve.x[0]:,}")
        if len(curve.x) > 1:
            parts.append(f"and {curve.mean[-1]:.3g} at step {curve.x[-1]:,}")
    return f"{scores.name} against training step: {', '.join(parts) or 'nothing was scored'}."
