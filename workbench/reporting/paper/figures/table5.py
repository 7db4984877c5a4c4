"""Table 5: layers, guidance scale, guiding model and weight.

One setting changed at a time. Most of the paper's changes are small compared with the variation between seeds. The
exceptions are guidance scale 1, and a teacher of 50K or 100K steps.

With seventeen comparisons against one default, a few will differ by chance.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, Missing, distinct, timed
from workbench.reporting.paper.comparison import Compared, compared
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION

_TOO_CLOSE = 0.025  # share of FID: about twice the coefficient of variation of SiT-B/2 between trainings
_SWEEP = "workbench sweep reports/sweeps/laptop-ablations.yaml"
_CLAIMS = (
    ("Guiding layer 6 by 8 beats guiding layer 8 by 8", "8-to-8"),
    ("Guiding layer 6 by 8 beats guiding it by its own layer", "6-to-6"),
    ("Guiding layer 6 by 8 beats guiding it by the deeper layer 10", "10-to-6"),
    ("Guidance of features (w = 30) beats none (w = 1)", "scale-1"),
    ("w = 30 beats w = 60", "scale-60"),
    ("A teacher of 200K steps beats one of 50K", "teacher-50k"),
    ("A VAE-aligned teacher beats a plain one", "by-plain"),
    ("A VAE-aligned teacher beats a REPA one", "by-repa"),
    ("A weight of 0.5 beats 0.1", "weight-0.1"),
    ("A weight of 0.5 beats 1.0", "weight-1.0"),
)


@timed
def table5(
    scale: str = "laptop",
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Table 5 (section 4.3): one setting changed at a time; `evaluate` computes missing scores."""
    rows = paper_numbers().tables["table5"].rows
    bases = {row.row: "default" for row in rows}
    of = compared("table5", scale, seeds, root, overrides, metrics=("fid", "is"), evaluate=evaluate, bases=bases)
    return Artifact(
        name="table5",
        title="Table 5: layers, guidance scale, guiding model, weight",
        caption=(
            "One setting of the guided run changed at a time, the paper's SiT-B/2 on ImageNet beside ours: "
            f"{of.models}. Layers are written as guiding to guided. Ours: {of.how}."
        ),
        figures={"change": of.chart("fid", "the default")},
        alts={"change": "Change of the Frechet distance against the default setting, a line for each setting."},
        tables={
            "fid": of.table("fid", "Table 5, Frechet distance.", "default"),
            "is": of.table("is", "Table 5, inception score.", "default"),
        },
        claims=tuple(of.claim(text, row, "default") for text, row in _CLAIMS),
        remarks=(_close(of), *_weights(of)),
        runs=distinct(of.found.all),
        missing=(*of.missing, *_absent(scale, of)),
    )


def _absent(scale: str, of: Compared) -> tuple[Missing, ...]:
    if any(scale in row.presets for row in of.rows):
        return ()
    return (Missing(f"these runs at {scale} scale, which has no presets for them; laptop scale has", _SWEEP),)


def _close(of: Compared) -> str:
    """How many of the paper's differences are within the variation between trainings."""
    changes = {row.label: of.change(row, "fid")[0] for row in of.rows if row.row != "default"}
    small = [name for name, change in changes.items() if change and abs(change.value) <= 100 * _TOO_CLOSE]
    return (
        f"Of the paper's {len(changes)} changes {len(small)} move FID by at most {100 * _TOO_CLOSE:g} % "
        f"({', '.join(small)}), as training with another seed can; the paper has one run of each."
    )


def _weights(of: Compared) -> list[str]:
    stated = of.numbers.stated_value("section 4.3", "FID at weight 0.5, running text")
    printed = of.paper.row("default").values["fid"]
    return [] if stated == printed else [f"For weight 0.5 the paper's text has FID {stated:g}, its table {printed:g}."]
