"""Table 4: ablation of the two stages.

Neither stage, VAE alignment alone, self-guidance by a plain teacher, and both. In the paper each stage helps, and both
together help most.

The paper's numbers are of 10,000 images, which alone makes them larger than those of Table 1.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, distinct, timed
from workbench.reporting.paper.comparison import compared
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION

_CLAIMS = (
    ("VAE alignment alone (V1) beats neither stage", "plain", "vae"),
    ("Self-guiding by a plain teacher (V2) beats neither stage", "plain", "by-plain"),
    ("Both stages beat VAE alignment alone", "vae", "guided"),
    ("Both stages beat self-guiding by a plain teacher", "by-plain", "guided"),
)


@timed
def table4(
    scale: str = "laptop",
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    evaluate: bool = False,
) -> Artifact:
    """Table 4 (section 4.3): neither stage, each alone, and both; `evaluate` computes missing scores."""
    bases = {row.row: "plain" for row in paper_numbers().tables["table4"].rows}
    of = compared("table4", scale, seeds, root, overrides, metrics=("fid", "is"), evaluate=evaluate, bases=bases)
    return Artifact(
        name="table4",
        title="Table 4: the two stages",
        caption=f"Each stage alone and both, the paper's SiT-B/2 on ImageNet beside ours: {of.models}. Ours: {of.how}.",
        figures={"change": of.chart("fid", "neither stage")},
        alts={"change": "Change of the Frechet distance against neither stage: VAE alignment, self-guiding, both."},
        tables={
            "fid": of.table("fid", "Table 4, Frechet distance.", "neither"),
            "is": of.table("is", "Table 4, inception score.", "neither"),
        },
        claims=tuple(of.claim(*one) for one in _CLAIMS),
        runs=distinct(of.found.all),
        missing=of.missing,
    )
