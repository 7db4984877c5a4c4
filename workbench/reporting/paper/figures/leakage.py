"""Beyond the paper: the advantage of the guided feature under leakage controls.

How much of the guided feature's advantage remains with the null label, a wrong label, and the label only, over pure
noise. The larger the guidance scale, the more of the feature is the class given as its condition.

A target that contains the class is not a bad target: the student has to predict it from a noisy image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from workbench.config import load_config
from workbench.evaluation.leakage import VERSIONS
from workbench.evaluation.measures import MeasureGrid, Record, measure_grid
from workbench.features.extract import extract
from workbench.features.grid import LABELS
from workbench.lab import palette
from workbench.lab.measured import VERSIONS as NAMES
from workbench.lab.views.leakage import leakage as leakage_view
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import seed_verdict
from workbench.reporting.paper.features import rows_and_images
from workbench.reporting.paper.runs import ABLATION, PRESETS, presets_of, runs_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of


@timed
def leakage(
    scale: str = "laptop",
    t: float = 0.4,
    scales: Sequence[float] = (0.0, 1.0, 5.0, 10.0, 30.0),
    images: int = 300,
    layer: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    view: bool = True,
) -> Artifact:
    """kNN accuracy of the guiding model's feature against the guidance scale, with the controls (Fig. 2's t = 0.4).

    `layer` defaults to the one that guides.
    """
    found = runs_of(scale, presets_of(scale, ["teacher"]), seeds, root, overrides, weights=True)
    runs = found.seed(["teacher"], seed)
    title = "The guided advantage under leakage controls"
    if not runs:
        caption = found.why_missing("a run of the guiding model", ["teacher"], scale)
        return Artifact("leakage", title, caption, missing=found.missing)
    teacher = runs["teacher"]
    guiding = load_config(f"{scale}/{PRESETS[scale]['guided']}").objective.options["teacher_layer"]
    layer = guiding if layer is None else layer
    rows, _, labels = rows_and_images(teacher, images)
    root = teacher.folder.parent
    features = extract(teacher, rows, [layer], [t], labels=tuple(LABELS), pooling="mean", root=root)
    near = max(1, min(20, len(rows) // 8))
    grid = measure_grid(features, scales=scales, neighbours=near, processes=1)
    chance = 1 / int(labels.unique().numel())
    claims, views = tuple(_claims(grid, chance)), {}
    if view:
        views["leakage"] = leakage_view(
            teacher, min(images, 200), layers=[layer], times=[t], scales=scales, mapped=3, progress=_quiet
        )
    return Artifact(
        name="leakage",
        title=title,
        caption=(
            f"kNN accuracy of mean tokens f_u + w (f_c - f_u) of layer {layer} of {teacher.config.name}, seed "
            f"{teacher.config.training.seed}, t = {t:g}, {len(rows)} images: with the null, the true and a wrong "
            "label, and with the label only, over noise. 95 % Wilson intervals over held-out images; chance in grey."
        ),
        figures={"knn": _draw(grid, chance)},
        alts={"knn": _alt(grid)},
        tables={"knn": _table(grid)},
        views=views,
        claims=claims[:1],
        remarks=tuple(claim.sentence for claim in claims[1:]),
        runs=distinct(runs.values()),
        missing=found.missing,
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


def _records(grid: MeasureGrid, version: str) -> list[Record]:
    """kNN records of a version by scale; the one of f_u, which has no scale, is repeated at each."""
    records = [r for r in grid.records if (r["measure"], r["version"]) == ("knn", version)]
    if version == "null":
        return [{**records[0], "scale": scale} for scale in grid.scales]
    return sorted((r for r in records if r["scale"] is not None), key=lambda record: record["scale"])


def _draw(grid: MeasureGrid, chance: float) -> Figure:
    curves = []
    for version in VERSIONS:
        records = _records(grid, version)
        numbers = ([r[key] for r in records] for key in ("scale", "value", "low", "high"))
        curves.append(style.Curve(NAMES[version], palette.VERSIONS[version], *numbers))
    figure = style.lines(curves, "guidance scale w", "kNN accuracy", width=style.PAGE)
    axis = figure.axes[0]
    axis.axhline(chance, color=style.GREY, linewidth=1, linestyle=(0, (1, 2)))
    axis.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="top")
    axis.set_ylim(0, 1.03)
    return figure


def _table(grid: MeasureGrid) -> Table:
    columns = (Column("feature"), Column("w", "number"), Column("kNN accuracy", "number"), Column("95 % interval"))
    lines: list[tuple[str, Number | None, Number | None, str | None]] = []
    for version in VERSIONS:
        for record in _records(grid, version)[: 1 if version == "null" else None]:
            number = Number(record["value"], 3, record["low"], record["high"], record["count"])
            scale = None if version == "null" else Number(record["scale"], 1)
            lines.append((NAMES[version], scale, number, number.interval))
    shares = [r for r in grid.records if r["measure"] == "condition_share"]
    for record in sorted(shares, key=lambda one: one["scale"]):
        value = None if record["value"] is None else Number(record["value"], 3)
        lines.append(("share of the condition", Number(record["scale"], 1), value, None))
    caption = "kNN accuracy by guidance scale, and the share of the variance that the condition explains."
    return Table(caption, columns, rows_of(lines), keys=2)


def _claims(grid: MeasureGrid, chance: float) -> Iterator[Claim]:
    true, wrong, only = (_records(grid, name) for name in ("true", "wrong_by_true", "label_only"))
    null, top = _records(grid, "null")[0], true[-1]
    yield _claim(
        f"With the true label, guidance (w = {top['scale']:g}) separates classes better than none (w = 0)", top, null
    )
    yield _claim(
        f"With a wrong label, guidance (w = {wrong[-1]['scale']:g}) still separates the true classes better than none",
        wrong[-1],
        null,
    )
    leaks = only[-1]["low"] > chance
    yield Claim(
        "With the label only, over noise, kNN stays at chance",
        "does not hold for this seed" if leaks else "holds for this seed",
        f"kNN {only[-1]['value']:.2f} [{only[-1]['low']:.2f}, {only[-1]['high']:.2f}], chance {chance:.2f}: "
        f"{'the feature contains the label' if leaks else 'no evidence of the label'}.",
    )


def _claim(text: str, other: Record, base: Record) -> Claim:
    verdict = seed_verdict(other["low"] > base["high"], other["high"] < base["low"])
    spans = [f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in (other, base)]
    return Claim(text, verdict, f"kNN {spans[0]} against {spans[1]}; intervals are over held-out images.")


def _alt(grid: MeasureGrid) -> str:
    parts = [
        f"{NAMES[v]} {_records(grid, v)[0]['value']:.2f} to {_records(grid, v)[-1]['value']:.2f}" for v in VERSIONS
    ]
    return f"kNN accuracy from the smallest to the largest guidance scale: {', '.join(parts)}."
