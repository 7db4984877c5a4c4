"""Beyond the paper: the differences between the released code and the paper, one at a time.

The released code differs from the paper: another target, a time window that only scales the loss, raw weights of the
teacher, qk-norm. Here each difference is tested alone, and all together.

`recipe=released` sets all of them, in a run and its teacher.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.evaluation.statistics import t_interval
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.runs import ABLATION, PRESETS, Variant, runs_of
from workbench.reporting.paper.scores import DETECTORS, ScoreQuery, Scores, common_steps, scores_of
from workbench.reporting.paper.table import Column, Table, rows_of

# Overrides of each switch, by stage. "all as released" also applies to the teacher.
SWITCHES = {
    "stage 1": {
        "as in the paper": (),
        "target: velocity": ("objective.target=velocity",),
        "time window 0.4 to 0.7": ("objective.window=scale",),
        "qk-norm": ("backbone.qk_norm=true",),
        "all as released": ("recipe=released",),
    },
    "stage 2": {
        "as in the paper": (),
        "time window 0.4 to 0.7": ("objective.window=scale",),
        "raw teacher weights": ("objective.teacher_weights=raw",),
        "qk-norm": ("backbone.qk_norm=true",),
        "all as released": ("recipe=released",),
    },
}
_METHOD = {"stage 1": "vae", "stage 2": "guided"}


@timed
def released(
    scale: str = "laptop",
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Each difference between paper and released code alone, and all, in both stages; `evaluate` adds scores."""
    stages = {stage: PRESETS[scale][of] for stage, of in _METHOD.items() if of in PRESETS[scale]}
    variants = {
        f"{stage}, {name}": Variant(stages[stage], changes)
        for stage in stages
        for name, changes in SWITCHES[stage].items()
    }
    found = runs_of(scale, variants, seeds, root, overrides)
    steps = common_steps(found.runs, {row: row.partition(",")[0] for row in variants})
    query = ScoreQuery(evaluate=evaluate)
    scores = scores_of(found.runs, "fid", detector=DETECTORS[scale], steps=steps, query=query)
    dots = [_dots(scores, stage, name) for stage in stages for name in SWITCHES[stage]]
    return Artifact(
        name="released",
        title="The paper and the released code",
        caption=(
            "Frechet distance of the VAE-aligned (stage 1) and the guided model (stage 2) as the paper describes them, "
            f"with each switch of the released code alone, and with all ({found.models}): "
            f"{scores.how or 'nothing was scored'}. The released window does not mask samples: it scales the loss of "
            "all samples by the fraction inside the window."
        ),
        figures={"switches": style.dot_plot(dots, f"{scores.name} (lower is better)")} if scores.values else {},
        alts={"switches": _alt(dots, scores)} if scores.values else {},
        tables={"switches": _table(scores, stages)} if scores.values else {},
        remarks=tuple(
            claim(
                f"{stage.capitalize()} with all as released is better than as in the paper",
                *(scores.values.get(f"{stage}, {name}", {}) for name in ("as in the paper", "all as released")),
                lower=True,
                of=scores.name,
                names=("the paper's", "the released one"),
            ).sentence
            for stage in stages
        ),
        runs=distinct(found.all),
        missing=(*found.missing, *scores.missing),
    )


def _dots(scores: Scores, stage: str, name: str) -> style.Dots:
    values = list(scores.values.get(f"{stage}, {name}", {}).values())
    look = palette.METHODS[_METHOD[stage]]
    if not values:
        return style.Dots(f"{stage}, {name}", look)
    interval = t_interval(values) if len(values) > 1 else None
    low, high = (interval.low, interval.high) if interval else (None, None)
    return style.Dots(f"{stage}, {name}", look, values, sum(values) / len(values), low, high)


def _table(scores: Scores, stages: Iterable[str]) -> Table:
    columns = (
        Column("stage"),
        Column("switch"),
        Column(scores.name, "ours", "mean"),
        Column("95 % interval", "interval", "over seeds"),
        Column("less the paper's", "number"),
        Column("its 95 % interval", "interval"),
        Column("seeds", "count"),
    )
    lines = []
    for stage in stages:
        for name in SWITCHES[stage]:
            row, base = f"{stage}, {name}", f"{stage}, as in the paper"
            number, change = scores.number(row), None if row == base else scores.change(row, base)
            cells = (number, number and number.interval, change, change and change.interval, number and number.n)
            lines.append((stage, name, *cells))
    return Table(f"Switches between paper and code. {scores.how}.", columns, rows_of(lines), keys=2)


def _alt(dots: Sequence[style.Dots], scores: Scores) -> str:
    parts = [f"{row.label} {row.mean:.3g}" for row in dots if row.mean is not None]
    return f"{scores.name} by switch: {'; '.join(parts) or 'no such runs yet'}."
