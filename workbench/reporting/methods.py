"""Methods side by side: presets trained with several seeds and scored alike, as data, as a table and as a picture."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from workbench.config import Config, load_config, presets
from workbench.evaluation.suite import score
from workbench.files import write_atomically, write_json
from workbench.reporting.figures import LOOK, METRICS, png, total_seconds
from workbench.runs.store import Run, machine, prepare_run
from workbench.training.loop import fit

COLUMNS = ("fd-clf64", "kid-clf64", "class-agreement")
_MARKS = (("o", "#0072B2"), ("s", "#D55E00"), ("^", "#009E73"))  # Okabe and Ito, a mark and a colour a backbone


@dataclass(frozen=True)
class Row:
    """One preset: its scores by seed at the last step, and the seconds of training, teacher included."""

    preset: str
    backbone: str
    method: str
    steps: int
    seeds: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    seconds: float
    seconds_with_teacher: float


@dataclass(frozen=True)
class Progress:
    """Where the comparison is; ``rows`` are those that are complete."""

    stage: str
    done: int
    total: int
    note: str
    rows: tuple[Row, ...]


def compare_methods(
    names: Sequence[str], seeds: Sequence[int], root: Path, overrides: Sequence[str] = ()
) -> Iterator[Progress]:
    """Train each preset with each seed, its teacher first, and score the last step; what exists is not repeated.

    Seeds come before presets, so that stopping early leaves fewer seeds, not fewer methods. Raises ValueError for an
    unknown preset.
    """
    configs = [load_config(name, overrides) for name in names]
    trained: dict[str, list[tuple[Run, float]]] = {name: [] for name in names}
    total = len(names) * len(seeds)
    rows: tuple[Row, ...] = ()
    for number, (seed, name) in enumerate((seed, name) for seed in seeds for name in names):
        spent = yield from _train(name, seed, root, overrides, number, total, rows)
        if spent is None:
            return
        trained[name].append(spent)
        run = spent[0]
        score(run, run.config.training.steps, run.config.sampling)
        rows = tuple(_row(n, c, trained[n]) for n, c in zip(names, configs, strict=True) if trained[n])
        yield Progress("methods", number + 1, total, f"{name}, seed {seed}", rows)


def _train(name, seed, root, overrides, number, total, rows) -> Iterator[Progress]:
    """Train one run after its teacher; returns the run and the seconds with the teacher's, None if stopped."""
    changes, before = [f"training.seed={seed}", *overrides], 0.0
    teacher = load_config(name, changes).objective.options.get("teacher")
    if teacher in presets():
        spent = yield from _train(teacher, seed, root, overrides, number, total, rows)
        if spent is None:
            return None
        changes.append(f"objective.teacher={spent[0].folder}")
        before = spent[1]
    config = load_config(name, changes)
    for record in fit(config, root):
        note = f"{name}, seed {seed}: step {record['step']}/{config.training.steps}"
        yield Progress("methods", number, total, note, rows)
    run = prepare_run(config, root)
    return (run, total_seconds(run) + before) if run.status["state"] == "finished" else None


def _row(name: str, config: Config, trained: Sequence[tuple[Run, float]]) -> Row:
    runs = [run for run, _ in trained]
    return Row(
        preset=name,
        backbone=config.backbone.name,
        method=config.objective.name,
        steps=config.training.steps,
        seeds=tuple(run.config.training.seed for run in runs),
        scores={metric: tuple(_last(run, metric) for run in runs) for metric in COLUMNS},
        seconds=statistics.mean(total_seconds(run) for run in runs),
        seconds_with_teacher=statistics.mean(seconds for _, seconds in trained),
    )


def _last(run: Run, metric: str) -> float:
    return next(
        r["value"] for r in reversed(run.results) if r["metric"] == metric and r["step"] == run.config.training.steps
    )


def write_comparison(rows: Sequence[Row], folder: Path, command: str, how: dict[str, Any]) -> None:
    """Write ``methods.json``, ``README.md`` and ``methods.png`` into ``folder``; ``command`` made them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "methods.json", {"command": command, **how, "rows": [asdict(r) for r in rows], **machine()})
    write_atomically(folder / "methods.png", png(methods_figure(rows)))
    write_atomically(folder / "README.md", markdown(rows, command, how).encode())


def markdown(rows: Sequence[Row], command: str, how: dict[str, Any]) -> str:
    """The comparison as a page: mean and standard deviation over seeds, seconds without and with the teacher."""
    lines = [
        "# Methods side by side",
        "",
        f"`{command}`: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in how.items()) + ".",
        "Mean over seeds, ± standard deviation over seeds; the last step of each run.",
        "",
        "![FD-clf64 of each method and seed](methods.png)",
        "",
        "| preset | method | steps | seeds | "
        + " | ".join(METRICS[m] for m in COLUMNS)
        + " | seconds | with teacher |",
        "|---|---|---|---|" + "---|" * (len(COLUMNS) + 2),
    ]
    for row in rows:
        cells = [_spread(row.scores[metric]) for metric in COLUMNS]
        times = f"{row.seconds:.0f} | {row.seconds_with_teacher:.0f}"
        lines.append(
            f"| {row.preset} | {row.method} | {row.steps} | {len(row.seeds)} | {' | '.join(cells)} | {times} |"
        )
    return "\n".join(lines) + "\n"


def methods_figure(rows: Sequence[Row]) -> Figure:
    """FD-clf64 of every seed, a line a method and a mark a backbone; a bar stands at the mean."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    with rc_context(LOOK):
        figure = Figure(figsize=(7.2, 0.5 * len(methods) + 1.4), layout="constrained")
        axis = figure.subplots()
        for row in rows:
            number = backbones.index(row.backbone)
            mark, colour = _MARKS[number % len(_MARKS)]
            values = row.scores["fd-clf64"]
            height = methods.index(row.method) + 0.22 * (number - (len(backbones) - 1) / 2)
            label = row.backbone if row.method == methods[0] else None
            axis.plot(values, [height] * len(values), mark, color=colour, alpha=0.8, label=label)
            axis.plot([statistics.mean(values)] * 2, [height - 0.1, height + 0.1], color=colour)
        axis.set(xlabel="FD-clf64 (lower is better)", ylim=(len(methods) - 0.5, -0.5))
        axis.set_yticks(range(len(methods)), methods)
        axis.grid(axis="y", visible=False)
        figure.legend(loc="outside upper right", ncols=len(backbones))
    return figure


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}" if len(values) > 1 else f"{mean:.3g}"
