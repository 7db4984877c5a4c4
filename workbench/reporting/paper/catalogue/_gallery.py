"""What Figs. 6 and 7 share: a gallery of the guided model at one resolution."""

from collections.abc import Sequence
from pathlib import Path

from workbench.reporting.paper.exhibit import Exhibit, Missing, distinct
from workbench.reporting.paper.galleries import chosen_classes, gallery
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import ABLATION, Wanted, runs_of

Where = tuple[str, int | None, Sequence[int], Path | None, Sequence[str]]  # scale, seed, seeds, root, overrides
_SHOWN = 10


def gallery_exhibit(
    name: str,
    where: Where,
    wanted: dict[str, str],
    *,
    classes: Sequence[int] | None,
    each: int,
    guidance_scale: float | None,
    sample_seed: int,
    instead: str = "",
) -> Exhibit:
    """The gallery of the guided run that `wanted` names by scale; `instead` says what a small scale shows for it."""
    scale, seed, seeds, root, overrides = where
    figure = f"Fig. {name.removeprefix('fig')}"
    numbers = paper_numbers()
    guidance = numbers.said(figure, "guidance scale") if guidance_scale is None else guidance_scale
    pixels = f"{numbers.said(figure, 'pixels'):g}"
    found = runs_of(scale, {"guided": Wanted(wanted[scale])}, seeds, root, overrides)
    runs = found.seed(["guided"], seed)
    title = (
        f"{figure}: samples at {pixels} pixels" if not instead else f"{figure}: samples, in place of {pixels} pixels"
    )
    if not runs:
        return Exhibit(name, title, f"There is no guided run at {scale} scale yet.", missing=found.missing)
    run = runs["guided"]
    step = run.checkpoint().step
    shown = chosen_classes(run, classes, _SHOWN)
    sampling = run.config.sampling
    return Exhibit(
        name=name,
        title=title,
        caption=(
            f"{each} samples of each of {len(shown)} classes from {run.config.name}, seed {run.config.training.seed}, "
            f"step {step:,}: {sampling.sampler}, {sampling.steps} steps, guidance {guidance:g}, sampling seed "
            f"{sample_seed}; the first of each class, not chosen. The paper's: SiT-XL/2, ImageNet {pixels} x {pixels}. "
            f"{instead}"
        ).strip(),
        figures={"samples": gallery(run, step, shown, each, guidance, sample_seed)},
        alts={"samples": f"Generated images of {run.config.name}, a column for each of {len(shown)} classes."},
        said=(instead,) if instead else (),
        made_of=distinct([run]),
        missing=(*found.missing, *(_higher(name, scale) if instead else ())),
    )


def _higher(name: str, scale: str) -> tuple[Missing, ...]:
    return (
        Missing(f"{name}'s own resolution, which {scale} scale does not have", "workbench train paper/sit-xl-2-512"),
    )


__all__ = ["ABLATION", "Where", "gallery_exhibit"]
