"""Fig. 2: t-SNE of guiding features, with numbers in the original space and the controls for leakage.

In the paper our target and REPA's fall into clusters by class, those of LayerSync and the VAE do not. The guided
feature is conditioned on the class and pushed along it thirty times over. So three more pictures stand below: the same
feature without the class, with a wrong class, and with the class over nothing but noise.

Look at the numbers before the clusters: they are taken in the original space. If the class over noise clusters too,
then clusters are no sign of anything seen in the image.

Distances between clusters and their sizes mean nothing in a t-SNE.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from workbench.evaluation.separability import Separability
from workbench.features.embedding import embed_cached
from workbench.lab.panes.scatter import class_marker, draw_points
from workbench.lab.views.embedding import embedding
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.features import (
    ROLES,
    TITLES,
    Ours,
    Target,
    class_names,
    measured,
    rows_and_images,
    targets_of,
)
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.ours import described
from workbench.reporting.paper.runs import ABLATION, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of
from workbench.runs.store import Run

TARGETS = ("repa", "layersync", "vae", "guided")
_LISTED = 10  # classes that a legend has room for


@dataclass(frozen=True, eq=False)
class Panel:
    """Mean tokens and the labels by which they are coloured and measured."""

    title: str
    rows: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    what: str


@timed
def fig2(
    scale: str = "laptop",
    t: float | None = None,
    images: int = 300,
    perplexity: float = 30.0,
    tsne_seed: int = 0,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    view: bool = True,
) -> Artifact:
    """Fig. 2 (section 3.1): t-SNE of the targets of REPA, LayerSync, VAE and ours, and of ours under the controls.

    The controls are the same feature without the class, with a wrong class, and with the class over pure noise.
    Numbers are taken in the original space. `t` None is the paper's 0.4.
    """
    t = paper_numbers().said("Fig. 2", "t") if t is None else t
    found = runs_of(scale, ROLES[scale], seeds, root, overrides, weights=True)
    runs = found.seed(list(ROLES[scale]), seed)
    if "plain" not in runs:
        caption = found.lack("runs of the plain model and of the methods", ROLES[scale], scale)
        return Artifact("fig2", "Fig. 2: t-SNE of guiding features", caption, missing=found.missing)
    rows, _, labels = rows_and_images(runs["plain"], images)
    targets, ours = targets_of(scale, runs, rows, t, TARGETS)
    panels = [*_targets(targets, labels), *(_controls(ours, t) if ours else [])]
    perplexity = min(perplexity, (len(rows) - 1) / 4)
    folder = runs["plain"].folder.parent / ".embeddings"
    embedded = [embed_cached(folder, panel.rows, "tsne", seed=tsne_seed, perplexity=perplexity) for panel in panels]
    points = [of.points.numpy() for of in embedded]
    numbers = [measured(panel.rows, panel.labels) for panel in panels]
    first = len(targets)
    views = {}
    if view and ours:
        views["points"] = embedding(
            ours.run,
            min(images, 200),
            layers=[ours.layer],
            times=[t],
            stops=[0.0, 1.0, ours.scale],
            mapped=4,
            progress=_quiet,
        )
    return Artifact(
        name="fig2",
        title="Fig. 2: t-SNE of guiding features",
        caption=(
            f"Mean tokens of {len(rows)} training images by what each method guides with, t = {t:g} ("
            f"{described(runs['plain'])}, seed {runs['plain'].config.training.seed}); t-SNE of perplexity "
            f"{perplexity:g}, a colour and a mark a class. Below: our feature without the class, with a wrong "
            "one (coloured by it), and with the class over pure noise. kNN is measured in the original space; gaps and "
            "areas in a t-SNE mean nothing."
        ),
        figures={"tsne": _draw(panels, points, numbers, class_names(runs["plain"]), first)},
        alts={"tsne": _alt(panels, numbers)},
        tables={"separability": _table(panels, numbers)},
        views=views,
        claims=tuple(_claims(panels, numbers)),
        said=_said(panels, numbers),
        made_of=distinct([runs["plain"], *([ours.run] if ours else []), *_own(runs)]),
        missing=found.missing,
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def _own(runs: Mapping[str, Run]) -> list[Run]:
    return [runs[name] for name in ("layersync",) if name in runs]


def _targets(targets: Sequence[Target], labels: Tensor) -> list[Panel]:
    return [Panel(TITLES[target.name], target.mean, labels, target.of) for target in targets]


def _controls(ours: Ours, t: float) -> list[Panel]:
    features, w = ours.features, ours.scale
    mean = features.pooled
    null = mean(features.read(ours.layer, t, "null"))
    wrong = mean(features.guided(ours.layer, t, w, "wrong"))
    noise = mean(features.guided(ours.layer, t, w, "noise"))
    return [
        Panel("ours, no class", null, features.true, "w = 0: the same feature without the class"),
        Panel("ours, wrong class", wrong, features.given, "guided by a wrong class and coloured by it"),
        Panel("wrong, by image", wrong, features.true, "guided by a wrong class, coloured by the image's own"),
        Panel("class only", noise, features.true, "guided by the class over noise: no image at all"),
    ]


def _draw(
    panels: Sequence[Panel],
    points: Sequence[Float[np.ndarray, "n 2"]],
    numbers: Sequence[Separability],
    names: Sequence[str],
    first: int,
) -> Figure:
    columns = max(first, len(panels) - first)
    with style.look():
        figure = Figure(figsize=(style.PAGE, 2.05 * (2 if len(panels) > first else 1) + 0.4), layout="constrained")
        axes = figure.subplots(2 if len(panels) > first else 1, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        places = [*range(first), *range(columns, columns + len(panels) - first)]
        for number, place in enumerate(places):
            axis, panel = axes[place], panels[number]
            axis.set_axis_on()
            draw_points(axis, points[number], panel.labels.numpy(), size=6)
            knn = numbers[number].knn.report
            axis.set_title(f"{panel.title}\nkNN {knn.value:.2f} [{knn.low:.2f}, {knn.high:.2f}]", fontsize=7)
            axis.grid(visible=False)
            axis.spines[:].set_visible(True)
        if len(names) <= _LISTED:
            handles = [
                Line2D([], [], linestyle="", markersize=4, label=name, **class_marker(label))
                for label, name in enumerate(names)
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=5, handletextpad=0.2)
    return figure


def _table(panels: Sequence[Panel], numbers: Sequence[Separability]) -> Table:
    columns = (
        Column("features"),
        Column("what they are"),
        Column("kNN accuracy", "number"),
        Column("95 % interval"),
        Column("LDA accuracy", "number"),
        Column("silhouette", "number"),
        Column("images", "count"),
    )
    lines = []
    for panel, found in zip(panels, numbers, strict=True):
        knn, lda = found.knn.report, found.lda.report
        number = Number(knn.value, 3, knn.low, knn.high, knn.count)
        others = (Number(lda.value, 3, lda.low, lda.high, lda.count), Number(found.silhouette, 3))
        lines.append((panel.title, panel.what, number, number.interval, *others, found.count))
    caption = "How well classes separate in the original space; held-out images, of which the intervals are."
    return Table(caption, columns, rows_of(lines), keys=2)


def _claims(panels: Sequence[Panel], numbers: Sequence[Separability]) -> Iterator[Claim]:
    found = {panel.title: of.knn.report for panel, of in zip(panels, numbers, strict=True)}
    for other in ("REPA", "LayerSync", "VAE latent"):
        if "ours" in found and other in found:
            ours, theirs = found["ours"], found[other]
            better, worse = ours.low > theirs.high, ours.high < theirs.low
            word = "as the paper draws it" if other != "REPA" else "which the paper draws alike"
            verdict = (
                "holds for this seed"
                if better
                else "does not hold for this seed"
                if worse
                else "cannot be told with 1 seed"
            )
            yield Claim(
                f"Our guiding feature separates classes better than {other}'s, {word}",
                verdict,
                f"kNN {ours.value:.2f} against {theirs.value:.2f} of {ours.count} held-out images; one training seed, "
                "and the label is in ours.",
            )


def _said(panels: Sequence[Panel], numbers: Sequence[Separability]) -> tuple[str, ...]:
    found = {panel.title: of.knn.report for panel, of in zip(panels, numbers, strict=True)}
    if "class only" not in found:
        return ()
    chance = 1 / int(panels[0].labels.unique().numel())
    only, null, wrong = (found[name] for name in ("class only", "ours, no class", "ours, wrong class"))
    leaks = only.low > chance
    return (
        f"With the class over pure noise kNN is {only.value:.2f} (chance {chance:.2f}), and with a wrong class it "
        f"finds that class in {wrong.value:.2f}: the label {'is' if leaks else 'is not'} in the feature whatever the "
        f"image. Without it, the same feature has {null.value:.2f}. So the clusters of a guided feature "
        f"{'prove nothing about the image' if leaks else 'are not the label alone'}.",
    )


def _alt(panels: Sequence[Panel], numbers: Sequence[Separability]) -> str:
    told = ", ".join(f"{p.title} {of.knn.report.value:.2f}" for p, of in zip(panels, numbers, strict=True))
    return f"Points of images by t-SNE of guiding features, coloured by class. kNN accuracy: {told}."
