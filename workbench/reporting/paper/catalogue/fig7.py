"""Fig. 7: samples of the guided model at 512 pixels."""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.catalogue._gallery import ABLATION, gallery_exhibit
from workbench.reporting.paper.exhibit import Exhibit, timed

PRESETS = {"paper": "sit-xl-2-512", "laptop": "lightningdit-nano-2", "demo": "guided"}
INSTEAD = {
    "laptop": "At laptop scale images have 32 x 32 pixels only; LightningDiT stands where the higher resolution would.",
    "demo": "At demo scale images have 32 x 32 pixels only, so these are the samples of Fig. 6.",
}


@timed
def fig7(
    scale: str = "laptop",
    classes: Sequence[int] | None = None,
    each: int = 4,
    guidance_scale: float | None = None,
    sample_seed: int = 0,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
) -> Exhibit:
    """Fig. 7 (section 4.2): samples of the guided model at its last step, the first ones of each class.

    `guidance_scale` None is the paper's 4.0, `classes` None the first ten.
    """
    return gallery_exhibit(
        "fig7",
        (scale, seed, seeds, root, overrides),
        PRESETS,
        classes=classes,
        each=each,
        guidance_scale=guidance_scale,
        sample_seed=sample_seed,
        instead=INSTEAD.get(scale, ""),
    )
