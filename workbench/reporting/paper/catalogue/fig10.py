"""Fig. 10: features over the layers of a plain and a guided model."""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.catalogue._layers import ABLATION, layers_exhibit
from workbench.reporting.paper.exhibit import Exhibit, timed


@timed
def fig10(
    scale: str = "laptop",
    layers: Sequence[int] | None = None,
    t: float | None = None,
    images: int | Sequence[int] = 3,
    judged: int = 200,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
) -> Exhibit:
    """Fig. 10 (section 5): token maps over layers, plain against guided, and how well classes separate in them.

    `layers` None are six spread over the depth, `t` None is the paper's.
    """
    where = (scale, seed, seeds, root, overrides)
    return layers_exhibit("fig10", where, layers=layers, t=t, images=images, judged=judged)
