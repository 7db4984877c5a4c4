"""The demo: train a teacher, a plain and a guided run on the shipped data, score them and write a report."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.config import Config, as_overrides, load_config
from workbench.data.latents import open_latents
from workbench.evaluation.generate import generate
from workbench.evaluation.suite import probe_layers, score
from workbench.lab.view import View
from workbench.lab.views.maps import maps
from workbench.reporting.report import write_report
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit
from workbench.training.pace import Pace, measure_pace
from workbench.training.sizes import encoded, model_size

ROLES = ("teacher", "plain", "guided")
PROBE_TIME, PROBE_IMAGES, LAYERS = 0.7, 1500, range(13)  # t of the paper's Fig. 9; layer 0 is the baseline
SAMPLE_GUIDANCE = 3.0  # of the samples that are shown; those that are scored have the configuration's
MAP_LAYERS, MAP_TIMES, MAP_IMAGES = (2, 6, 8, 12), (0.2, 0.4, 0.6, 0.8), 6


@dataclass(frozen=True)
class Progress:
    """Progress of the demo: a stage, how much of it is done, and a note."""

    stage: str
    done: int
    total: int
    note: str = ""


def demo_configs(seed: int, overrides: str | Iterable[str] = ()) -> dict[str, Config]:
    """The three configurations by role; the teacher of the guided one is the teacher preset with the same overrides."""
    changes = (*as_overrides(overrides), f"training.seed={seed}")
    return {role: load_config(f"demo/{role}", changes) for role in ROLES}


def guided_config(teacher: Run, seed: int, overrides: str | Iterable[str] = ()) -> Config:
    """The guided configuration, with this run as its teacher."""
    changes = (*as_overrides(overrides), f"training.seed={seed}", f"objective.teacher={teacher.folder}")
    return load_config("demo/guided", changes)


def run_demo(root: Path, report: Path, seed: int = 0, overrides: tuple[str, ...] = ()) -> Iterator[Progress]:
    """Train, score and report, yielding progress. What an earlier call has finished is reused."""
    started = time.monotonic()
    runs: dict[str, Run] = {}
    configs = demo_configs(seed, overrides)
    for role in ROLES:
        config = configs[role] if role != "guided" else guided_config(runs["teacher"], seed, overrides)
        yield Progress("prepare", 0, 1, f"{role}: images and latents")
        latents = open_latents(config, "train", root / ".latents")
        yield Progress("prepare", 1, 1, f"{role}: images and latents")
        for record in fit(config, root):
            yield Progress(f"train {role}", record["step"], config.training.steps, f"loss {record['loss']:.3f}")
        runs[role] = prepare_run(config, root)
        if runs[role].status["state"] != "finished":
            return
    common = runs["guided"].config.training.steps  # the plain run trains longer, but is compared at this step
    jobs = [(role, step) for role, run in runs.items() for step in _scored_steps(run.config)]
    for done, (role, step) in enumerate(jobs):
        yield Progress("score", done, len(jobs), f"{role} at step {step}")
        score(runs[role], step, configs[role].sampling, small_ok=True)
    yield Progress("score", len(jobs), len(jobs))
    for done, (role, run) in enumerate(runs.items()):
        yield Progress("probe", done, len(runs), role)
        count = min(PROBE_IMAGES, len(latents))
        probe_layers(run, min(common, run.config.training.steps), layers=LAYERS, t=PROBE_TIME, count=count)
    yield Progress("probe", len(runs), len(runs))
    yield Progress("report", 0, 1)
    names, columns = latents.classes, 10
    # Without a null label there is nothing to guide against.
    scale = SAMPLE_GUIDANCE if configs["plain"].diffusion.label_dropout else 1.0
    shown = replace(configs["plain"].sampling, guidance_scale=scale, count=columns)
    samples = {
        role: {step: generate(run, step, shown).images.numpy() for step in _scored_steps(run.config)}
        for role, run in runs.items()
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    write_report(
        report,
        title="Self-Transcendence: demo report",
        runs=runs,
        samples=samples,
        class_names=[names[i % len(names)] for i in range(columns)],
        sample_guidance=scale,
        maps=demo_maps(runs["plain"]),
        seconds_total=time.monotonic() - started,
    )
    yield Progress("report", 1, 1, str(report))


def demo_maps(run: Run) -> View:
    """Token maps with sliders for t and w, of one image of each of six classes."""
    return maps(run, MAP_IMAGES, MAP_LAYERS, MAP_TIMES, progress=lambda stage, done, total: None)


def _scored_steps(config: Config) -> list[int]:
    training = config.training
    every = training.milestone_every or training.steps
    return sorted({*range(every, training.steps, every), training.steps})


def estimate_seconds(configs: dict[str, Config], pace: Pace | None = None) -> float:
    """Estimated duration of the demo at the pace of the guided run, which is measured if it is not given.

    ValueError if it cannot be measured, for example for lack of memory.
    """
    guided = configs["guided"]
    shape = encoded(guided).shape
    pace = pace or measure_pace(guided, shape)
    trained = sum(config.training.steps for config in configs.values())
    steps = trained * pace.plain + model_size(guided, shape).aligned_steps * (pace.aligned - pace.plain)
    sampled = sum(len(_scored_steps(config)) for config in configs.values()) * guided.sampling.count
    # A step of sampling takes about a third of a training step with as many images.
    sampling = sampled * guided.sampling.steps * pace.plain / guided.training.batch / 3
    return 45 + steps + sampling
