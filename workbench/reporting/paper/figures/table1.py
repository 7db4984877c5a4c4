"""Table 1: methods of acceleration on SiT and LightningDiT, without guidance.

FID of every method in the paper beside our score, both also as changes against plain training. SiT and LightningDiT
have separate tables, because one is sampled by an SDE and the other by an ODE.

Look at signs and order: does a method that helps in the paper also help here, and do all seeds agree?

Differences to the paper's numbers are given only at paper scale, where both are FID of 50,000 images.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, Claim, distinct, timed
from workbench.reporting.paper.comparison import Compared, compared
from workbench.reporting.paper.numbers import PaperRow, paper_numbers
from workbench.reporting.paper.runs import MAIN
from workbench.reporting.paper.scores import unique

_CLAIMS = {
    "sit": (
        ("VAE alignment alone beats the plain model", "plain", "vae"),
        ("VAE alignment alone does at least as well as Disperse Loss", "dispersive", "vae"),
        ("VAE alignment alone does at least as well as LayerSync", "layersync", "vae"),
        ("Self-Transcendence beats the plain model", "plain", "guided"),
        ("Self-Transcendence beats VAE alignment alone", "vae", "guided"),
        ("Self-Transcendence beats LayerSync", "layersync", "guided"),
        ("Self-Transcendence beats REPA, which has an outside encoder", "repa", "guided"),
    ),
    "lightningdit": (
        ("On LightningDiT too VAE alignment beats the plain model", "plain", "vae"),
        ("On LightningDiT too Self-Transcendence beats the plain model", "plain", "guided"),
        ("On LightningDiT too Self-Transcendence beats REPA", "repa", "guided"),
    ),
}
_SIZE = {"sit": "sit-b", "lightningdit": "lightningdit-b"}  # the size whose rows have runs at smaller scales

_REMARKS = (
    "Steps and epochs do not include the training of the guiding model, as in the paper; `compute` counts it.",
    "Intervals are not adjusted for the number of comparisons.",
)


@timed
def table1(
    scale: str = "laptop",
    seeds: Sequence[int] = MAIN,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Table 1 (section 4.2): FID of every method beside ours, for SiT (SDE in the paper) and LightningDiT (ODE).

    `evaluate` computes missing scores.
    """
    rows = paper_numbers().tables["table1"].rows
    sets = {
        name: compared("table1", scale, seeds, root, overrides, rows=_of(rows, kind), evaluate=evaluate)
        for name, kind in (("sit", "sde"), ("lightningdit", "ode"))
    }
    titles = {"sit": "SiT", "lightningdit": "LightningDiT"}
    return Artifact(
        name="table1",
        title="Table 1: methods of acceleration",
        caption=(
            "Frechet distance of every method without guidance, the paper's on ImageNet 256 x 256 beside ours "
            f"({scale} scale): {sets['sit'].models}; {sets['lightningdit'].models}. SiT: {sets['sit'].how}. "
            f"LightningDiT: {sets['lightningdit'].how}. "
            "Rows of larger models have no runs at smaller scales; rows without a value of the paper are only ours."
        ),
        figures={name: of.chart("fid", "plain") for name, of in sets.items()},
        alts={name: _alt(titles[name], of) for name, of in sets.items()},
        tables={name: of.table("fid", f"Table 1, {titles[name]}.", "plain") for name, of in sets.items()},
        claims=tuple(one for name, of in sets.items() for one in _claims(name, of)),
        remarks=_REMARKS,
        runs=distinct(run for of in sets.values() for run in of.found.all),
        missing=unique([one for of in sets.values() for one in of.missing]),
    )


def _of(rows: Sequence[PaperRow], kind: str) -> list[PaperRow]:
    return [row for row in rows if row.sampler == kind]


def _claims(name: str, of: Compared) -> list[Claim]:
    size = _SIZE[name]
    return [of.claim(text, f"{size}-{base}", f"{size}-{other}") for text, base, other in _CLAIMS[name]]


def _alt(title: str, of: Compared) -> str:
    changes = [(row.label.removeprefix("+ "), of.change(row, "fid")[1]) for row in of.rows]
    listed = ", ".join(f"{name} {change.text} %" for name, change in changes if change is not None)
    return (
        f"{title}: change of the Frechet distance against the plain model by method, the paper's as hollow diamonds. "
        f"Ours ({of.models}): {listed or 'no runs yet'}."
    )
