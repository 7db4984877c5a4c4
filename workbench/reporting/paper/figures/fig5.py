"""Fig. 5: samples over training of plain, REPA and guided models.

Plain, REPA and Self-Transcendence at the same steps, from the same noise with the same classes. In the paper its own
method forms shapes earlier.

Compare within a column: its images start from the same noise, so they differ only by the model. No sample was selected.

Three methods with one seed are an illustration. `table1` compares several seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from workbench.lab.views.samples import samples
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, Missing, distinct, timed
from workbench.reporting.paper.galleries import chosen_classes, over_training
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.ours import described
from workbench.reporting.paper.runs import ABLATION, PRESETS, presets_of, runs_of
from workbench.reporting.paper.scores import run_has

METHODS = ("plain", "repa", "guided")


@timed
def fig5(
    scale: str = "laptop",
    classes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    sample_seed: int = 0,
    seed: int | None = None,
    seeds: Sequence[int] = ABLATION,
    root: Path | None = None,
    overrides: Sequence[str] = (),
) -> Artifact:
    """Fig. 5 (section 4.2): samples of three methods over training from the same seed, noise and classes.

    `steps` defaults to those that all runs kept, `guidance_scale` to the paper's 4.0, `classes` to the first ten.
    """
    guidance = paper_numbers().stated_value("Fig. 5", "guidance scale") if guidance_scale is None else guidance_scale
    found = runs_of(scale, presets_of(scale, METHODS), seeds, root, overrides, weights=True)
    runs = found.seed(METHODS, seed)
    title = "Fig. 5: samples over training"
    if not runs:
        caption = found.why_missing("runs of the plain, the REPA and the guided model", METHODS, scale)
        return Artifact("fig5", title, caption, missing=found.missing)
    first = next(iter(runs.values()))
    labels = chosen_classes(first, classes)
    kept = [{c.step for c in run.checkpoints} for run in runs.values()]
    shown = sorted(set.intersection(*kept)) if steps is None else list(steps)
    available = [(method, step) for method in runs for step in shown if run_has(runs[method], step)]
    missing = [
        Missing(f"weights of {runs[method].name} at step {step:,}", f"workbench train {scale}/{PRESETS[scale][method]}")
        for method in runs
        for step in shown
        if (method, step) not in available
    ]
    view = samples(
        list(runs.values()),
        steps=[step for step in shown if all(run_has(run, step) for run in runs.values())] or None,
        scales=(1.0, guidance),
        count=max(labels) + 1,
        seed=sample_seed,
        progress=_quiet,
    )
    names = ", ".join(style.NAMES[method] for method in runs)
    sampling = first.config.sampling
    return Artifact(
        name="fig5",
        title=title,
        caption=(
            f"Samples of {names} at steps {', '.join(f'{step:,}' for step in shown)} ({described(first)}, training "
            f"seed {first.config.training.seed}): sampling seed {sample_seed}, {sampling.sampler}, {sampling.steps} "
            f"steps, guidance {guidance:g}. Images in a column have the same noise and class. The paper's are "
            "SiT-XL/2 from 100K to 400K steps."
        ),
        figures={"samples": over_training(runs, available, labels, guidance, sample_seed)} if available else {},
        alts={"samples": f"Generated images: a row for each of {names} at each step, a column for each class."}
        if available
        else {},
        views={"samples": view},
        remarks=(
            "The figure is for visual comparison; `fig4` and `table1` have the scores. The images are the first of "
            "each class, not selected.",
        ),
        runs=distinct(runs.values()),
        missing=(*found.missing, *missing),
    )


def _quiet(stage: str, done: int, total: int) -> None:
    """Ignore progress."""
