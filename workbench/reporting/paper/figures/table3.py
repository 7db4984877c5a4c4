"""Table 3: diffusion models with classifier-free guidance at 512 pixels.

As Table 2 at the higher resolution. Small scales do not have it and show only the paper's numbers.

`workbench sweep reports/sweeps/paper-guided.yaml --only table3-sit-xl-2-guided` trains the paper's own row.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, timed
from workbench.reporting.paper.figures._guided import guided_table
from workbench.reporting.paper.runs import MAIN


@timed
def table3(
    scale: str = "laptop",
    seeds: Sequence[int] = MAIN,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    guidance_scale: float | None = None,
    evaluate: bool = False,
) -> Artifact:
    """Table 3 (section 4.2): five metrics with guidance at the higher resolution, which small scales do not have."""
    return guided_table(
        "table3",
        "Table 3: with guidance, 512 x 512",
        {"SiT-XL/2": "sit"},
        (
            ("At 512 pixels Self-Transcendence beats the plain model", "sit-xl-plain", "sit-xl-guided"),
            ("At 512 pixels Self-Transcendence beats REPA", "sit-xl-repa", "sit-xl-guided"),
        ),
        (scale, seeds, root, overrides),
        guidance_scale=guidance_scale,
        evaluate=evaluate,
    )
