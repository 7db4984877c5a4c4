"""Table 2: diffusion models with classifier-free guidance at 256 pixels.

Diffusion models with classifier-free guidance at 256 pixels. Rows marked as quoted were taken by the paper from others;
they are not trained here and not compared.

Precision and recall depend on the number of images, so those of 300 and of 50,000 images cannot be compared.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, timed
from workbench.reporting.paper.figures._guided import guided_table
from workbench.reporting.paper.runs import MAIN


@timed
def table2(
    scale: str = "laptop",
    seeds: Sequence[int] = MAIN,
    root: Path | None = None,
    overrides: Sequence[str] = (),
    guidance_scale: float | None = None,
    evaluate: bool = False,
) -> Artifact:
    """Table 2 (section 4.2): five metrics with guidance, quoted rows marked, for SiT and LightningDiT.

    `guidance_scale` defaults to 1.5 (SiT's) at small scales, and to each run's own at paper scale. `evaluate` computes
    missing scores.
    """
    return guided_table(
        "table2",
        "Table 2: with guidance, 256 x 256",
        {"SiT-XL/2": "sit", "LightningDiT-XL/1": "lightningdit"},
        (
            ("With guidance Self-Transcendence beats the plain model", "sit-xl-plain", "sit-xl-guided"),
            ("With guidance Self-Transcendence beats SRA", "sit-xl-sra", "sit-xl-guided"),
            ("With guidance Self-Transcendence beats LayerSync", "sit-xl-layersync", "sit-xl-guided"),
            ("On LightningDiT it beats the plain model", "lightningdit-xl-plain", "lightningdit-xl-guided"),
        ),
        (scale, seeds, root, overrides),
        guidance_scale=guidance_scale,
        evaluate=evaluate,
    )
