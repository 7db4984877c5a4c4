"""Fig. 10: features over the layers of a plain and a guided model.

Token maps of a plain and a guided model, layer by layer, at t = 0.5. The paper sees more compact structure in the
guided one.

Colours of the two are turned towards each other, so that equal colours mean equal things. Cover the names and ask
whether you could tell which is which; then read the numbers.

The numbers are taken without the label, so the class is not in them.
"""

from workbench.reporting.paper.figures._layers import over_layers

fig10 = over_layers("fig10")
