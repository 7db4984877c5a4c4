"""Fig. 8: what happens if alignment stops early, for REPA and Self-Transcendence.

Alignment is switched off at several steps, and training continues without it. In the paper this improves the guided
model and harms REPA.

Look at the sign of the difference to the run without a stop, for each method.

The paper scores 100K steps after each stop, small scales at the end of training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION, PRESETS, Variant, presets_of, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery, Scores, scores_of
from workbench.reporting.paper.series import summary
from workbench.reporting.paper.table import Column, Table, rows_of
from workbench.runs.store import Run

NEVER = "never"
_METHODS = ("guided", "repa")
STOPS = {
    "paper": (50_000, 100_000, 150_000, 200_000),
    "laptop": (50, 100, 200),
    "scenes": (850, 1700, 3400),
    "demo": (40, 80, 160),
}
AFTER = {"paper": 100_000}  # steps after a stop at which the paper scores; at other scales it is the last step


@timed
def fig8(
    scale: str = "laptop",
    stops: Sequence[int] | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Fig. 8 (section 4.4): scores of runs whose alignment stops at several steps, against runs without a stop.

    `stops` are steps; `evaluate` computes missing scores.
    """
    stops = STOPS[scale] if stops is None else tuple(stops)
    count = int(paper_numbers().stated_value("Fig. 8", "generated images"))
    query = ScoreQuery(count=count if scale == "paper" else None, evaluate=evaluate)
    settings: list[int | str] = [*stops, NEVER]
    methods = presets_of(scale, _METHODS)
    variants = {_row(method, stop): _variant(scale, method, stop) for method in methods for stop in settings}
    found = runs_of(scale, variants, seeds, root, overrides)
    after = AFTER.get(scale)
    scored = {stop: _scored(scale, found.runs, stop, after, query) for stop in stops}
    missing = tuple(dict.fromkeys([*found.missing, *(one for scores in scored.values() for one in scores.missing)]))
    title = "Fig. 8: stopping alignment early"
    if not any(of.change(_row(method, stop), _row(method, NEVER)) for method in methods for stop, of in scored.items()):
        caption = found.why_missing("runs whose alignment stops and the same without a stop", variants, scale)
        return Artifact("fig8", title, caption, runs=distinct(found.all), missing=missing)
    some = next((scores for scores in scored.values() if scores.how), next(iter(scored.values())))
    when = "at the last step" if after is None else f"{after:,} steps after the stop"
    curves = _curves(scale, scored)
    y = f"{some.name} {when}"
    return Artifact(
        name="fig8",
        title=title,
        caption=(
            f"Frechet distance {when} of runs whose alignment stopped, and of runs in which it never stopped "
            f"({found.models}): {some.how or 'nothing was scored'}. Means over seeds with 95 % t intervals. The "
            f"paper's figure shows SiT-XL/2, FID of {count:,} images, without values."
        ),
        figures={"stops": style.lines(curves, "step at which alignment stops", f"{y}\n(lower is better)")},
        alts={"stops": _alt(scale, scored)},
        tables={"stops": _table(scale, scored, y)},
        claims=tuple(_claims(scale, scored)),
        runs=distinct(found.all),
        missing=missing,
    )


def _row(method: str, stop: int | str) -> str:
    return f"{method}, stop {stop}"


def _variant(scale: str, method: str, stop: int | str) -> Variant:
    if (method, stop) == ("repa", NEVER):  # the preset of REPA itself
        return Variant(PRESETS[scale][method])
    return Variant(PRESETS[scale][method], (f"objective.stop_step={'null' if stop == NEVER else stop}",))


def _scored(
    scale: str, runs: Mapping[str, Mapping[int, Run]], stop: int, after: int | None, query: ScoreQuery
) -> Scores:
    """Scores of the runs with and without a stop, all at the step that belongs to this stop."""
    rows = {
        row: runs[row] for m in presets_of(scale, _METHODS) for row in (_row(m, stop), _row(m, NEVER)) if row in runs
    }
    last = min((run.config.training.steps for by_seed in rows.values() for run in by_seed.values()), default=0)
    step = last if after is None else stop + after
    return scores_of(rows, "fid", detector=DETECTORS[scale], steps=dict.fromkeys(rows, step), query=query)


def _curves(scale: str, scored: Mapping[int, Scores]) -> list[style.Curve]:
    curves = []
    for method in presets_of(scale, _METHODS):
        for kind in ("stopped", NEVER):
            points = {
                stop: summary(list(of.values[row].values()))
                for stop, of in scored.items()
                if (row := _row(method, stop if kind == "stopped" else NEVER)) in of.values
            }
            if points:
                look = dict(palette.METHODS[method])
                look |= {} if kind == "stopped" else {"linestyle": ":", "markerfacecolor": "white"}
                label = f"{style.NAMES[method]}, {'stopped' if kind == 'stopped' else 'never stopped'}"
                curves.append(style.Curve(label, look, list(points), *zip(*points.values(), strict=True)))
    return curves


def _table(scale: str, scored: Mapping[int, Scores], y: str) -> Table:
    columns = (
        Column("method"),
        Column("alignment stops", "count"),
        Column("stopped", "number"),
        Column("never stopped", "number"),
        Column("stopped less never", "number"),
        Column("its 95 % interval", "text"),
        Column("seeds", "count"),
    )
    lines = []
    for method in presets_of(scale, _METHODS):
        for stop, of in scored.items():
            stopped, never = _row(method, stop), _row(method, NEVER)
            numbers = [of.number(stopped), of.number(never)]
            change = of.change(stopped, never)
            lines.append((style.NAMES[method], stop, *numbers, change, change and change.interval, change and change.n))
    return Table(f"{y}, by the step at which alignment stops.", columns, rows_of(lines), keys=1)


def _claims(scale: str, scored: Mapping[int, Scores]) -> list[Claim]:
    claims = []
    for method, better in (("guided", True), ("repa", False)):
        for stop, of in scored.items() if method in presets_of(scale, _METHODS) else ():
            stopped, never = _row(method, stop), _row(method, NEVER)
            text = f"{style.NAMES[method]} {'improves' if better else 'becomes worse'} by stopping at step {stop:,}"
            base, other = (never, stopped) if better else (stopped, never)
            names = ("never stopped", "stopped") if better else ("stopped", "never stopped")
            first, second = of.values.get(base, {}), of.values.get(other, {})
            claims.append(claim(text, first, second, lower=True, of=of.name, names=names))
    return claims


def _alt(scale: str, scored: Mapping[int, Scores]) -> str:
    parts = [
        f"{style.NAMES[method]} stopped at {stop:,} {number.text}"
        for method in presets_of(scale, _METHODS)
        for stop, of in scored.items()
        if (number := of.number(_row(method, stop)))
    ]
    return f"Frechet distance by the step at which alignment stops: {', '.join(parts) or 'no such runs yet'}."
