"""How the picture of a view was made, as names and texts that a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.runs.store import Run
from workbench.runs.weak import Weak

if TYPE_CHECKING:  # a view that was saved is opened without PyTorch
    from workbench.data.images import Images

Made = tuple[tuple[str, str], ...]
_LISTED = 12  # row numbers of images


def made_of(
    runs: Sequence[Run],
    steps: Sequence[Sequence[int]],
    targets: Sequence[str] = (),
    images: Images | None = None,
    rows: Sequence[int] = (),
    weak: Sequence[Weak] = (),
) -> Made:
    """The runs with their training steps, the weak models, the targets, and the images by their row numbers."""
    found = [("run", _run(run, own)) for run, own in zip(runs, steps, strict=True)]
    found += dict.fromkeys(("weak model", _run(of.run, [of.step])) for of in weak)
    if targets:
        found.append(("targets", ", ".join(targets)))
    if images is not None:
        listed = f", rows {', '.join(map(str, rows))}" if len(rows) <= _LISTED else ""
        found.append(("images", f"{len(rows):,} of the {len(images):,} of {images.name}, {images.split} split{listed}"))
    return tuple(found)


def _run(run: Run, steps: Sequence[int]) -> str:
    config = run.config
    size = config.backbone.options.get("size", "")
    backbone = f"{config.backbone.name} {size}".strip()
    at = f"step{'s' if len(steps) > 1 else ''} {', '.join(f'{step:,}' for step in steps)}"
    return f"{run.name}, a {backbone} trained on {config.data.name} with objective {config.objective.name}, {at}"
