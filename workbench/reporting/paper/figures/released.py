"""Beyond the paper: what the released code does otherwise than the paper says, one switch at a time.

The released code does not do what the paper says: another target, a time window that only scales the loss, the raw
weights of the teacher, qk-norm. Here is each switch alone, and all together.

`recipe=released` sets all switches of a run and of its teacher.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.evaluation.statistics import t_interval
from workbench.lab import palette
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, distinct, timed
from workbench.reporting.paper.claims import claim
from workbench.reporting.paper.runs import ABLATION, Wanted, runs_of
from workbench.reporting.paper.scores import DETECTORS, Asked, Scores, common_steps, scores_of
from workbench.reporting.paper.table import Column, Table, rows_of

PRESETS = {
    "paper": {"stage 1": "sit-b-2-256-vae", "stage 2": "sit-b-2-256"},
    "laptop": {"stage 1": "sit-nano-2-vae", "stage 2": "sit-nano-2"},
    "demo": {"stage 2": "guided"},
}
# Of each stage: what is switched, and how. "all" is the released recipe, of the teacher too.
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
    """Each switch between paper and released code alone, and all of them, in both stages; `evaluate` scores first."""
    stages = PRESETS[scale]
    wanted = {
        f"{stage}, {name}": Wanted(stages[stage], changes)
        for stage in stages
        for name, changes in SWITCHES[stage].items()
    }
    found = runs_of(scale, wanted, seeds, root, overrides)
    steps = common_steps(found.runs, {row: row.partition(",")[0] for row in wanted})
    asked = Asked(evaluate=evaluate)
    scores = scores_of(found.runs, "fid", detector=DETECTORS[scale], steps=steps, asked=asked)
    marks = [_mark(scores, stage, name) for stage in stages for name in SWITCHES[stage]]
    return Artifact(
        name="released",
        title="The paper and the released code",
        caption=(
            "Frechet distance of the VAE-aligned (stage 1) and the guided model (stage 2) as the paper describes them, "
            f"with each switch of the released code alone, and with all ({found.models}): "
            f"{scores.how or 'nothing was scored'}. The released window masks nothing: its mask scales the loss of all "
            "samples by the share inside it."
        ),
        figures={"switches": style.marks(marks, f"{scores.name} (lower is better)")} if scores.values else {},
        alts={"switches": _alt(marks, scores)} if scores.values else {},
        tables={"switches": _table(scores, stages)} if scores.values else {},
        said=tuple(
            claim(
                f"{stage.capitalize()} with all as released is better than as in the paper",
                *(scores.values.get(f"{stage}, {name}", {}) for name in ("as in the paper", "all as released")),
                lower=True,
                of=scores.name,
                names=("the paper's", "the released one"),
            ).sentence
            for stage in stages
        ),
        made_of=distinct(found.all),
        missing=(*found.missing, *scores.missing),
    )


def _mark(scores: Scores, stage: str, name: str) -> style.Mark:
    values = list(scores.values.get(f"{stage}, {name}", {}).values())
    look = palette.METHODS[_METHOD[stage]]
    if not values:
        return style.Mark(f"{stage}, {name}", look)
    interval = t_interval(values) if len(values) > 1 else None
    ends = (interval.low, interval.high) if interval else (None, None)
    return style.Mark(f"{stage}, {name}", look, values, sum(values) / len(values), *ends)


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
            told = (number, number and number.interval, change, change and change.interval, number and number.n)
            lines.append((stage, name, *told))
    return Table(f"Switches between paper and code. {scores.how}.", columns, rows_of(lines), keys=2)


def _alt(marks: Sequence[style.Mark], scores: Scores) -> str:
    told = [f"{mark.label} {mark.mean:.3g}" for mark in marks if mark.mean is not None]
    return f"{scores.name} by switch: {'; '.join(told) or 'no such runs yet'}."
