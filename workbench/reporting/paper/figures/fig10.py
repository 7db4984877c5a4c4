"""Fig. 10: features over the layers of a plain and a guided model.

Token maps of a plain and a guided model, layer by layer, at t = 0.5. According to the paper, the guided one has
more compact structure.

The maps of the two are Procrustes-aligned, so that their colours can be compared. First try to tell the models apart
without their names, then read the numbers.

The numbers are measured with the null label, so they do not contain the class.
"""

from workbench.reporting.paper.figures._layers import over_layers

fig10 = over_layers("fig10")
