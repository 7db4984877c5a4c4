"""The pages of a report: an index and one page a figure or table, which need no server and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench.files import read_json, write_atomically
from workbench.reporting.findings import duration
from workbench.reporting.paper.claims import untold
from workbench.reporting.report import Table, template
from workbench.runs.store import Run

RECORD = "artifact.json"
RUNS = "runs.zip"
# What a record has.
_PARTS = {"name": str, "title": str, "caption": str, "parameters": dict, "made": dict}
_PARTS |= dict.fromkeys(("findings", "claims", "missing", "figures", "tables", "views", "runs"), list)
_FEW = 3  # missing things that are named at once


@dataclass(frozen=True)
class Shown:
    """One artifact as its folder holds it: the record and where its files are, seen from the index."""

    name: str
    record: Mapping[str, Any]

    @property
    def first_picture(self) -> str | None:
        """The PNG that stands for it on the index."""
        return next((figure["files"]["png"] for figure in self.record["figures"]), None)


def read_artifacts(folder: Path, names: Sequence[str]) -> list[Shown]:
    """Those of `names` that were made, in this order, with the paths of their files from `folder`."""
    return [
        Shown(name, _placed(read_record(folder / name), name)) for name in names if (folder / name / RECORD).is_file()
    ]


def read_record(place: Path) -> dict[str, Any]:
    """The record of the artifact in `place`; ValueError naming the file if it is missing or lacks a part."""
    record = read_json(place / RECORD)
    lacking = [f"{key} as {kind.__name__}" for key, kind in _PARTS.items() if not isinstance(record.get(key), kind)]
    if lacking:
        raise ValueError(f"{place / RECORD} is damaged: it lacks {', '.join(lacking)}")
    return record


def write_pages(folder: Path, title: str, lead: str, shown: Sequence[Shown], made: Mapping[str, Any]) -> Path:
    """Write ``index.html`` and a page for each artifact into `folder`; return the index.

    `made` has "command", "commands" of the whole and "book", the PDF's name.
    """
    names = [one.name for one in shown]
    for place, one in enumerate(shown):
        beside = {"before": names[place - 1] if place else None, "after": names[place + 1] if place + 1 < len(names) else None}
        notebook = f"{one.name}/{one.name}.ipynb"
        page = template("artifact.html.j2").render(
            artifact=one.record,
            made=_made(one.record),
            runs=_runs(one.record),
            command=f"{made['command']} --only {one.record['name']}",
            notebook=notebook if (folder / notebook).is_file() else None,
            **beside,
        )
        write_atomically(folder / f"{one.name}.html", page.encode())
    index = template("index.html.j2").render(
        title=title,
        lead=lead,
        claims=claims(shown),
        cards=[_card(one) for one in shown],
        made=_whole(shown),
        commands=made["commands"],
        book=made["book"],
    )
    write_atomically(folder / "index.html", index.encode())
    return folder / "index.html"


def write_readme(
    folder: Path, title: str, lead: str, shown: Sequence[Shown], commands: Sequence[str], packed: Sequence[Run]
) -> Path:
    """The index as Markdown, for whoever reads the folder in a repository; `packed` are the runs that lie beside it."""
    rows = claims(shown).rows
    lines = [f"# {title}", "", lead, "", "Made by:", "", *(f"    {command}" for command in commands), ""]
    if packed:
        spent = sum(run.status.get("seconds", 0.0) for run in packed)
        count = f"{len(packed)} run{'s'[: len(packed) != 1]}"
        lines += [
            f"The {count} took {duration(spent)} of training in all, by the clock, with "
            "whatever else the machine did or however long it slept meanwhile: `tests/benchmarks/step.py --all` "
            f"compares costs. Records, without weights, are in [{RUNS}]({RUNS}): `workbench unpack {RUNS}` places "
            "them, and the last command makes the tables and curves of scores again; what takes weights stays as it "
            "is.",
            "",
        ]
    if rows:
        lines += ["## The paper's claims", "", "| | what the paper says | here | how sure |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    for one in shown:
        lines += [f"## {one.record['title']}", "", one.record["caption"], ""]
        lines += [f"![{figure['alt']}]({figure['files']['png']})\n" for figure in one.record["figures"]]
        lines += [f"- {sentence}" for sentence in one.record["findings"]]
        for table in one.record["tables"]:
            lines += ["", f"[{table['caption']}]({table['files']['md']})"]
        lines += ["", *_missing(one.record["missing"]), ""]
    write_atomically(folder / "README.md", "\n".join(lines).encode())
    return folder / "README.md"


def _missing(missing: Sequence[Mapping[str, str]]) -> list[str]:
    """What is missing and how it is made, folded away where it is long."""
    lines = [f"- Missing: {gone['what']}. `{gone['command']}`" for gone in missing]
    if len(lines) <= _FEW:
        return lines
    return [
        "<details>",
        f"<summary>{len(lines)} missing, and the commands that make it</summary>",
        "",
        *lines,
        "",
        "</details>",
    ]


def claims(shown: Sequence[Shown]) -> Table:
    """What the paper claims, what was found here and how sure that is, where there are runs to tell."""
    rows = [
        [one.name, claim["claim"], claim["verdict"], claim["confidence"]]
        for one in shown
        for claim in one.record["claims"]
        if claim["verdict"] != untold(0)
    ]
    return Table("Whether the paper’s claims hold for these runs.", ["", "claim", "here", "how sure"], rows)


def _placed(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    def at(file: str) -> str:
        return f"{name}/{file}"

    def of(files: Mapping[str, str]) -> dict[str, str]:
        return {ending: at(file) for ending, file in files.items()}

    return {
        **record,
        "figures": [{**one, "files": of(one["files"])} for one in record["figures"]],
        "tables": [{**one, "files": of(one["files"])} for one in record["tables"]],
        "views": [{**one, "file": at(one["file"])} for one in record["views"]],
    }


def _card(one: Shown) -> dict[str, Any]:
    missing = len(one.record["missing"])
    line = f"{missing} missing" if missing else (one.record["findings"] or [""])[0]
    return {"name": one.name, "title": one.record["title"], "picture": one.first_picture, "line": line}


def _made(record: Mapping[str, Any]) -> list[str]:
    made = record["made"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [
        f"Made on {_date(made['date'])} in {duration(made['seconds'])}.",
        f"Parameters: {', '.join(f'{key} {value}' for key, value in record['parameters'].items()) or 'the defaults'}.",
        f"Machine: {made['processor']}, {made['cores']} cores. Versions: {versions}.",
        f"Code: {made['commit'] or 'unknown'}.",
    ]


def _whole(shown: Sequence[Shown]) -> list[str]:
    if not shown:
        return []
    runs = {run["fingerprint"] for one in shown for run in one.record["runs"]}
    seconds = sum(one.record["made"]["seconds"] for one in shown)
    dates = sorted(one.record["made"]["date"] for one in shown)
    whole = f"{len(shown)} figures and tables of {len(runs)} runs, made in {duration(seconds)}"
    return [f"{whole}, the last on {_date(dates[-1])}."]


def _runs(record: Mapping[str, Any]) -> Table:
    rows = [[run["name"], run["fingerprint"], str(run["seed"]), f"{run['step']:,}"] for run in record["runs"]]
    return Table("Runs that this was made of.", ["run", "fingerprint", "seed", "step"], rows)


def _date(stamp: float) -> str:
    return datetime.fromtimestamp(stamp).strftime("%Y-%m-%d")
