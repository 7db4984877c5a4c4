"""One HTML file about three finished runs: teacher, plain and guided, with its pictures inside.

The sentences under "What the numbers say" are built from the numbers by `findings`; none is written beforehand.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from workbench.config import Config
from workbench.evaluation.statistics import PROTOCOL, protocol
from workbench.files import write_atomically
from workbench.reporting import figures
from workbench.reporting.figures import LOWER_IS_BETTER, METRICS
from workbench.runs.store import Run

LABELS = ("teacher", "plain", "guided")

# Our convention: twice to five times what retraining moves such scores at published scale.
MARGIN = 0.05

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Text cells; ``rows`` begin with their own heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    path: Path,
    *,
    title: str,
    runs: Mapping[str, Run],
    samples: Mapping[str, Mapping[int, UInt8[np.ndarray, "n c h w"]]],
    class_names: Sequence[str],
    maps: Any,
    seconds_total: float | int,
) -> Path:
    """Write the report of the runs "teacher", "plain" and "guided" to ``path``, whole or not at all; return it.

    ``samples`` and ``class_names`` are those of `figures.sample_grid`, ``maps`` those of `figures.token_maps`;
    ``seconds_total`` is what everything took, scoring included. ValueError for a missing run.
    """
    if set(runs) != set(LABELS):
        raise ValueError(f"a report needs the runs {', '.join(LABELS)}; got {', '.join(runs) or 'none'}")
    runs = {label: runs[label] for label in LABELS}
    training = sum(figures.total_seconds(run) for run in runs.values())
    scores = score_tables(runs)
    page = _template().render(
        title=title,
        settings=settings(runs),
        pictures=_pictures(runs, samples, class_names, maps),
        class_names=list(dict.fromkeys(class_names)),
        panels=[name for name, _ in maps.panels],
        maps_of=maps.of,
        scores=scores,
        findings=findings(runs),
        ways=list(dict.fromkeys(table.caption for table in scores)),
        seeds=", ".join(f"{label} {run.config.training.seed}" for label, run in runs.items()),
        machines=_machines(runs),
        training=duration(training),
        # A resumed job counts its last part only, which says nothing about the whole.
        total=duration(seconds_total) if seconds_total >= training else None,
    )
    write_atomically(path, page.encode())
    return path


def findings(runs: Mapping[str, Run]) -> list[str]:
    """What the scores of the plain and the guided run say, in sentences, and how little one training seed says."""
    sentences = [
        *_equal_steps(runs, "fd-clf64"),
        *_equal_compute(runs, "fd-clf64"),
        *_equal_steps(runs, "kid-clf64"),
        *_equal_steps(runs, "class-agreement"),
        *_probes(runs),
    ]
    return [
        *(sentences or ["The plain and the guided run share no score measured alike, so nothing is compared."]),
        "Each method was trained with one seed. Retraining moves such scores by 1–2\u202f% or more at published scale, "
        f"and by more at this one, so a small gap is not evidence. Here gaps under {percent(MARGIN)} count as none.",
    ]


def verdict(metric: str, guided: Record, plain: Record) -> str:
    """How guided stands beside plain: "better", "worse" or "within" the noise, by margin, intervals and floor."""
    # Below the score of real images, differences are noise of the estimator.
    floored = all(r.get("floor") is not None and r["value"] <= r["floor"] for r in (guided, plain))
    if floored or _overlap(guided, plain) or _gap(guided, plain) < MARGIN:
        return "within"
    lower = guided["value"] < plain["value"]
    return "better" if lower == (metric in LOWER_IS_BETTER) else "worse"


def settings(runs: Mapping[str, Run]) -> Table:
    """The few settings that matter, a column a run; settings that no run has are left out."""
    rows = []
    for name, read in _SETTINGS.items():
        values = [read(run.config) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([name, *(_text(value) for value in values)])
    rows.append(["training time", *(duration(figures.total_seconds(run)) for run in runs.values())])
    return Table("Settings of the three runs.", ["", *runs], rows)


def score_tables(runs: Mapping[str, Run]) -> list[Table]:
    """Every score of images, one table for each way of measuring, with the floor in its last row."""
    groups: dict[tuple[Any, ...], list[tuple[str, Record]]] = {}
    scored = [
        (k, r) for k, run in runs.items() for r in run.results if r["metric"] in METRICS and r["metric"] != "probe"
    ]
    for label, record in scored:
        # The reference set belongs to a metric, not to the samples that a table is about.
        groups.setdefault(protocol({**record, "n_reference": None}), []).append((label, record))
    return [_score_table(found) for found in groups.values()]


def number(value: float | int) -> str:
    """Three digits, thousands grouped, with a real minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def percent(share: float) -> str:
    """A share as a percentage: whole from 10 % on, one digit below."""
    return f"{100 * share:.0f}\u202f%" if share >= 0.0995 else f"{100 * share:.2g}\u202f%"


def duration(seconds: float | int) -> str:
    """Seconds as a reader would say them."""
    if seconds < 100:
        return f"{seconds:.0f}\u202fs"
    if seconds < 570:
        return f"{seconds / 60:.1f}\u202fmin"
    minutes = round(seconds / 60)
    return f"{minutes}\u202fmin" if minutes < 100 else f"{minutes // 60}\u202fh {minutes % 60:02d}\u202fmin"


_SETTINGS: dict[str, Callable[[Config], Any]] = {
    "data": lambda c: c.data.name,
    "codec": lambda c: c.codec.name,
    "backbone": lambda c: f"{c.backbone.name}-{c.backbone.options['size']}/{c.backbone.options['patch']}",
    "objective": lambda c: c.objective.name,
    "aligned layer": lambda c: c.objective.options.get("layer"),
    "target": lambda c: c.objective.options.get("target"),
    "teacher’s layer": lambda c: c.objective.options.get("teacher_layer"),
    "feature guidance w": lambda c: c.objective.options.get("guidance_scale"),
    "alignment weight": lambda c: c.objective.options.get("weight"),
    "alignment ends at step": lambda c: c.objective.options.get("stop_step"),
    "steps": lambda c: c.training.steps,
    "batch": lambda c: c.training.batch,
    "learning rate": lambda c: c.training.learning_rate,
    "label dropout": lambda c: c.diffusion.label_dropout,
    "training seed": lambda c: c.training.seed,
}

_HOW = {
    "n_generated": "{:,} generated images",
    "sampler": "{} sampler",
    "sampler_steps": "{} steps",
    "guidance_scale": "guidance scale {:g}",
    "weights": "{} weights",
    "sample_seed": "sampling seed {}",
}


def _equal_steps(runs: Mapping[str, Run], metric: str) -> list[str]:
    found = figures.series({k: runs[k] for k in ("plain", "guided")}, metric)
    plain, guided = ({r["step"]: r for r in found.get(label, ())} for label in ("plain", "guided"))
    if not plain.keys() & guided.keys():
        return []
    step = max(plain.keys() & guided.keys())
    if metric in LOWER_IS_BETTER:
        return [_comparison(f"At equal steps ({step:,})", metric, guided[step], plain[step])]
    return [_intervals(f"{METRICS[metric].capitalize()} at step {step:,}", guided[step], plain[step])]


def _equal_compute(runs: Mapping[str, Run], metric: str) -> list[str]:
    found = figures.series({k: runs[k] for k in ("plain", "guided")}, metric)
    if len(found) < 2:
        return []
    plain, guided = found["plain"], found["guided"]
    spent = {k: figures.compute_seconds(runs, k, [r["step"] for r in found[k]]) for k in found}
    low, high = spent["plain"][0], spent["plain"][-1]
    inside = [i for i, seconds in enumerate(spent["guided"]) if low <= seconds <= high]
    if not inside:
        reach = f"{duration(spent['guided'][0])} to {duration(spent['guided'][-1])}"
        return [
            f"At equal total compute nothing can be compared: guided was scored after {reach} of training with its "
            f"teacher’s included, plain after {duration(low)} to {duration(high)}, and no curve is extended."
        ]
    last = inside[-1]
    seconds = spent["guided"][last]
    value = float(np.interp(seconds, spent["plain"], [r["value"] for r in plain]))
    lead = f"At equal total compute ({duration(seconds)}, teacher included; the plain run’s curve interpolated)"
    sentence = _comparison(lead, metric, guided[last], {**plain[-1], "value": value, "low": None})
    beyond = f" Beyond {duration(high)} there is no plain score to set beside guided’s."
    return [sentence + (beyond if last < len(guided) - 1 else "")]


def _comparison(lead: str, metric: str, guided: Record, plain: Record) -> str:
    word, gap = verdict(metric, guided, plain), percent(_gap(guided, plain))
    within = "within the noise margin, so the two are not told apart"
    words = within if word == "within" else f"{word} by {gap}, more than the noise margin"
    return f"{lead}, {METRICS[metric]} is {_cell(guided)} for guided and {_cell(plain)} for plain: guided is {words}."


def _probes(runs: Mapping[str, Run]) -> list[str]:
    best = {k: max(figures.last_probes(runs[k]), key=lambda r: r["value"], default=None) for k in ("plain", "guided")}
    plain, guided = best["plain"], best["guided"]
    if plain is None or guided is None or plain["step"] != guided["step"]:
        return []
    layers = f"best layer: {guided['layer']} of guided, {plain['layer']} of plain"
    return [_intervals(f"Linear probe accuracy at step {plain['step']:,} ({layers})", guided, plain)]


def _intervals(lead: str, guided: Record, plain: Record) -> str:
    scores = f"{lead} is {_cell(guided)} for guided and {_cell(plain)} for plain"
    if not (_has_interval(guided) and _has_interval(plain)):
        return f"{scores}, without intervals to judge the gap by."
    if _overlap(guided, plain):
        return f"{scores}; the 95\u202f% intervals overlap, so the two are not told apart."
    better = "guided" if guided["value"] > plain["value"] else "plain"
    small = f", though by less than {percent(MARGIN)}" if _gap(guided, plain) < MARGIN else ""
    return f"{scores}; the 95\u202f% intervals do not overlap, and {better} is higher{small}."


def _has_interval(record: Record) -> bool:
    return record.get("low") is not None and record.get("high") is not None


def _overlap(a: Record, b: Record) -> bool:
    """Whether the intervals meet; of a score without one its value has to lie in the other's."""
    if not (_has_interval(a) or _has_interval(b)):
        return False
    ends = [(r["low"], r["high"]) if _has_interval(r) else (r["value"], r["value"]) for r in (a, b)]
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]


def _gap(guided: Record, plain: Record) -> float:
    distance = abs(guided["value"] - plain["value"])
    return distance / abs(plain["value"]) if plain["value"] else float(distance > 0)


def _cell(record: Record) -> str:
    interval = f" [{number(record['low'])}, {number(record['high'])}]" if _has_interval(record) else ""
    return number(record["value"]) + interval


def _text(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _score_table(found: Sequence[tuple[str, Record]]) -> Table:
    metrics = [metric for metric in METRICS if any(r["metric"] == metric for _, r in found)]
    cells = {(label, r["step"], r["metric"]): _cell(r) for label, r in found}
    lines = sorted({(label, step) for label, step, _ in cells}, key=lambda line: (LABELS.index(line[0]), line[1]))
    rows = [[label, f"{step:,}", *(cells.get((label, step, m), "–") for m in metrics)] for label, step in lines]
    for name, key in (("real vs real (floor)", "floor"), ("real images compared with", "n_reference")):
        values = [{r[key] for _, r in found if r["metric"] == m and r.get(key) is not None} for m in metrics]
        if any(values):
            rows.append([name, "", *(" / ".join(number(v) for v in sorted(known)) or "–" for known in values)])
    return Table(_measured(found[0][1]), ["run", "step", *(METRICS[m] for m in metrics)], rows)


def _measured(record: Record) -> str:
    how = {key: value for key, value in zip(PROTOCOL, protocol(record), strict=True) if value is not None}
    return ", ".join(_HOW[key].format(value) for key, value in how.items() if key in _HOW).capitalize() + "."


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    strict = {"autoescape": True, "undefined": StrictUndefined}
    return Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict).get_template("report.html.j2")


def _machines(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    keys = ("processor", "cores", "versions", "commit")
    known = [{key: run.provenance[key] for key in keys} for run in runs.values()]
    return [machine for index, machine in enumerate(known) if machine not in known[:index]]


def _pictures(runs: Mapping[str, Run], samples: Any, class_names: Sequence[str], maps: Any) -> dict[str, str]:
    drawn = {
        "losses": figures.loss_curves(runs),
        "fd_step": figures.score_curves(runs, "fd-clf64"),
        "fd_compute": figures.score_curves(runs, "fd-clf64", "compute"),
        "samples": figures.sample_grid(samples, class_names),
        "maps": figures.token_maps(maps),
        "probes": figures.probe_by_layer(runs),
    }
    encoded = {name: base64.b64encode(figures.png(figure)).decode() for name, figure in drawn.items()}
    return {name: f"data:image/png;base64,{text}" for name, text in encoded.items()}
