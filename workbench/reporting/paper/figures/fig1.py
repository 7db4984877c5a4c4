"""Fig. 1: a shallow and a deeper layer over training, and the guiding features of the methods side by side.

The paper shows two layers of the plain model during training: the shallow layer becomes structured more slowly than
the deeper one. Beside them are the features that the methods align with: REPA's come from an external encoder,
LayerSync's and SRA's from the model in training, ours from a frozen model with guidance towards the class.

Look for whether the shallow layer changes less from step to step, and whether one target follows the object more
closely than another. The numbers below measure how well classes separate in the same layers.

At laptop scale a map has 4 x 4 tokens, too few to show an object; at scenes scale it has 8 x 8.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workbench.evaluation.objects import ObjectSeparation
from workbench.evaluation.statistics import Share
from workbench.features.extract import extract
from workbench.lab.views.maps import maps
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import inconclusive
from workbench.reporting.paper.features import (
    METHODS,
    OBJECT_COLUMNS,
    TITLES,
    Objects,
    Target,
    aligned_maps,
    alignment_targets,
    class_names,
    joint_maps,
    layers_at,
    measured,
    object_cells,
    objects_of,
    rows_and_images,
    spatial,
)
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION, presets_of, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of
from workbench.runs.store import Run

TARGETS = ("repa", "layersync", "sra", "vae", "guided")
_SHARES = (8 / 28, 16 / 28)  # the paper's layers 8 and 16, of the 28 of SiT-XL


@timed
def fig1(
    scale: str = "laptop",
    layers: Sequence[int] | None = None,
    t: float | None = None,
    images: int | Sequence[int] = 4,
    eval_images: int = 200,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """Fig. 1 (section 1): token maps of two layers of the plain model at every step kept, and targets side by side.

    `layers` defaults to those at the paper's fractions of the depth, `t` to its 0.6. Class separation is measured on
    `eval_images` images. All runs have the same seed: `seed`, or by default the one of `seeds` that most runs have.
    """
    t = paper_numbers().stated_value("Fig. 1", "t") if t is None else t
    presets = presets_of(scale, METHODS)
    found = runs_of(scale, presets, seeds, root, overrides, weights=True)
    runs = found.seed(list(presets), seed)
    plain = runs.get("plain")
    if plain is None:
        caption = found.why_missing("runs of the plain model and of the methods", presets, scale)
        return Artifact("fig1", "Fig. 1: layers over training, and guiding features", caption, missing=found.missing)
    shown = layers_at(plain, _SHARES) if layers is None else list(layers)
    rows, pictures, labels = rows_and_images(plain, images)
    objects = objects_of(plain, rows, eval_images)
    known = objects if isinstance(objects, Objects) else None
    targets, ours = alignment_targets(scale, runs, known.rows if known else rows, t, TARGETS)
    steps = [checkpoint.step for checkpoint in plain.checkpoints]
    names = [class_names(plain)[label] for label in labels.tolist()]
    table, numbers, separation = _progress(plain, steps, shown, t, eval_images, known)
    of_targets = {target.name: known.measured(target.tokens) for target in targets} if known else {}
    view = maps(plain, rows, layers=shown, times=[t], steps="all", page_mb=2.0, progress=_quiet)
    return Artifact(
        name="fig1",
        title="Fig. 1: layers over training, and guiding features",
        caption=(
            f"Left: tokens of layers {shown[0]} and {shown[-1]} of {plain.config.name}, seed "
            f"{plain.config.training.seed}, at t = {t:g} with the true label, three principal components as red, green "
            f"and blue, one basis per layer for all steps and {len(rows)} images. Right: the target of each method, "
            f"each in its own basis, Procrustes-aligned with REPA's. {_sources(targets)}."
            f"{f' {known.caption}' if known else ''}"
        ),
        figures={
            "layers": _layers(plain, rows, pictures, names, shown, steps, t, known, separation),
            "guides": _targets(targets, pictures, names, known, of_targets),
        },
        alts={
            "layers": f"Token maps of layers {', '.join(map(str, shown))} of {plain.config.name} at steps "
            f"{', '.join(map(str, steps))}, on {', '.join(names)}.",
            "guides": f"Token maps of the guiding features {', '.join(TITLES[g.name] for g in targets)}, same images.",
        },
        tables={"layers": table} | ({"guides": _objects(targets, of_targets, t)} if of_targets else {}),
        views={"layers": view},
        claims=tuple(_claims(numbers, shown, steps)),
        remarks=(*_spatial(targets), *([objects] if isinstance(objects, str) else [])),
        runs=distinct([plain, *([ours.run] if ours else []), *(runs[n] for n in ("layersync", "sra") if n in runs)]),
        missing=found.missing,
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def _layers(
    plain: Run,
    rows: Sequence[int],
    pictures: np.ndarray,
    names: Sequence[str],
    layers: Sequence[int],
    steps: Sequence[int],
    t: float,
    objects: Objects | None,
    separation: Mapping[tuple[int, int], ObjectSeparation],
) -> Figure:
    by_layer = {}
    grids = [extract(plain, rows, layers, [t], step=step, labels=("true",), root=plain.folder.parent) for step in steps]
    for layer in layers:
        by_layer[layer] = joint_maps([grid.read(layer, t, "true") for grid in grids])
    lines = [[pictures[i], *(of[i] for layer in layers for of in by_layer[layer])] for i in range(len(rows))]
    columns = ["image", *(f"layer {layer}\nstep {step:,}" for layer in layers for step in steps)]
    found = [separation[layer, step] for layer in layers for step in steps] if objects else []
    return style.grid(lines, names, columns, cell=min(0.8, 5.9 / len(columns)), **_marks(objects, found))


def _marks(objects: Objects | None, found: Sequence[ObjectSeparation]) -> dict[str, Any]:
    """Outlines and notes of a grid whose first column are the images."""
    if objects is None:
        return {}
    notes = zip(*(objects.notes(one) for one in found), strict=True)
    return {"outlines": objects.outlines, "notes": [["", *row] for row in notes]}


def _targets(
    targets: Sequence[Target],
    pictures: np.ndarray,
    names: Sequence[str],
    objects: Objects | None,
    found: Mapping[str, ObjectSeparation],
) -> Figure:
    reference, painted = None, []
    for target in targets:
        maps, coordinates, share = aligned_maps(target.tokens[: len(pictures)], reference)
        reference = coordinates if reference is None else reference
        painted.append((f"{TITLES[target.name]}\n{share:.0%} of variance", maps))
    lines = [[pictures[i], *(maps[i] for _, maps in painted)] for i in range(len(pictures))]
    marks = _marks(objects, [found[target.name] for target in targets] if objects else [])
    return style.grid(lines, names, ["image", *(title for title, _ in painted)], cell=0.85, **marks)


def _objects(targets: Sequence[Target], found: Mapping[str, ObjectSeparation], t: float) -> Table:
    """How well tokens on objects separate from the others in each target."""
    lines = []
    for target in targets:
        own = found[target.name]
        probe, overlap = (Number(of.value, 3, of.low, of.high, of.count) for of in (own.probe_same_place, own.iou))
        lines.append((TITLES[target.name], *object_cells(own), probe, probe.interval, overlap, overlap.interval))
    columns = (
        Column("target"),
        *OBJECT_COLUMNS,
        Column("linear probe of tokens", "number", "area under ROC, same place"),
        Column("95 % interval, probe"),
        Column("intersection over union", "number"),
        Column("95 % interval, union"),
    )
    masks = next(iter(found.values())).masks
    caption = (
        f"Object against background in tokens of the guiding features at t = {t:g}: the best of three principal "
        f"components and a linear probe, fitted on half of the images and measured on the other {len(masks.held)}, "
        "between tokens at the same place, where chance is one half; intervals are over images. By the place of a "
        f"token alone the intersection over union is {masks.iou_of_place:.2f}."
    )
    return Table(caption, columns, rows_of(lines), keys=1)


def _progress(
    plain: Run, steps: Sequence[int], layers: Sequence[int], t: float, eval_images: int, objects: Objects | None
) -> tuple[Table, dict[tuple[int, int], Share], dict[tuple[int, int], ObjectSeparation]]:
    """kNN accuracy of each layer and step with the null label, as a table and by (layer, step).

    With masks also the separation of objects in the features that the maps show, those with the true label.
    """
    rows, _, labels = rows_and_images(plain, eval_images)
    numbers: dict[tuple[int, int], Share] = {}
    separation: dict[tuple[int, int], ObjectSeparation] = {}
    lines = []
    for step in steps:
        features = extract(plain, rows, layers, [t], step=step, labels=("null",), root=plain.folder.parent)
        shown = objects and extract(
            plain, objects.rows, layers, [t], step=step, labels=("true",), root=plain.folder.parent
        )
        for layer in layers:
            tokens = features.read(layer, t, "null").float()
            knn, near = measured(tokens.mean(dim=1), labels).knn.report, spatial(tokens)
            numbers[layer, step] = knn
            accuracy = Number(knn.value, 3, knn.low, knn.high, knn.count)
            if objects and shown:
                separation[layer, step] = objects.measured(shown.read(layer, t, "true"))
            own = object_cells(separation.get((layer, step)))
            lines.append((layer, step, accuracy, accuracy.interval, None if near is None else Number(near, 3), *own))
    columns = (
        Column("layer", "count"),
        Column("step", "count"),
        Column("kNN accuracy", "number", "null label"),
        Column("95 % interval"),
        Column("local-distant similarity", "number"),
        *(OBJECT_COLUMNS if objects else ()),
    )
    caption = f"How well classes separate in mean tokens of {len(rows)} images over training, t = {t:g}."
    return Table(caption, columns, rows_of(lines), keys=2), numbers, separation


def _claims(numbers: Mapping[tuple[int, int], Share], layers: Sequence[int], steps: Sequence[int]) -> Iterator[Claim]:
    shallow, deep = layers[0], layers[-1]
    first, last = steps[0], steps[-1]
    gains = [numbers[layer, last].value - numbers[layer, first].value for layer in (shallow, deep)]
    since = f"; since step {first:,} it changed by {gains[0]:+.2f} and {gains[1]:+.2f}" if first != last else ""
    apart = numbers[shallow, last].high < numbers[deep, last].low
    against = numbers[shallow, last].low > numbers[deep, last].high
    verdict = "holds here" if apart else "does not hold here" if against else inconclusive(1)
    yield Claim(
        f"The shallow layer ({shallow}) separates classes less well than the deeper one ({deep})",
        verdict,
        f"kNN accuracy at step {last:,}: {numbers[shallow, last].value:.2f} and {numbers[deep, last].value:.2f} of "
        f"{numbers[deep, last].count} held-out images{since}. One training seed; intervals are over held-out images.",
    )


def _sources(targets: Sequence[Target]) -> str:
    return "; ".join(f"{TITLES[target.name]}: {target.of}" for target in targets)


def _spatial(targets: Sequence[Target]) -> tuple[str, ...]:
    values = {TITLES[target.name]: spatial(target.tokens) for target in targets}
    known = [f"{name} {value:.2f}" for name, value in values.items() if value is not None]
    return (f"Local-distant similarity of the guiding features: {', '.join(known)}.",) if known else ()
