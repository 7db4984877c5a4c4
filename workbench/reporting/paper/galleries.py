"""Samples of runs as galleries: the same seeds, noise and classes for every run and step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from workbench.evaluation.generate import generate
from workbench.lab import palette
from workbench.lab.drawing import coloured
from workbench.reporting.paper import style
from workbench.reporting.paper.features import class_names
from workbench.runs.store import Run

RunsAndSteps = Sequence[tuple[str, int]]


def sample_images(run: Run, step: int, count: int, guidance_scale: float, seed: int) -> np.ndarray:
    """The first `count` images, image i of class i modulo their number, as ``n h w 3``; kept in the run's folder."""
    settings = replace(run.config.sampling, count=count, guidance_scale=float(guidance_scale), seed=seed)
    return coloured(generate(run, step, settings).images.numpy())


def over_training(
    runs: Mapping[str, Run], shown: RunsAndSteps, classes: Sequence[int], guidance_scale: float, seed: int
) -> Figure:
    """A row for each run and step, a column for each class, from the same noise."""
    first = next(iter(runs.values()))
    names, count = class_names(first), max(classes) + 1
    rows = []
    for method, step in shown:
        images = sample_images(runs[method], step, count, guidance_scale, seed)
        rows.append([images[label] for label in classes])
    labels = [f"{style.NAMES[method]}, {step:,}" for method, step in shown]
    colours = [palette.METHODS[method]["color"] for method, _ in shown]
    columns = [names[label] for label in classes]
    return style.grid(rows, labels, columns, row_colours=colours, cell=min(0.62, 5.2 / len(columns)))


def gallery(run: Run, step: int, classes: Sequence[int], each: int, guidance_scale: float, seed: int) -> Figure:
    """`each` images of every class, one column per class."""
    names = class_names(run)
    images = sample_images(run, step, each * len(names), guidance_scale, seed)
    rows = [[images[label + len(names) * number] for label in classes] for number in range(each)]
    return style.grid(rows, [""] * each, [names[label] for label in classes], cell=min(0.8, 6.6 / len(classes)))


def chosen_classes(run: Run, classes: Sequence[int] | None, most: int = 10) -> list[int]:
    """The given classes, by default the first ones; ValueError for a class that does not exist."""
    names = class_names(run)
    chosen = list(range(min(most, len(names)))) if classes is None else [int(label) for label in classes]
    if not chosen or not 0 <= min(chosen) <= max(chosen) < len(names):
        raise ValueError(f"classes is {classes}; allowed are one or more of 0 to {len(names) - 1}")
    return chosen
