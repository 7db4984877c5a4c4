"""Fig. 7: samples of the guided model at 512 pixels.

The paper's gallery at 512 pixels. Small scales have only one resolution; the caption says what is shown instead.

The presets with 512 pixels are `paper/sit-*-512`.
"""

from workbench.reporting.paper.figures._gallery import of_guided

_SAME = "so these are the samples of Fig. 6"

fig7 = of_guided(
    "fig7",
    {"paper": "sit-xl-2-512", "laptop": "lightningdit-nano-2"},
    instead={
        "laptop": "At laptop scale images have 32 x 32 pixels only; samples of LightningDiT are shown instead.",
        "demo": f"At demo scale images have 32 x 32 pixels only, {_SAME}.",
        "scenes": f"Scenes have 64 x 64 pixels only, {_SAME}.",
    },
)
