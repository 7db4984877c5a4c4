"""Fig. 6: samples of the guided model at 256 pixels."""

from workbench.reporting.paper.catalogue._gallery import of_guided

fig6 = of_guided("fig6", {"paper": "sit-xl-2-256", "laptop": "sit-nano-2", "demo": "guided"})
