"""Gallery of the guided model at one resolution, for Figs. 6 and 7."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, Missing, distinct, timed
from workbench.reporting.paper.galleries import chosen_classes, gallery
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.ours import described
from workbench.reporting.paper.runs import ABLATION, FoundRuns, presets_of, runs_of

_SHOWN = 10


def of_guided(
    name: str, presets: Mapping[str, str] | None = None, instead: Mapping[str, str] | None = None
) -> Callable[..., Artifact]:
    """The function that makes the figure `name`, from the guided run of each scale.

    `presets` has, by scale, the preset of another run; `instead` a sentence on what is shown instead of the paper's
    resolution.
    """

    def make(
        scale: str = "laptop",
        classes: Sequence[int] | None = None,
        each: int = 4,
        guidance_scale: float | None = None,
        sample_seed: int = 0,
        seed: int | None = None,
        seeds: Sequence[int] = ABLATION,
        root: Path | None = None,
        overrides: Sequence[str] = (),
    ) -> Artifact:
        """Section 4.2: samples of the guided model at its last step, the first of each class.

        `guidance_scale` defaults to the paper's 4.0, `classes` to the first ten.
        """
        rows = presets_of(scale, ["guided"]) | ({"guided": presets[scale]} if presets and scale in presets else {})
        found = runs_of(scale, rows, seeds, root, overrides, weights=True)
        return _artifact(
            name,
            scale,
            found,
            seed,
            (instead or {}).get(scale, ""),
            classes=classes,
            each=each,
            guidance_scale=guidance_scale,
            sample_seed=sample_seed,
        )

    make.__name__ = make.__qualname__ = name
    return timed(make)


def _artifact(
    name: str,
    scale: str,
    found: FoundRuns,
    seed: int | None,
    instead: str,
    *,
    classes: Sequence[int] | None,
    each: int,
    guidance_scale: float | None,
    sample_seed: int,
) -> Artifact:
    figure = f"Fig. {name.removeprefix('fig')}"
    numbers = paper_numbers()
    guidance = numbers.stated_value(figure, "guidance scale") if guidance_scale is None else guidance_scale
    pixels = f"{numbers.stated_value(figure, 'pixels'):g}"
    runs = found.seed(["guided"], seed)
    # Only at paper scale do we have the paper's resolution.
    title = f"{figure}: samples at {pixels} pixels" if scale == "paper" else f"{figure}: samples of the guided model"
    if not runs:
        return Artifact(
            name, title, found.why_missing("a run of the guided model", ["guided"], scale), missing=found.missing
        )
    run = runs["guided"]
    step = run.checkpoint().step
    shown = chosen_classes(run, classes, _SHOWN)
    sampling = run.config.sampling
    return Artifact(
        name=name,
        title=title,
        caption=(
            f"{each} samples of each of {len(shown)} classes from {run.config.name} ({described(run, step)}), seed "
            f"{run.config.training.seed}: {sampling.sampler}, {sampling.steps} steps, guidance {guidance:g}, sampling "
            f"seed {sample_seed}; the first of each class, not selected. The paper's: SiT-XL/2, ImageNet {pixels} x "
            f"{pixels}. {instead}"
        ).strip(),
        figures={"samples": gallery(run, step, shown, each, guidance, sample_seed)},
        alts={"samples": f"Generated images of {run.config.name}, a column for each of {len(shown)} classes."},
        remarks=(instead,) if instead else (),
        runs=distinct([run]),
        missing=(*found.missing, *(_higher(name, scale) if instead else ())),
    )


def _higher(name: str, scale: str) -> tuple[Missing, ...]:
    return (
        Missing(f"the resolution of {name}, which {scale} scale does not have", "workbench train paper/sit-xl-2-512"),
    )
