"""Token maps over layers of a plain and a guided model at one time, for Figs. 9 and 10."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from workbench.evaluation.objects import ObjectSeparation
from workbench.evaluation.statistics import Estimate, Share
from workbench.features.extract import extract
from workbench.lab import palette
from workbench.lab.views.compare_maps import compare_maps
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import inconclusive
from workbench.reporting.paper.features import (
    OBJECT_COLUMNS,
    Objects,
    aligned_maps,
    class_names,
    layers_at,
    measured,
    object_cells,
    objects_of,
    rows_and_images,
    signed,
    spatial,
)
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION, FoundRuns, presets_of, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of
from workbench.runs.store import Run

METHODS = ("plain", "guided")
_SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)


def over_layers(name: str) -> Callable[..., Artifact]:
    """The function that makes the figure `name`."""

    def make(
        scale: str = "laptop",
        layers: Sequence[int] | None = None,
        t: float | None = None,
        images: int | Sequence[int] = 3,
        eval_images: int = 200,
        seed: int | None = None,
        seeds: Sequence[int] = ABLATION,
        root: Path | None = None,
        overrides: Sequence[str] = (),
    ) -> Artifact:
        """Section 5: token maps over layers, plain against guided, and how well classes separate in them.

        `layers` defaults to six, spread over the depth, `t` to the paper's. The guided model's maps are
        Procrustes-aligned with the plain one's. Accuracy and similarity are measured on `eval_images` images.
        """
        found = runs_of(scale, presets_of(scale, METHODS), seeds, root, overrides, weights=True)
        return _artifact(name, scale, found, layers=layers, t=t, images=images, eval_images=eval_images, seed=seed)

    make.__name__ = make.__qualname__ = name
    return timed(make)


def _artifact(
    name: str,
    scale: str,
    found: FoundRuns,
    *,
    layers: Sequence[int] | None,
    t: float | None,
    images: int | Sequence[int],
    eval_images: int,
    seed: int | None,
) -> Artifact:
    figure = f"Fig. {name.removeprefix('fig')}"
    t = paper_numbers().stated_value(figure, "t") if t is None else t
    title = f"{figure}: features over layers, t = {t:g}"
    runs = found.seed(METHODS, seed)
    if len(runs) < len(METHODS):
        caption = found.why_missing("a plain and a guided run", METHODS, scale)
        return Artifact(name, title, caption, missing=found.missing)
    plain = runs["plain"]
    step = min(run.checkpoint().step for run in runs.values())
    shown = layers_at(plain, _SHARES) if layers is None else list(layers)
    rows, pictures, labels = rows_and_images(plain, images)
    names = [class_names(plain)[label] for label in labels.tolist()]
    objects = objects_of(plain, rows, eval_images)
    known = objects if isinstance(objects, Objects) else None
    table, numbers, separation = _numbers(runs, step, shown, t, eval_images, known)
    view = compare_maps(list(runs.values()), rows, layers=shown, times=[t], steps=step, page_mb=2.0, progress=_quiet)
    return Artifact(
        name=name,
        title=title,
        caption=(
            f"Tokens of {plain.config.name} (above) and {runs['guided'].config.name} (below) at step {step:,}, seed "
            f"{plain.config.training.seed}, t = {t:g}, with the true label: three principal components of each layer "
            f"over {len(rows)} images, the guided model's Procrustes-aligned with the plain one's. The paper's are "
            f"SiT-XL/2 at 400K steps.{f' {known.caption}' if known else ''}"
        ),
        figures={"layers": _draw(runs, step, rows, pictures, names, shown, t, known, separation)},
        alts={
            "layers": f"Token maps of layers {_listed(shown)} of the plain and the guided model, on {_listed(names)}."
        },
        tables={"layers": table},
        views={"layers": view},
        claims=(_claim(numbers, shown), *([_object_claim(separation, shown)] if known else [])),
        remarks=(objects,) if isinstance(objects, str) else (),
        runs=distinct(runs.values()),
        missing=found.missing,
    )


def _listed(values: Sequence[int | str]) -> str:
    return ", ".join(map(str, values))


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def _draw(
    runs: Mapping[str, Run],
    step: int,
    rows: Sequence[int],
    pictures: np.ndarray,
    names: Sequence[str],
    layers: Sequence[int],
    t: float,
    objects: Objects | None,
    separation: Mapping[tuple[str, int], ObjectSeparation],
) -> Figure:
    grids = {
        method: extract(run, rows, layers, [t], step=step, labels=("true",), root=run.folder.parent)
        for method, run in runs.items()
    }
    painted: dict[str, list[np.ndarray]] = {method: [] for method in runs}
    for layer in layers:
        reference = None
        for method, grid in grids.items():
            maps, coordinates, _ = aligned_maps(grid.read(layer, t, "true"), reference)
            reference = coordinates if reference is None else reference
            painted[method].append(maps)
    lines, labels, colours = [], [], []
    under = {key: objects.notes(found) for key, found in separation.items()} if objects else {}
    outlines, notes = [], []
    for image, name in enumerate(names):
        for method in runs:
            lines.append([pictures[image], *(maps[image] for maps in painted[method])])
            labels.append(f"{name}, {method}")
            colours.append(palette.METHODS[method]["color"])
            if objects:
                outlines.append(objects.outlines[image])
                notes.append(["", *(under[method, layer][image] for layer in layers)])
    columns = ["image", *(f"layer {layer}" for layer in layers)]
    cell = min(0.72, 5.6 / len(columns))
    return style.grid(lines, labels, columns, row_colours=colours, cell=cell, outlines=outlines, notes=notes)


def _numbers(
    runs: Mapping[str, Run],
    step: int,
    layers: Sequence[int],
    t: float,
    eval_images: int,
    objects: Objects | None,
) -> tuple[Table, dict[tuple[str, int], Share], dict[tuple[str, int], ObjectSeparation]]:
    """kNN accuracy with the null label and local-distant similarity: a table, and accuracy by (method, layer).

    With masks also the separation of objects in the features that the maps show, those with the true label.
    """
    numbers: dict[tuple[str, int], Share] = {}
    separation: dict[tuple[str, int], ObjectSeparation] = {}
    lines = []
    for method, run in runs.items():
        rows, _, labels = rows_and_images(run, eval_images)
        root = run.folder.parent
        features = extract(run, rows, layers, [t], step=step, labels=("null",), root=root)
        shown = objects and extract(run, objects.rows, layers, [t], step=step, labels=("true",), root=root)
        for layer in layers:
            tokens = features.read(layer, t, "null").float()
            knn, near = measured(tokens.mean(dim=1), labels).knn.report, spatial(tokens)
            numbers[method, layer] = knn
            accuracy = Number(knn.value, 3, knn.low, knn.high, knn.count)
            similarity = None if near is None else Number(near, 3)
            if objects and shown:
                separation[method, layer] = objects.measured(shown.read(layer, t, "true"))
            own = object_cells(separation.get((method, layer)))
            lines.append((style.NAMES[method], layer, accuracy, accuracy.interval, similarity, *own))
    columns = (
        Column("model"),
        Column("layer", "count"),
        Column("kNN accuracy", "number", "null label"),
        Column("95 % interval"),
        Column("local-distant similarity", "number"),
        *(OBJECT_COLUMNS if objects else ()),
    )
    caption = f"Mean tokens of {eval_images} images, t = {t:g}, step {step:,}; intervals are of the held-out images."
    return Table(caption, columns, rows_of(lines), keys=2), numbers, separation


def _object_claim(separation: Mapping[tuple[str, int], ObjectSeparation], layers: Sequence[int]) -> Claim:
    """Whether objects separate better in the guided model, by intervals of the difference on the same images.

    Within a class, as the label of the features tells the shape of the object.
    """
    gains = {layer: separation["guided", layer].less(separation["plain", layer], "auc_same_class") for layer in layers}
    better, worse = ([layer for layer in layers if test(gains[layer])] for test in (_above, _below))
    verdict = inconclusive(1)
    if better and not worse:
        verdict = f"holds for this seed in layer{'s'[: len(better) > 1]} {_listed(better)}"
    elif worse and not better:
        verdict = f"does not hold for this seed in layer{'s'[: len(worse) > 1]} {_listed(worse)}"
    listed = ", ".join(f"{layer}: {signed(of, 2)}" for layer, of in gains.items())
    return Claim(
        "Features of the guided model are more compact: their components separate object and background better",
        verdict,
        f"Area under the ROC curve at the same place within a class, guided minus plain, by layer: {listed}; 95 % "
        f"intervals over {gains[layers[0]].count} held-out images.",
    )


def _above(difference: Estimate) -> bool:
    return difference.low > 0


def _below(difference: Estimate) -> bool:
    return difference.high < 0


def _claim(numbers: Mapping[tuple[str, int], Share], layers: Sequence[int]) -> Claim:
    better = [layer for layer in layers if numbers["guided", layer].low > numbers["plain", layer].high]
    worse = [layer for layer in layers if numbers["guided", layer].high < numbers["plain", layer].low]
    verdict = inconclusive(1)
    if better and not worse:
        verdict = f"holds for this seed in layer{'s'[: len(better) > 1]} {', '.join(map(str, better))}"
    elif worse and not better:
        verdict = f"does not hold for this seed in layer{'s'[: len(worse) > 1]} {', '.join(map(str, worse))}"
    means = {
        method: sum(numbers[method, layer].value for layer in layers) / len(layers) for method in ("plain", "guided")
    }
    return Claim(
        "Features of the guided model separate classes better",
        verdict,
        f"kNN without the label, mean over {len(layers)} layers: {means['guided']:.2f} guided, {means['plain']:.2f} "
        f"plain, of {numbers['plain', layers[0]].count} held-out images; only layers whose 95 % intervals do not "
        "overlap count.",
    )
