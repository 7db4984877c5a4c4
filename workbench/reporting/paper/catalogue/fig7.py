"""Fig. 7: samples of the guided model at 512 pixels."""

from workbench.reporting.paper.catalogue._gallery import of_guided

_SMALL = "scale images have 32 x 32 pixels only"

fig7 = of_guided(
    "fig7",
    {"paper": "sit-xl-2-512", "laptop": "lightningdit-nano-2", "demo": "guided"},
    instead={
        "laptop": f"At laptop {_SMALL}; LightningDiT stands where the higher resolution would.",
        "demo": f"At demo {_SMALL}, so these are the samples of Fig. 6.",
    },
)
