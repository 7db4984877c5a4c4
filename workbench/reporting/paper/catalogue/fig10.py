"""Fig. 10: features over the layers of a plain and a guided model."""

from workbench.reporting.paper.catalogue._layers import over_layers

fig10 = over_layers("fig10")
