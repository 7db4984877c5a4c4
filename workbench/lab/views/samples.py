"""Samples of runs from the same noise, over training steps and guidance scales."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from einops import rearrange

from workbench.evaluation.generate import check_sampling, generate
from workbench.features.grid import real_numbers, whole_numbers
from workbench.lab.definitions import GUIDANCE, WEAK_SAMPLING
from workbench.lab.made import made_of
from workbench.lab.panes import Axis
from workbench.lab.panes.samples import SamplesPane
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.snippets import PAGE_MB, bounded_view, snippet
from workbench.lab.sources import RunLike, Steps, opened_runs, steps_of, titles_of, weak_text
from workbench.lab.view import View
from workbench.runs.weak import WeakLike, check_weak, find_weak


def samples(
    runs: Sequence[RunLike] | RunLike,
    steps: Steps = "all",
    scales: Sequence[float] = (1.0, 2.0, 4.0),
    count: int = 10,
    seed: int = 0,
    page_mb: float = PAGE_MB,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> View:
    """Samples of one or several runs over training steps and guidance scales, one column per seed.

    Sample i has the same noise and the same class, i modulo the number of classes, in every run, step and scale. The
    sampler is that of each run's configuration. Samples are stored in the run folders.

    Args:
        runs: A run, or several.
        steps: Training steps of the checkpoints; "all" are those that all runs have, None the last of them.
        scales: Guidance scales w of Eq. 2; 1 is no guidance.
        count: Number of samples per row.
        seed: Seed of the noise.
        page_mb: Largest size of the page, in megabytes.
        weak: Weak model to guide against instead of the null label, as of `wb.maps`: v_weak + w (v - v_weak).
        progress: Called with (stage, done, total).

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: For a step that does not exist, guidance of a run whose null class is untrained, runs of other
            classes, and a page of more than `page_mb` megabytes.

    Examples:
        >>> view = wb.samples(wb.zoo("guided"), steps=None, scales=[1.0], count=2)
        >>> view.save("samples.png").name
        'samples.png'
    """
    given = dict(locals())
    wanted = real_numbers("scales", scales)
    (count,) = whole_numbers("count", [count])
    several = opened_runs(runs)
    shown = steps_of(several, steps)
    classes = [run.latents["classes"] for run in several]
    if any(of != classes[0] for of in classes):
        raise ValueError("the runs have different classes; all samples of a column must be of one class")
    weaks = [None if weak is None else find_weak(weak, run) for run in several]
    for run, own, of in zip(several, shown, weaks, strict=True):
        if of is not None:
            check_weak(run, own, of)
        for scale in wanted:
            check_sampling(run, replace(run.config.sampling, count=count, guidance_scale=scale), weak=of)
    parts = sum(map(len, shown)) * len(wanted)
    rows: list[np.ndarray] = []
    with reported(progress) as report:
        for run, own, of in zip(several, shown, weaks, strict=True):
            for step in own:
                for scale in wanted:
                    settings = replace(run.config.sampling, count=count, guidance_scale=scale, seed=seed)
                    counted = part_of(report, "samples", len(rows), parts, count)
                    rows.append(generate(run, step, settings, counted, weak=of).images.numpy())
    arrays = {"images": _arranged(rows, len(several), len(wanted))}
    names = [str(classes[0][i % len(classes[0])]) for i in range(count)]
    axes = {"source": Axis("run", titles_of(several, shown))} if len(several) > 1 else {}
    against = [of for of in weaks if of is not None]
    about = weak_text(against, r"v_g = v_{\text{weak}} + w\,(v - v_{\text{weak}})", "velocity") if against else ""
    name, hint = (f"{GUIDANCE} (weak model)", WEAK_SAMPLING) if against else (GUIDANCE, "")
    guidance = Axis(name, wanted, about=about, hint=hint)
    axes |= {"step": Axis("training step", shown[0]), "guidance": guidance}
    title = f"Samples of {', '.join(titles_of(several, shown))}"
    if against:
        title += f", guided against {', '.join(dict.fromkeys(of.text for of in against))}"
    pane = SamplesPane(title, arrays, {"names": names, "seeds": list(range(count))})
    start = {} if len(shown[0]) > 1 or len(several) == 1 else {"rows": "sources"}
    return bounded_view(
        title,
        [pane],
        axes,
        page_mb=page_mb,
        shorten="runs, steps, scales or count",
        snippet=snippet(samples, runs, given),
        made=made_of(several, shown, weak=against),
        start=start,
    )


def _arranged(rows: Sequence[np.ndarray], sources: int, scales: int) -> np.ndarray:
    return rearrange(np.stack(rows), "(s e g) n c h w -> s e g n h w c", s=sources, g=scales).copy()
