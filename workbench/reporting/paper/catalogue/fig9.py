"""Fig. 9: features over the layers of a plain and a guided model."""

from workbench.reporting.paper.catalogue._layers import over_layers

fig9 = over_layers("fig9")
