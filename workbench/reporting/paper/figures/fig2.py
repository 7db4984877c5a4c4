"""Fig. 2: t-SNE of guiding features, with separability in the original space and leakage controls.

In the paper our target and REPA's form clusters by class, those of LayerSync and the VAE do not. The guided feature is
conditioned on the class with a guidance scale of 30, so below are three controls: the same feature with the null
label, with a wrong label, and with the label only, over pure noise.

Look at the numbers before the clusters: they are measured in the original space. If the class over noise also forms
clusters, then clusters are no evidence that the feature contains the image.

In a t-SNE, the size of clusters and the distances between them have no meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from workbench.evaluation.objects import ObjectSeparation
from workbench.evaluation.separability import Separability
from workbench.features.embedding import embed_cached
from workbench.lab.panes.scatter import class_marker, draw_points
from workbench.lab.views.embedding import embedding
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import seed_verdict
from workbench.reporting.paper.features import (
    METHODS,
    OBJECT_COLUMNS,
    TITLES,
    Ours,
    Target,
    alignment_targets,
    class_names,
    measured,
    object_cells,
    objects_of,
    rows_and_images,
)
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.ours import described
from workbench.reporting.paper.runs import ABLATION, presets_of, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of
from workbench.runs.store import Run

TARGETS = ("repa", "layersync", "vae", "guided")
_LISTED = 10  # classes that a legend has room for


@dataclass(frozen=True, eq=False)
class Panel:
    """Tokens, and the labels used for the colours and measures of their means."""

    title: str
    tokens: Float[Tensor, "n m d"]
    labels: Int64[Tensor, " n"]
    what: str

    @cached_property
    def rows(self) -> Float[Tensor, "n d"]:
        """Mean tokens."""
        return self.tokens.float().mean(dim=1)


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

    The controls are the same feature with the null label, with a wrong label, and with the label only, over noise.
    Separability is measured in the original space. `t` defaults to the paper's 0.4.
    """
    t = paper_numbers().stated_value("Fig. 2", "t") if t is None else t
    presets = presets_of(scale, METHODS)
    found = runs_of(scale, presets, seeds, root, overrides, weights=True)
    runs = found.seed(list(presets), seed)
    if "plain" not in runs:
        caption = found.why_missing("runs of the plain model and of the methods", presets, scale)
        return Artifact("fig2", "Fig. 2: t-SNE of guiding features", caption, missing=found.missing)
    rows, _, labels = rows_and_images(runs["plain"], images)
    targets, ours = alignment_targets(scale, runs, rows, t, TARGETS)
    panels = [*_targets(targets, labels), *(_controls(ours, t) if ours else [])]
    perplexity = min(perplexity, (len(rows) - 1) / 4)
    folder = runs["plain"].folder.parent / ".embeddings"
    embedded = [embed_cached(folder, panel.rows, "tsne", seed=tsne_seed, perplexity=perplexity) for panel in panels]
    points = [of.points.numpy() for of in embedded]
    numbers = [measured(panel.rows, panel.labels) for panel in panels]
    objects = objects_of(runs["plain"], rows[:0], images)
    separation = [] if isinstance(objects, str) else [objects.measured(panel.tokens) for panel in panels]
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
            f"Mean tokens of {len(rows)} training images in the targets of each method, t = {t:g} ("
            f"{described(runs['plain'])}, seed {runs['plain'].config.training.seed}); t-SNE of perplexity "
            f"{perplexity:g}, a colour and a marker per class. Below: our feature with the null label, with a wrong "
            "one (coloured by it), and with the label only, over noise. kNN accuracy is of the original space; "
            "distances and areas in a t-SNE have no meaning."
        ),
        figures={"tsne": _draw(panels, points, numbers, class_names(runs["plain"]), first)},
        alts={"tsne": _alt(panels, numbers)},
        tables={"separability": _table(panels, numbers, separation)},
        views=views,
        claims=tuple(_claims(panels, numbers)),
        remarks=(*_remarks(panels, numbers), *([objects] if isinstance(objects, str) else [])),
        runs=distinct([runs["plain"], *([ours.run] if ours else []), *_own(runs)]),
        missing=found.missing,
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def _own(runs: Mapping[str, Run]) -> list[Run]:
    return [runs[name] for name in ("layersync",) if name in runs]


def _targets(targets: Sequence[Target], labels: Tensor) -> list[Panel]:
    return [Panel(TITLES[target.name], target.tokens, labels, target.of) for target in targets]


def _controls(ours: Ours, t: float) -> list[Panel]:
    features, w = ours.features, ours.scale
    null = features.read(ours.layer, t, "null")
    wrong, noise = (features.guided(ours.layer, t, w, image) for image in ("wrong", "noise"))
    return [
        Panel("ours, null label", null, features.true, "w = 0: the same feature without a label"),
        Panel("wrong label, by given", wrong, features.given, "guided by a wrong label and coloured by it"),
        Panel("wrong label, by true", wrong, features.true, "guided by a wrong label, coloured by the true classes"),
        Panel("label only", noise, features.true, "guided by the label over noise: no image at all"),
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
        cells = [*range(first), *range(columns, columns + len(panels) - first)]
        for number, index in enumerate(cells):
            axis, panel = axes[index], panels[number]
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


def _table(panels: Sequence[Panel], numbers: Sequence[Separability], objects: Sequence[ObjectSeparation]) -> Table:
    columns = (
        Column("features"),
        Column("what they are"),
        Column("kNN accuracy", "number"),
        Column("95 % interval"),
        Column("LDA accuracy", "number"),
        Column("silhouette", "number"),
        Column("images", "count"),
        *(OBJECT_COLUMNS if objects else ()),
    )
    lines = []
    for panel, measures, own in zip_longest(panels, numbers, objects):
        knn, lda = measures.knn.report, measures.lda.report
        number = Number(knn.value, 3, knn.low, knn.high, knn.count)
        others = (Number(lda.value, 3, lda.low, lda.high, lda.count), Number(measures.silhouette, 3))
        cells = (panel.title, panel.what, number, number.interval, *others, measures.count)
        lines.append((*cells, *object_cells(own)))
    caption = "Separability of classes in the original space, with intervals over held-out images."
    if objects:
        caption += (
            " Beside it, how well the best of three components separates tokens on the object from tokens at the same "
            "place of other images that are not; chance is one half. For a wrong label it is the same feature twice."
        )
    return Table(caption, columns, rows_of(lines), keys=2)


def _claims(panels: Sequence[Panel], numbers: Sequence[Separability]) -> Iterator[Claim]:
    accuracies = {panel.title: of.knn.report for panel, of in zip(panels, numbers, strict=True)}
    for other in ("REPA", "LayerSync", "VAE latent"):
        if "ours" in accuracies and other in accuracies:
            ours, theirs = accuracies["ours"], accuracies[other]
            paper = "as in the paper's figure" if other != "REPA" else "which looks alike in the paper's figure"
            yield Claim(
                f"Our guiding feature separates classes better than {other}'s, {paper}",
                seed_verdict(ours.low > theirs.high, ours.high < theirs.low),
                f"kNN {ours.value:.2f} against {theirs.value:.2f} of {ours.count} held-out images; one training seed, "
                "and ours contains the label.",
            )


def _remarks(panels: Sequence[Panel], numbers: Sequence[Separability]) -> tuple[str, ...]:
    accuracies = {panel.title: of.knn.report for panel, of in zip(panels, numbers, strict=True)}
    if "label only" not in accuracies:
        return ()
    chance = 1 / int(panels[0].labels.unique().numel())
    only, null, wrong = (accuracies[name] for name in ("label only", "ours, null label", "wrong label, by given"))
    leaks = only.low > chance
    return (
        f"With the label only, over noise, kNN accuracy is {only.value:.2f} (chance {chance:.2f}); with a wrong label, "
        f"that label is predicted with {wrong.value:.2f}: the feature {'contains' if leaks else 'does not contain'} "
        f"the label regardless of the image. With the null label, the same feature has {null.value:.2f}. So the "
        f"clusters of a guided feature {'are no evidence about the image' if leaks else 'are not only the label'}.",
    )


def _alt(panels: Sequence[Panel], numbers: Sequence[Separability]) -> str:
    accuracies = ", ".join(f"{p.title} {of.knn.report.value:.2f}" for p, of in zip(panels, numbers, strict=True))
    return f"Points of images by t-SNE of guiding features, coloured by class. kNN accuracy: {accuracies}."
