"""Methods side by side: presets trained with several seeds and scored alike, as data, as a table and as a picture."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from workbench.config import Config, SamplingConfig, load_config, presets
from workbench.evaluation.statistics import paired
from workbench.evaluation.suite import score
from workbench.files import write_atomically, write_json
from workbench.reporting.figures import LOOK, METRICS, compute_seconds, png, total_seconds
from workbench.runs.store import machine, prepare_run
from workbench.training.loop import fit

COLUMNS = ("fd-clf64", "kid-clf64", "precision-clf64", "recall-clf64", "class-agreement")
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
    unknown preset, for none, and for presets that are not sampled alike.
    """
    if not names or not seeds:
        raise ValueError("a comparison needs at least one preset and one seed")
    configs = {name: load_config(name, overrides) for name in names}
    sampling = configs[names[0]].sampling
    for name, config in configs.items():
        if _unshifted(config.sampling) != _unshifted(sampling):
            raise ValueError(f"{name} is not sampled as {names[0]} is: {config.sampling} and {sampling}")
    results: dict[str, list[_Result]] = {name: [] for name in names}
    total, rows = len(names) * len(seeds), ()
    for number, (seed, name) in enumerate((seed, name) for seed in seeds for name in names):
        where = (number, total, rows)
        trained = yield from _train(name, seed, root, overrides, where)
        if trained is None:
            return
        run, seconds, with_teacher = trained
        config = load_config(name, (*overrides, f"training.seed={seed}"))
        scores = {r["metric"]: r["value"] for r in score(run, config.training.steps, config.sampling, small_ok=True)}
        results[name].append(_Result(seed, scores, seconds, with_teacher))
        rows = tuple(_row(n, configs[n], found) for n, found in results.items() if found)
        yield Progress("methods", number + 1, total, f"{name}, seed {seed}", rows)


@dataclass(frozen=True)
class _Result:
    """One seed of a preset."""

    seed: int
    scores: dict[str, float]
    seconds: float
    seconds_with_teacher: float


def _unshifted(sampling: SamplingConfig) -> SamplingConfig:
    """Sampling but for what belongs to a backbone's own sampler."""
    return replace(sampling, shift=1.0, guidance_channels=None)


def _train(name, seed, root, overrides, where) -> Iterator[Progress]:
    """Train one run after its teacher; returns the run and its seconds without and with the teacher's, or None."""
    changes, before = [*overrides, f"training.seed={seed}"], 0.0
    options = load_config(name, changes).objective.options
    if options.get("teacher") in presets():
        taught = yield from _train(options["teacher"], seed, root, overrides, where)
        if taught is None:
            return None
        teacher, _, spent = taught
        changes.append(f"objective.teacher={teacher.folder}")
        own = total_seconds(teacher)
        step = options.get("teacher_step")
        step = teacher.config.training.steps if step is None else step
        before = spent - own + compute_seconds({"teacher": teacher}, "teacher", [step]).item()
    config = load_config(name, changes)
    number, total, rows = where
    for record in fit(config, root):
        note = f"{name}, seed {seed}: step {record['step']}/{config.training.steps}"
        yield Progress("methods", number, total, note, rows)
    run = prepare_run(config, root)
    if run.status["state"] != "finished":
        return None
    return run, total_seconds(run), total_seconds(run) + before


def _row(name: str, config: Config, results: Sequence[_Result]) -> Row:
    known = [metric for metric in COLUMNS if metric in results[0].scores]
    return Row(
        preset=name,
        backbone=config.backbone.name,
        method=config.objective.name,
        steps=config.training.steps,
        seeds=tuple(result.seed for result in results),
        scores={metric: tuple(result.scores[metric] for result in results) for metric in known},
        seconds=statistics.mean(result.seconds for result in results),
        seconds_with_teacher=statistics.mean(result.seconds_with_teacher for result in results),
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
        "Mean over seeds, ± standard deviation over seeds; the last step of each run. Against plain: the mean",
        "difference of FD-clf64 by seed, with the 95 % t interval of that mean, which takes differences as normal and",
        "knows nothing of the other rows. Seconds are as they came, with whatever else the machine did;",
        "`workbench bench step --all` compares costs.",
        "",
        "![FD-clf64 of each method and seed](methods.png)",
        "",
        "| preset | method | steps | seeds | "
        + " | ".join(METRICS[m] for m in COLUMNS)
        + " | FD against plain | seconds | with teacher |",
        "|---|---|---|---|" + "---|" * (len(COLUMNS) + 3),
    ]
    for row in rows:
        cells = [_spread(row.scores[metric]) if metric in row.scores else "–" for metric in COLUMNS]
        times = f"{row.seconds:.0f} | {row.seconds_with_teacher:.0f}"
        lines.append(
            f"| {row.preset} | {row.method} | {row.steps} | {len(row.seeds)} | {' | '.join(cells)} | "
            f"{_against_plain(row, rows)} | {times} |"
        )
    return "\n".join(lines) + "\n"


def _against_plain(row: Row, rows: Sequence[Row]) -> str:
    """The paired difference of FD to the plain row of the same backbone and steps, with its interval."""
    alike = (other for other in rows if (other.backbone, other.steps) == (row.backbone, row.steps))
    plain = next((other for other in alike if other.method == "denoise"), None)
    if plain is None or plain is row or not {*plain.seeds} & {*row.seeds}:
        return "–"
    values = [dict(zip(one.seeds, one.scores["fd-clf64"], strict=True)) for one in (plain, row)]
    found = paired(*values)
    interval = f" ({found.interval.low:+.2g} .. {found.interval.high:+.2g})" if found.interval else ""
    return f"{found.mean:+.2g}{interval}"


def methods_figure(rows: Sequence[Row]) -> Figure:
    """FD-clf64 of every seed, a line a preset, mark and colour by backbone; a bar stands at the mean."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    with rc_context(LOOK):
        figure = Figure(figsize=(7.2, 0.32 * len(rows) + 1.4), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(rows):
            number = backbones.index(row.backbone)
            mark, colour = _MARKS[number % len(_MARKS)]
            values = row.scores["fd-clf64"]
            first = row.backbone not in [before.backbone for before in rows[:place]]
            label = row.backbone if first else None
            axis.plot(values, [place] * len(values), mark, color=colour, alpha=0.75, label=label)
            axis.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color=colour)
        axis.set(xlabel="FD-clf64 (lower is better)", ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), [row.preset.partition("/")[2] for row in rows])
        axis.grid(axis="y", visible=False)
        figure.legend(loc="outside upper right", ncols=len(backbones))
    return figure


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}" if len(values) > 1 else f"{mean:.3g}"
