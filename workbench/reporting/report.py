"""HTML report on three finished runs, teacher, plain and guided, as one file with embedded figures."""

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from workbench.config import Config
from workbench.evaluation.metrics import default_detector, in_order, metric_name, metric_title
from workbench.evaluation.statistics import PROTOCOL, protocol
from workbench.files import write_atomically
from workbench.lab.view import View
from workbench.reporting import figures
from workbench.reporting.figures import Record, Samples
from workbench.reporting.findings import cell, duration, findings, number
from workbench.runs.store import Run

LABELS = ("teacher", "plain", "guided")


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first cell of each row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    path: Path,
    *,
    title: str,
    runs: Mapping[str, Run],
    samples: Samples,
    class_names: Sequence[str],
    sample_guidance: float,
    maps: View,
    seconds_total: float | int,
) -> Path:
    """Write the report of the runs "teacher", "plain" and "guided" to ``path`` atomically; return the path.

    ``samples`` and ``class_names`` are those of `figures.sample_grid`, generated with the guidance scale
    ``sample_guidance``; ``maps`` is a view, which stays interactive;
    ``seconds_total`` is the total time, scoring included. ValueError for a missing run.
    """
    if set(runs) != set(LABELS):
        raise ValueError(f"a report needs the runs {', '.join(LABELS)}; got {', '.join(runs) or 'none'}")
    runs = {label: runs[label] for label in LABELS}
    training = sum(figures.total_seconds(run) for run in runs.values())
    scores = score_tables(runs)
    detector = default_detector(runs["plain"].config.data.name)
    fd = metric_name(detector, "fd")
    page = template("report.html.j2").render(
        title=title,
        settings=settings(runs),
        pictures=_pictures(runs, samples, class_names, fd),
        fd=metric_title(fd),
        kid=metric_title(metric_name(detector, "kid")),
        class_names=list(dict.fromkeys(class_names)),
        sample_guidance=sample_guidance,
        scored_guidance=runs["plain"].config.sampling.guidance_scale,
        maps_page=maps.html(),
        scores=scores,
        findings=findings(runs),
        ways=list(dict.fromkeys(table.caption for table in scores)),
        seeds=", ".join(f"{label} {run.config.training.seed}" for label, run in runs.items()),
        machines=_machines(runs),
        training=duration(training),
        # A resumed demo has timed only its last part.
        total=duration(seconds_total) if seconds_total >= training else None,
    )
    write_atomically(path, page.encode())
    return path


def settings(runs: Mapping[str, Run]) -> Table:
    """The main settings, one column per run; settings that no run has are omitted."""
    rows = []
    for name, read in _SETTINGS.items():
        values = [read(run.config) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([name, *(_text(value) for value in values)])
    rows.append(["training time", *(duration(figures.total_seconds(run)) for run in runs.values())])
    return Table("Settings of the three runs.", ["", *runs], rows)


def score_tables(runs: Mapping[str, Run]) -> list[Table]:
    """Every score of images, one table per protocol, with the floor in its last rows."""
    groups: dict[tuple[Any, ...], list[tuple[str, Record]]] = {}
    of_images = [(k, r) for k, run in runs.items() for r in run.results if r.get("layer") is None]
    shown = in_order({r["metric"] for _, r in of_images}, detail=2)
    scored = [(k, r) for k, r in of_images if r["metric"] in shown]
    for label, record in scored:
        # The reference set belongs to a metric, not to the samples of a table.
        groups.setdefault(protocol({**record, "n_reference": None}), []).append((label, record))
    return [_score_table(records) for records in groups.values()]


_SETTINGS: dict[str, Callable[[Config], Any]] = {
    "data": lambda c: c.data.name,
    "vae": lambda c: c.vae.name,
    "backbone": lambda c: f"{c.backbone.name}-{c.backbone.options['size']}/{c.backbone.options['patch']}",
    "objective": lambda c: c.objective.name,
    "aligned layer": lambda c: c.objective.options.get("layer"),
    "target": lambda c: c.objective.options.get("target"),
    "teacher layer": lambda c: c.objective.options.get("teacher_layer"),
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
    "weak": "against {}",
    "weak_step": "at step {:,}",
    "weights": "{} weights",
    "sample_seed": "sampling seed {}",
}


def _text(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _score_table(records: Sequence[tuple[str, Record]]) -> Table:
    metrics = in_order({r["metric"] for _, r in records})
    cells = {(label, r["step"], r["metric"]): cell(r) for label, r in records}
    lines = sorted({(label, step) for label, step, _ in cells}, key=lambda line: (LABELS.index(line[0]), line[1]))
    rows = [[label, f"{step:,}", *(cells.get((label, step, m), "–") for m in metrics)] for label, step in lines]
    for name, key in (("real vs real (floor)", "floor"), ("reference images", "n_reference")):
        values = [{r[key] for _, r in records if r["metric"] == m and r.get(key) is not None} for m in metrics]
        if any(values):
            rows.append([name, "", *(" / ".join(map(number, sorted(several))) or "–" for several in values)])
    return Table(_measured(records[0][1]), ["run", "step", *map(metric_title, metrics)], rows)


def _measured(record: Record) -> str:
    how = {key: value for key, value in zip(PROTOCOL, protocol(record), strict=True) if value is not None}
    return ", ".join(_HOW[key].format(value) for key, value in how.items() if key in _HOW).capitalize() + "."


def template(name: str) -> Template:
    """A template by name; rendering raises an error for an undefined variable."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=True, undefined=StrictUndefined
    )
    environment.filters["code"] = code
    return environment.get_template(name)


def code(text: str) -> str:
    """Text as HTML; what stands between backticks is code, as in the notebooks, which show the same text."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _machines(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    keys = ("processor", "cores", "versions", "commit")
    known = [{key: run.provenance[key] for key in keys} for run in runs.values()]
    return [machine for index, machine in enumerate(known) if machine not in known[:index]]


def _pictures(runs: Mapping[str, Run], samples: Samples, class_names: Sequence[str], fd: str) -> dict[str, str]:
    plots = {
        "losses": figures.loss_curves(runs),
        "fd_step": figures.score_curves(runs, fd),
        "fd_compute": figures.score_curves(runs, fd, "compute"),
        "samples": figures.sample_grid(samples, class_names),
        "probes": figures.probe_by_layer(runs),
    }
    encoded = {name: base64.b64encode(figures.png(figure)).decode() for name, figure in plots.items()}
    return {name: f"data:image/png;base64,{text}" for name, text in encoded.items()}
