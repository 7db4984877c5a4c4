"""Fig. 8: what happens if alignment stops early, for REPA and Self-Transcendence.

Alignment is switched off at several moments and training goes on without it. The paper's guided model gains by that,
REPA loses.

Look for the sign of the difference to the run that never stopped, method by method.

The paper scores 100K steps after each stop, small scales at the end of all runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION, Wanted, runs_of
from workbench.reporting.paper.scores import DETECTORS, Asked, Scores, scores_of
from workbench.reporting.paper.series import summary
from workbench.reporting.paper.table import Column, Table, rows_of
from workbench.runs.store import Run

NEVER = "never"
PRESETS = {
    "paper": {"guided": "sit-xl-2-256", "repa": "sit-xl-2-256-repa"},
    "laptop": {"guided": "sit-nano-2", "repa": "sit-nano-2-repa"},
    "demo": {"guided": "guided"},
}
STOPS = {"paper": (50_000, 100_000, 150_000, 200_000), "laptop": (50, 100, 200), "demo": (70, 140, 280)}
AFTER = {"paper": 100_000}  # steps on from a stop at which the paper scores; elsewhere every run's last step


@timed
def fig8(
    scale: str = "laptop",
    stops: Sequence[int] | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Fig. 8 (section 4.4): the score when alignment stops at several moments against that when it never does.

    `stops` are steps; `evaluate` scores first what was not scored.
    """
    stops = STOPS[scale] if stops is None else tuple(stops)
    count = int(paper_numbers().said("Fig. 8", "generated images"))
    asked = Asked(count=count if scale == "paper" else None, evaluate=evaluate)
    settings: list[int | str] = [*stops, NEVER]
    wanted = {_row(method, stop): _wanted(scale, method, stop) for method in PRESETS[scale] for stop in settings}
    found = runs_of(scale, wanted, seeds, root, overrides)
    after = AFTER.get(scale)
    scored = {stop: _scored(scale, found.runs, stop, after, asked) for stop in stops}
    missing = [one for scores in scored.values() for one in scores.missing]
    some = next((scores for scores in scored.values() if scores.how), next(iter(scored.values())))
    when = "at the last step" if after is None else f"{after:,} steps after the stop"
    curves = _curves(scale, scored)
    y = f"{some.name} {when}"
    return Artifact(
        name="fig8",
        title="Fig. 8: stopping alignment early",
        caption=(
            f"Frechet distance {when} of runs whose alignment stopped, and of ones in which it never did "
            f"({found.models}): {some.how or 'nothing was scored'}. Means over seeds with 95 % t intervals. The "
            f"paper's are SiT-XL/2, FID of {count:,} images, without values."
        ),
        figures={"stops": style.lines(curves, "step at which alignment stops", f"{y}\n(lower is better)")}
        if curves
        else {},
        alts={"stops": _alt(scale, scored)} if curves else {},
        tables={"stops": _table(scale, scored, y)} if curves else {},
        claims=tuple(_claims(scale, scored)),
        made_of=distinct(found.all),
        missing=(*found.missing, *dict.fromkeys(missing)),
    )


def _row(method: str, stop: int | str) -> str:
    return f"{method}, stop {stop}"


def _wanted(scale: str, method: str, stop: int | str) -> Wanted:
    if (method, stop) == ("repa", NEVER):  # as REPA itself
        return Wanted(PRESETS[scale][method])
    return Wanted(PRESETS[scale][method], (f"objective.stop_step={'null' if stop == NEVER else stop}",))


def _scored(scale: str, runs: Mapping[str, Mapping[int, Run]], stop: int, after: int | None, asked: Asked) -> Scores:
    """The stopped and the never stopped runs, all at the step that belongs to this stop."""
    rows = {row: runs[row] for m in PRESETS[scale] for row in (_row(m, stop), _row(m, NEVER)) if row in runs}
    last = min((run.config.training.steps for by_seed in rows.values() for run in by_seed.values()), default=0)
    step = last if after is None else stop + after
    return scores_of(rows, "fid", detector=DETECTORS[scale], steps=dict.fromkeys(rows, step), asked=asked)


def _curves(scale: str, scored: Mapping[int, Scores]) -> list[style.Curve]:
    curves = []
    for method in PRESETS[scale]:
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
    for method in PRESETS[scale]:
        for stop, of in scored.items():
            stopped, never = _row(method, stop), _row(method, NEVER)
            numbers = [of.number(stopped), of.number(never)]
            change = of.change(stopped, never)
            lines.append((style.NAMES[method], stop, *numbers, change, change and change.interval, change and change.n))
    return Table(f"{y}, by the step at which alignment stops.", columns, rows_of(lines), keys=1)


def _claims(scale: str, scored: Mapping[int, Scores]) -> list[Claim]:
    claims = []
    for method, better in (("guided", True), ("repa", False)):
        for stop, of in scored.items() if method in PRESETS[scale] else ():
            stopped, never = _row(method, stop), _row(method, NEVER)
            text = f"{style.NAMES[method]} {'gains by' if better else 'loses by'} stopping at step {stop:,}"
            base, other = (never, stopped) if better else (stopped, never)
            names = ("never stopped", "stopped") if better else ("stopped", "never stopped")
            first, second = of.values.get(base, {}), of.values.get(other, {})
            claims.append(claim(text, first, second, lower=True, of=of.name, names=names))
    return claims


def _alt(scale: str, scored: Mapping[int, Scores]) -> str:
    told = [
        f"{style.NAMES[method]} stopped at {stop:,} {number.text}"
        for method in PRESETS[scale]
        for stop, of in scored.items()
        if (number := of.number(_row(method, stop)))
    ]
    return f"Frechet distance by the step at which alignment stops: {', '.join(told) or 'no such runs yet'}."
