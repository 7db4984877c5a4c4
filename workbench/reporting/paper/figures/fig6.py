"""Fig. 6: samples of the guided model at 256 pixels.

The paper's gallery of ImageNet at 256 pixels, guidance 4.0. Here are the first samples of each class, not the best.

Look for classes that all fail, and for images that look alike: both are hidden by a chosen gallery.

At small scales the images have 32 x 32 pixels, and so have the training images.
"""

from workbench.reporting.paper.figures._gallery import of_guided

fig6 = of_guided("fig6", {"paper": "sit-xl-2-256", "laptop": "sit-nano-2", "demo": "guided"})
