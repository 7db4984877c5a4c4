"""Beyond the paper: whether guidance brings the object forward, measured with the objects' masks.

The paper says that features guided towards the class highlight its region and calm the background. With masks of the
objects this is a number: how well the components of the tokens separate those on the object from those beside it, for
every guidance scale w.

Look for a curve of the true class that rises above w = 0, and compare it with those of a wrong class and of the class
over pure noise. A curve that falls at large w says that too much guidance undoes the gain. If a curve rises at the same
place and not within a class, guidance has written the usual shape of the class into the feature and not the object.

The components, which of them and the threshold are chosen on one half of the images and measured on the other. Objects
are more often in the middle than at the edge. Tokens are therefore compared with tokens at the same place of other
images, where a component that is only position scores one half. The label tells the shape of the object too, so two
of the claims compare images of one class only.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from workbench.config import load_config
from workbench.evaluation.measures import ENDS, MeasureGrid, Record, measure_objects
from workbench.evaluation.statistics import Estimate
from workbench.features.extract import extract
from workbench.features.grid import LABELS, FeatureGrid
from workbench.lab import palette
from workbench.lab.measured import VERSIONS as NAMES
from workbench.lab.views.maps import maps
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, Missing, distinct, timed
from workbench.reporting.paper.claims import seed_verdict
from workbench.reporting.paper.features import (
    Objects,
    aligned_maps,
    class_names,
    layers_at,
    objects_of,
    rows_and_images,
    signed,
)
from workbench.reporting.paper.runs import ABLATION, PRESETS, presets_of, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of

SCALES = (0.0, 1.0, 3.0, 5.0, 10.0, 30.0)
_SHARES = (1 / 6, 1 / 2, 2 / 3, 1.0)
# Versions of a feature, with the palette's name of their colour and their name in the legend.
_VERSIONS = {
    "null": ("null", NAMES["null"]),
    "true": ("true", NAMES["true"]),
    "wrong": ("wrong_by_true", "wrong label"),
    "label_only": ("label_only", NAMES["label_only"]),
}
_MEASURES = (
    "object_auc_same_place",
    "object_auc_same_place_gain",
    "object_auc_same_class",
    "object_auc_same_class_gain",
    "object_probe_same_place",
    "object_probe_same_class",
    "object_auc_best",
    "object_auc_chance",
    "object_iou",
    "object_iou_chance",
)
_CURVES = {
    "place": ("object_auc_same_place", "same place"),
    "class": ("object_auc_same_class", "same place and class"),
}
_TITLE = "Object and background in guided features"


@timed
def objects(
    scale: str = "laptop",
    t: float = 0.5,
    layers: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    images: int | Sequence[int] = 4,
    eval_images: int = 200,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    view: bool = True,
) -> Artifact:
    """Separation of object and background in the guiding model over w, with maps, intervals and label controls.

    `layers` defaults to four over the depth and the one that guides, which is drawn.
    """
    found = runs_of(scale, presets_of(scale, ["teacher"]), seeds, root, overrides, weights=True)
    runs = found.seed(["teacher"], seed)
    if not runs:
        caption = found.why_missing("a run of the guiding model", ["teacher"], scale)
        return Artifact("objects", _TITLE, caption, missing=found.missing)
    teacher = runs["teacher"]
    guided = load_config(f"{scale}/{PRESETS[scale]['guided']}").objective.options
    layer, own = guided["teacher_layer"], float(guided["guidance_scale"])
    rows, pictures, labels = rows_and_images(teacher, images)
    known = objects_of(teacher, rows, eval_images)
    if isinstance(known, str):
        command = f"workbench train {scale}/{PRESETS[scale]['teacher']} data.name=scenes data.size=32"
        missing = (*found.missing, Missing("masks of the objects in the images", command))
        return Artifact("objects", _TITLE, known, missing=missing)
    chosen = sorted({layer, *(layers_at(teacher, _SHARES) if layers is None else layers)})
    root = teacher.folder.parent
    features = extract(teacher, known.rows, chosen, [t], labels=tuple(LABELS), root=root)
    scales = sorted({0.0, *map(float, scales), own})
    grid = measure_objects(features, known.masks, scales=scales, processes=1)
    views = {}
    if view:
        views["maps"] = maps(teacher, rows, layers=[layer], times=[t], w=(0.0, max(scales)), progress=_quiet)
    held, names = len(known.masks.held), [class_names(teacher)[label] for label in labels.tolist()]
    return Artifact(
        name="objects",
        title=_TITLE,
        caption=(
            f"Tokens f_u + w (f_c - f_u) of layer {layer} of {teacher.config.name}, seed "
            f"{teacher.config.training.seed}, step {teacher.checkpoint().step:,}, t = {t:g}: three principal "
            f"components at each w, Procrustes-aligned with those of w = {scales[0]:g}. {known.caption} The "
            f"curves are of {held} images, with 95 % bootstrap intervals over images; chance in grey."
        ),
        figures={
            "maps": _maps(features, known, pictures, names, layer, t, scales),
            **{name: _curves(grid, layer, *of) for name, of in _CURVES.items()},
        },
        alts={
            "maps": f"Token maps at guidance scales {', '.join(f'{w:g}' for w in scales)} with the objects' outlines.",
            **{name: _alt(grid, layer, *of) for name, of in _CURVES.items()},
        },
        tables={"separation": _table(grid), "difference": _differences(grid)},
        views=views,
        claims=tuple(_claims(grid, layer, own)),
        remarks=(f"{_TITLE} of one training seed; {held} images are measured, {len(known.masks.fit)} fitted on.",),
        runs=distinct(runs.values()),
        missing=found.missing,
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def _maps(
    features: FeatureGrid,
    objects: Objects,
    pictures: np.ndarray,
    names: Sequence[str],
    layer: int,
    t: float,
    scales: Sequence[float],
) -> Figure:
    reference, painted, notes = None, [], []
    for scale in scales:
        tokens = features.guided(layer, t, scale)
        shown, coordinates, _ = aligned_maps(tokens[: len(pictures)], reference)
        reference = coordinates if reference is None else reference
        painted.append(shown)
        notes.append(objects.notes(objects.measured(tokens)))
    lines = [[pictures[i], *(of[i] for of in painted)] for i in range(len(pictures))]
    under = [["", *row] for row in zip(*notes, strict=True)]
    columns = ["image", *(f"w = {scale:g}" for scale in scales)]
    return style.grid(lines, names, columns, cell=min(0.85, 6.2 / len(columns)), outlines=objects.outlines, notes=under)


def _record(grid: MeasureGrid, layer: int, version: str, measure: str, scale: float) -> Record | None:
    """Record of one cell; that of f_u has no scale, and None if there is none."""
    where = {"layer": layer, "version": version, "measure": measure, "scale": None if version == "null" else scale}
    return next((record for record in grid.records if where.items() <= record.items()), None)


def _curves(grid: MeasureGrid, layer: int, measure: str, what: str) -> Figure:
    curves = []
    for version, (look, name) in _VERSIONS.items():
        found = [_record(grid, layer, version, measure, scale) for scale in grid.scales]
        ends = ([np.nan if r is None or r[key] is None else r[key] for r in found] for key in ENDS)
        curves.append(style.Curve(name, palette.VERSIONS[look], grid.scales, *ends))
    figure = style.lines(curves, "guidance scale w", f"area under ROC, {what}", width=style.PAGE)
    axis = figure.axes[0]
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks(grid.scales, [f"{scale:g}" for scale in grid.scales])
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(grid.scales) - 0.15, 1.1 * max(grid.scales))
    axis.axhline(0.5, color=style.GREY, linewidth=1, linestyle=(0, (1, 2)))
    axis.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    return figure


def _number(record: Record | None, signed: bool = False) -> Number | None:
    if record is None or record["value"] is None:
        return None
    return Number(record["value"], 3, record["low"], record["high"], record["count"], signed=signed)


def _table(grid: MeasureGrid) -> Table:
    lines = []
    for layer in grid.layers:
        for version, (_, name) in _VERSIONS.items():
            for scale in grid.scales[: 1 if version == "null" else None]:
                area, gain, in_class, class_gain, *others = (
                    _number(_record(grid, layer, version, measure, scale), signed=measure.endswith("gain"))
                    for measure in _MEASURES
                )
                w = None if version == "null" else Number(scale, 1)
                numbers = [area, gain, in_class, class_gain]
                spans = [cell for number in numbers for cell in (number, number and number.interval)]
                lines.append((layer, name, w, *spans, *others))
    columns = (
        Column("layer", "count"),
        Column("features"),
        Column("w", "number"),
        Column("best of three components, same place", "number", "area under ROC"),
        Column("95 % interval"),
        Column("gain over f_u", "number"),
        Column("95 % interval, gain"),
        Column("same place and class", "number", "area under ROC"),
        Column("95 % interval, same class"),
        Column("gain over f_u, same class", "number"),
        Column("95 % interval, gain in the class"),
        Column("linear probe, same place", "number", "area under ROC"),
        Column("linear probe, same place and class", "number", "area under ROC"),
        Column("best of three components, all places", "number", "area under ROC"),
        Column("the same by the place alone", "number"),
        Column("intersection over union", "number"),
        Column("union by the place alone", "number"),
    )
    caption = (
        "Tokens on the object against those beside it, by layer and guidance scale; intervals are over held-out "
        "images. At the same place chance is one half; over all places, compare with what the place of a token alone "
        "gives."
    )
    return Table(caption, columns, rows_of(lines), keys=3)


def _differences(grid: MeasureGrid) -> Table:
    lines = []
    for layer in grid.layers:
        for version in ("true", "wrong", "label_only"):
            share, area, ratio, at_place = (
                _number(_record(grid, layer, version, f"difference_{of}", 1.0))
                for of in ("share", "area", "ratio", "ratio_same_place")
            )
            spans = (ratio and ratio.interval, at_place and at_place.interval)
            lines.append((layer, _VERSIONS[version][1], share, area, ratio, spans[0], at_place, spans[1]))
    columns = (
        Column("layer", "count"),
        Column("features"),
        Column("share of |f_c - f_u| on the object", "number"),
        Column("object's share of the tokens", "number"),
        Column("mean on it over mean beside it", "number"),
        Column("95 % interval"),
        Column("the same ratio at the same place", "number"),
        Column("95 % interval, same place"),
    )
    caption = "Where f_c - f_u, the direction of guidance, is large; intervals are over images."
    return Table(caption, columns, rows_of(lines), keys=2)


def _claims(grid: MeasureGrid, layer: int, own: float) -> Iterator[Claim]:
    f_u, f_c = (
        ("features without a class (f_u)", "gain"),
        ("those with the class and no guidance (f_c)", "gain_over_f_c"),
    )
    for among, alike in (("", "place"), (" among images of one class", "class")):
        for other, suffix in (f_u, f_c):
            gain = _record(grid, layer, "true", f"object_auc_same_{alike}_{suffix}", own)
            if gain is None or gain["value"] is None:
                continue
            difference = Estimate(*(gain[key] for key in (*ENDS, "count")))
            yield Claim(
                f"Guidance of w = {own:g} separates object and background{among} better than {other}",
                seed_verdict(difference.low > 0, difference.high < 0),
                f"Area under the ROC curve at the same place{among}, layer {layer}: {signed(difference, 3)} on the "
                f"same {difference.count} held-out images.",
            )
    ratio = _record(grid, layer, "true", "difference_ratio_same_place", 1.0)
    if ratio and ratio["value"] is not None:
        yield Claim(
            "The direction of guidance, f_c - f_u, is larger on the object than at the same place without it",
            seed_verdict(ratio["low"] > 1, ratio["high"] < 1),
            f"Layer {layer}: {ratio['value']:.2f} times as large [{ratio['low']:.2f}, {ratio['high']:.2f}], "
            f"{ratio['count']} images.",
        )


def _alt(grid: MeasureGrid, layer: int, measure: str, what: str) -> str:
    parts = []
    for version, (_, name) in _VERSIONS.items():
        ends = (_number(_record(grid, layer, version, measure, scale)) for scale in (grid.scales[0], grid.scales[-1]))
        parts.append(f"{name} {' to '.join('undefined' if end is None else end.text for end in ends)}")
    span = f"from w = {grid.scales[0]:g} to {grid.scales[-1]:g}"
    return f"Area under the ROC curve, {what}, {span}: {', '.join(parts)}."
