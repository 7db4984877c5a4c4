"""The record of a figure or table of the paper, with caption and findings, saved as one folder."""

import base64
import functools
import html
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.files import write_atomically, write_json
from workbench.lab.drawing import METADATA, encoded
from workbench.lab.view import View
from workbench.reporting.paper.ours import corrections
from workbench.reporting.paper.table import Table, to_csv, to_latex, to_markdown
from workbench.runs.store import Run, machine

_DPI = 300
_WIDE = 4.5  # inches from which a picture takes the full width of a page


@dataclass(frozen=True)
class Missing:
    """What is missing, and the command that produces it."""

    what: str
    command: str


def in_other_folder(command: str) -> str:
    """The command with another folder of runs, for runs that exist here without the weights."""
    return " && ".join(f"WORKBENCH_RUNS=runs-with-weights {one}" for one in command.split(" && "))


NO_RUNS = "inconclusive: no runs"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, its verdict here ("holds", "does not hold", "inconclusive ..."), and the evidence.

    `p` is that of a paired t test over seeds, None if there is none; a report corrects it for the number of its claims.
    """

    claim: str
    verdict: str
    confidence: str
    p: float | None = None

    @property
    def sentence(self) -> str:
        return f"{self.claim}: {self.verdict}. {self.confidence}"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A figure or table: pictures with alternative texts, tables, live views, findings and what is missing.

    `findings` are sentences computed from the data: `claims`, then `remarks`, then known errors of the runs. A picture
    or table without data has to be listed as missing instead: AssertionError for an empty one.
    """

    name: str
    title: str
    caption: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    remarks: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    missing: tuple[Missing, ...] = ()
    alts: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if set(self.alts) != set(self.figures):
            raise ValueError(f"{self.name} has pictures {list(self.figures)} and alternative texts {list(self.alts)}")
        for name, figure in self.figures.items():
            assert not is_empty(figure), f"{self.name}: nothing is drawn in {name}; list it as missing instead"
        for name, table in self.tables.items():
            assert table.rows, f"{self.name}: table {name} has no rows; list it as missing instead"

    @property
    def findings(self) -> tuple[str, ...]:
        tested = [claim.sentence for claim in self.claims if claim.verdict != NO_RUNS]
        others = [claim.claim for claim in self.claims if claim.verdict == NO_RUNS]
        untested = [f"Not tested, as there are no runs to compare: {'; '.join(others)}."] if others else []
        return (*tested, *untested, *self.remarks, *corrections(self.runs))

    def renamed(self, name: str) -> "Artifact":
        """A copy with the name under which it is registered."""
        return self if self.name == name else replace(self, name=name)

    def save(self, folder: Path) -> Path:
        """Write all pictures, tables and views and ``artifact.json`` into `folder`, each atomically; return the folder.

        Pictures are written as PNG (300 dpi), PDF and SVG, tables as CSV, Markdown and LaTeX, views as a page each.
        ``artifact.json`` is written last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in self.figures.items():
            for ending in METADATA:
                write_atomically(folder / f"{name}.{ending}", encoded([figure], ending, _DPI, tight=False))
        for name, table in self.tables.items():
            texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table, f"{self.name}-{name}")}
            for ending, text in texts.items():
                write_atomically(folder / f"{name}.{ending}", text.encode())
        for name, view in self.views.items():
            view.save_html(folder / f"{name}.html")
        write_json(folder / "artifact.json", self.record())
        return folder

    def record(self) -> dict[str, Any]:
        """Everything except pictures and views, as JSON values."""
        origin = machine()
        origin["versions"] |= {
            "matplotlib": version("matplotlib"),
            "diffusion-workbench": version("diffusion-workbench"),
        }
        return {
            "name": self.name,
            "title": self.title,
            "caption": self.caption,
            "parameters": {key: _plain(value) for key, value in self.parameters.items()},
            "findings": list(self.findings),
            "claims": [asdict(claim) for claim in self.claims],
            "missing": [asdict(one) for one in self.missing],
            "figures": [_figure(name, figure, self.alts[name]) for name, figure in self.figures.items()],
            "tables": [_table(name, table) for name, table in self.tables.items()],
            "views": [{"name": n, "title": view.title, "file": f"{n}.html"} for n, view in self.views.items()],
            "runs": [_run(run) for run in self.runs],
            "made": {**origin, "date": time.time(), "seconds": self.seconds},
        }

    def _repr_html_(self) -> str:
        parts = [f"<h3>{html.escape(self.title)}</h3><p>{html.escape(self.caption)}</p>"]
        for name, figure in self.figures.items():
            data = base64.b64encode(encoded([figure], "png", 110, tight=False)).decode()
            alt = html.escape(self.alts[name], quote=True)
            parts.append(f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{data}">')
        parts += [_html(table) for table in self.tables.values()]
        listed = [*self.findings, *(f"Missing: {one.what}. {one.command}" for one in self.missing)]
        return "".join([*parts, "<ul>", *(f"<li>{html.escape(text)}</li>" for text in listed), "</ul>"])


def is_empty(figure: Figure) -> bool:
    """Whether no axes of a figure show data: markers, lines, bars or images."""
    return not any(_draws(axes) for axes in figure.axes)


def _draws(axes: Axes) -> bool:
    # Lines across the whole axes, such as a floor, are not data: one of their coordinates is in axes units.
    data = [
        line
        for line in axes.lines
        if np.size(line.get_xdata()) and line.get_transform().contains_branch_seperately(axes.transData) == (True, True)
    ]
    return bool(data or axes.collections or axes.patches or axes.images)


def timed(make: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """Decorate `make` to record its duration, and arguments other than the defaults, in the artifact."""

    @functools.wraps(make)
    def timed_make(*args: Any, **kwargs: Any) -> Artifact:
        signature = inspect.signature(make)
        bound = signature.bind(*args, **kwargs).arguments
        given = {key: value for key, value in bound.items() if value != signature.parameters[key].default}
        began = time.monotonic()
        return replace(make(*args, **kwargs), parameters=given, seconds=time.monotonic() - began)

    return timed_make


def distinct(runs: Iterable[Run]) -> tuple[Run, ...]:
    """`runs` without repeats, in order."""
    return tuple({run.folder: run for run in runs}.values())


def _figure(name: str, figure: Figure, alt: str) -> dict[str, Any]:
    files = {ending: f"{name}.{ending}" for ending in METADATA}
    return {"name": name, "alt": alt, "wide": bool(figure.get_figwidth() >= _WIDE), "files": files}


def _table(name: str, table: Table) -> dict[str, Any]:
    return {
        "name": name,
        "caption": " ".join([table.caption, *table.notes]),
        "columns": list(table.headings),
        "rows": [list(row) for row in table.texts],
        "keys": table.keys,
        "words": [index for index, column in enumerate(table.columns) if column.kind == "text"],
        "quoted": [row.quoted for row in table.rows],
        "numbers": [[_plain(cell) for cell in row.cells] for row in table.rows],
        "files": {ending: f"{name}.{ending}" for ending in ("csv", "md", "tex")},
    }


def _run(run: Run) -> dict[str, Any]:
    config, step = run.config, run.status["step"]
    return {"name": run.name, "fingerprint": run.fingerprint, "seed": config.training.seed, "step": step}


def _plain(value: Any) -> Any:
    """As JSON values: records as mappings, paths and anything unknown as strings."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else str(value)


def _html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.headings)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.texts)
    caption = html.escape(" ".join([table.caption, *table.notes]))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
