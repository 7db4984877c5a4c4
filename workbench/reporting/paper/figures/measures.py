"""Beyond the paper: which measures of features correlate with the score, over all runs.

Which measures of features correlate with a better score, over all runs of all methods. Arguments by t-SNE assume that
separability does.

Runs of one method differ only by seed, so the intervals are too narrow.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from workbench.evaluation.similarity import rank_me, uniformity
from workbench.evaluation.statistics import Interval
from workbench.features.extract import extract
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, Missing, distinct, timed
from workbench.reporting.paper.features import (
    Objects,
    layers_at,
    measured,
    objects_of,
    rows_and_images,
    spatial,
)
from workbench.reporting.paper.figures.compute import METHODS
from workbench.reporting.paper.runs import ABLATION, PRESETS, presets_of, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery, common_steps, scores_of
from workbench.reporting.paper.table import Column, Number, Table, rows_of
from workbench.runs.store import Run

MEASURES = {
    "knn": "kNN accuracy",
    "lda": "LDA accuracy",
    "silhouette": "silhouette",
    "fisher": "Fisher ratio",
    "rank_me": "RankMe",
    "uniformity": "uniformity (lower is more uniform)",
    "spatial": "local-distant similarity",
    "object": "object against background at the same place",  # if the images have masks
}
Key = tuple[str, int]  # method, seed
Measured = Mapping[Key, Mapping[str, float | None]]  # measures by name
Correlated = Mapping[str, tuple[float, Interval, int] | None]  # by measure: Spearman's rho, its interval and n
_FEWEST = 4  # runs: Fisher's interval takes the root of n - 3


@timed
def measures(
    scale: str = "laptop",
    t: float = 0.5,
    layer: int | None = None,
    images: int = 200,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Spearman's correlation of each measure of mean tokens (null label) with the Frechet distance over all runs.

    `layer` defaults to that at two thirds of the depth; `evaluate` computes missing scores.
    """
    shown = presets_of(scale, METHODS)
    found = runs_of(scale, shown, seeds, root, overrides, weights=True)
    steps = common_steps(found.runs, dict.fromkeys(shown, "all"))
    scores = scores_of(found.runs, "fid", detector=DETECTORS[scale], steps=steps, query=ScoreQuery(evaluate=evaluate))
    keys = [(method, seed) for method, by_seed in scores.values.items() for seed in by_seed]
    title, missing = "Measures of features and the score", (*found.missing, *scores.missing)
    if len(keys) < _FEWEST:
        caption = found.why_missing(f"{_FEWEST} or more scored runs", shown, scale)
        few = () if found.without_weights else (_few(keys, scale),)
        return Artifact("measures", title, caption, missing=(*missing, *few))
    runs = {(method, seed): found.runs[method][seed] for method, seed in keys}
    known = {key: _measure(run, steps[key[0]], layer, t, images) for key, run in runs.items()}
    values = {(method, seed): scores.values[method][seed] for method, seed in keys}
    names = [
        name for name in MEASURES if name != "object" or any(by_name[name] is not None for by_name in known.values())
    ]
    rows = {name: _correlation(name, known, values) for name in names}
    return Artifact(
        name="measures",
        title=title,
        caption=(
            f"Spearman's correlation with {scores.name} of measures of mean tokens, null label, t = {t:g}, "
            f"{'layer at two thirds of the depth' if layer is None else f'layer {layer}'}, {images} images, over "
            f"{len(keys)} runs of {len(scores.values)} methods ({found.models}): {scores.how}. "
            "95 % intervals by Fisher's z; a negative correlation means that larger values go with better scores."
        ),
        figures={"correlation": _draw(rows)} if any(rows.values()) else {},
        alts={"correlation": _alt(rows)} if any(rows.values()) else {},
        tables={"correlation": _table(rows), "runs": _runs(names, known, values, scores.name)},
        remarks=(
            *(claim.sentence for claim in _claims(rows)),
            "Runs of one method differ only by seed, so fewer than n of them are independent and the intervals are too "
            f"narrow; {len(names)} measures were tried.",
        ),
        runs=distinct(runs.values()),
        missing=missing,
    )


def _measure(run: Run, step: int, layer: int | None, t: float, images: int) -> dict[str, float | None]:
    rows, _, labels = rows_and_images(run, images)
    layer = layers_at(run, [2 / 3])[0] if layer is None else layer
    tokens = extract(run, rows, [layer], [t], step=step, labels=("null",), root=run.folder.parent)
    features = tokens.read(layer, t, "null").float()
    means = features.mean(dim=1)
    separability = measured(means, labels)
    objects = objects_of(run, [], images)
    return {
        "knn": separability.knn.report.value,
        "lda": separability.lda.report.value,
        "silhouette": separability.silhouette,
        "fisher": separability.fisher,
        "rank_me": rank_me(means),
        "uniformity": uniformity(means),
        "spatial": spatial(features),
        "object": objects.measured(features).auc_same_place.value if isinstance(objects, Objects) else None,
    }


def _correlation(name: str, known: Measured, values: Mapping[Key, float]) -> tuple[float, Interval, int] | None:
    """Spearman's rho with its interval and n; None for too few runs or a constant measure."""
    pairs = [(by_name[name], values[key]) for key, by_name in known.items() if by_name[name] is not None]
    if len(pairs) < _FEWEST or len({measure for measure, _ in pairs}) < 2:
        return None
    rho = float(spearmanr(*np.array(pairs).T).statistic)
    return rho, interval_of(rho, len(pairs)), len(pairs)


def interval_of(rho: float, n: int) -> Interval:
    """95 % interval of Spearman's rho: atanh(rho) +- 1.96 sqrt((1 + rho^2 / 2) / (n - 3)) (Bonett and Wright 2000).

    ValueError below 4 pairs.
    """
    if n < _FEWEST:
        raise ValueError(f"got {n} pairs; an interval needs {_FEWEST}")
    z, half = math.atanh(max(-0.999999, min(0.999999, rho))), 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Interval(math.tanh(z - half), math.tanh(z + half))


def _draw(rows: Correlated) -> Figure:
    look = {"color": palette.METHODS["plain"]["color"], "marker": "o"}
    dots = [
        style.Dots(MEASURES[name], look, mean=correlation[0], low=correlation[1].low, high=correlation[1].high)
        if correlation
        else style.Dots(MEASURES[name], look)
        for name, correlation in rows.items()
    ]
    figure = style.dot_plot(dots, "Spearman's correlation with the Frechet distance", width=style.PAGE, zero="0")
    figure.axes[0].set_xlim(-1.02, 1.02)
    return figure


def _table(rows: Correlated) -> Table:
    columns = (Column("measure"), Column("Spearman's rho", "number"), Column("95 % interval"), Column("runs", "count"))
    lines = []
    for name, correlation in rows.items():
        number = (
            None
            if correlation is None
            else Number(correlation[0], 2, correlation[1].low, correlation[1].high, correlation[2], signed=True)
        )
        lines.append((MEASURES[name], number, number and number.interval, number and number.n))
    return Table("Correlation of each measure with the Frechet distance.", columns, rows_of(lines))


def _runs(names: Sequence[str], known: Measured, values: Mapping[Key, float], score: str) -> Table:
    columns = (Column("method"), Column("seed", "count"), Column(score, "number"),
               *(Column(MEASURES[name], "number") for name in names))  # fmt: skip
    lines = []
    for (method, seed), by_name in known.items():
        numbers = (by_name[name] for name in names)
        cells = (None if number is None else Number(number, 3) for number in numbers)
        lines.append((style.NAMES[method], seed, Number(values[method, seed], 2), *cells))
    return Table("Measures of each run.", columns, rows_of(lines), keys=2)


def _claims(rows: Correlated) -> Iterator[Claim]:
    for name in ("knn", "spatial"):
        correlation, text = rows[name], f"A better score goes with a higher {MEASURES[name]}"
        if correlation is None:
            yield Claim(text, "inconclusive: too few runs", f"It needs {_FEWEST} runs whose measures differ.")
            continue
        rho, interval, n = correlation
        sure = not interval.low <= 0 <= interval.high
        verdict = ("holds here" if rho < 0 else "does not hold here") if sure else f"inconclusive with {n} runs"
        spread = f"{interval.low:+.2f} to {interval.high:+.2f}".replace("-", "\u2212")
        yield Claim(text, verdict, f"rho = {rho:+.2f} (95\u202f% interval {spread}, n = {n}).".replace("-", "\u2212"))


def _few(keys: Sequence[Key], scale: str) -> Missing:
    what = f"scored runs: {len(keys)} of the {_FEWEST} that a correlation needs"
    return Missing(what, f"workbench train {scale}/{PRESETS[scale]['plain']}")


def _alt(rows: Correlated) -> str:
    parts = [f"{MEASURES[name]} {correlation[0]:+.2f}" for name, correlation in rows.items() if correlation]
    return f"Correlation with the Frechet distance: {', '.join(parts) or 'too few runs'}."
