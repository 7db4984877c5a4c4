"""Fig. 6: samples of the guided model at 256 pixels.

The paper's gallery of ImageNet at 256 pixels, guidance 4.0. Here are the first samples of each class, not the best.

Look for classes that always fail, and for images that look alike: a selected gallery hides both.

At small scales the samples have 32 x 32 or 64 x 64 pixels, as do the training images.
"""

from workbench.reporting.paper.figures._gallery import of_guided

fig6 = of_guided("fig6")
