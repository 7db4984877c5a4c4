"""Pages of a report: an index and one page per figure or table, which need no server and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench.evaluation.statistics import holm
from workbench.files import read_json, write_atomically
from workbench.reporting.findings import duration
from workbench.reporting.paper.claims import inconclusive
from workbench.reporting.report import Table, template
from workbench.runs.store import Run

RECORD = "artifact.json"
RUNS = "runs.zip"
# Types of the values in a record.
_PARTS = {"name": str, "title": str, "caption": str, "parameters": dict, "made": dict}
_PARTS |= dict.fromkeys(("findings", "claims", "missing", "figures", "tables", "views", "runs"), list)
_WITHOUT_RUNS = (inconclusive(0), "cannot be told: nothing is there")  # verdicts; the second in older records
_FEW = 3  # entries of what is missing that are not folded away


@dataclass(frozen=True)
class Shown:
    """The record of an artifact, with paths of its files relative to the index."""

    name: str
    record: Mapping[str, Any]

    @property
    def first_picture(self) -> str | None:
        """The PNG that represents it on the index."""
        return next((figure["files"]["png"] for figure in self.record["figures"]), None)


def read_artifacts(folder: Path, names: Sequence[str]) -> list[Shown]:
    """The artifacts of `names` that exist, in this order, with paths relative to `folder`."""
    return [
        Shown(name, _relative(read_record(folder / name), name)) for name in names if (folder / name / RECORD).is_file()
    ]


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the artifact in `folder`; ValueError naming the file if it is missing or incomplete."""
    record = read_json(folder / RECORD)
    missing = [f"{key} as {kind.__name__}" for key, kind in _PARTS.items() if not isinstance(record.get(key), kind)]
    if missing:
        raise ValueError(f"{folder / RECORD} is damaged: it lacks {', '.join(missing)}")
    return record


def write_pages(folder: Path, title: str, lead: str, shown: Sequence[Shown], made: Mapping[str, Any]) -> Path:
    """Write ``index.html`` and a page for each artifact into `folder`; return the index.

    `made` has "command", which made the report, all "commands" including sweeps, and "book", the name of the PDF.
    """
    names = [one.name for one in shown]
    for number, one in enumerate(shown):
        neighbours = {"before": names[number - 1] if number else None, "after": names[number + 1] if number + 1 < len(names) else None}
        notebook = f"{one.name}/{one.name}.ipynb"
        page = template("artifact.html.j2").render(
            artifact=one.record,
            made=_made(one.record),
            runs=_runs(one.record),
            command=f"{made['command']} --only {one.record['name']}",
            notebook=notebook if (folder / notebook).is_file() else None,
            **neighbours,
        )
        write_atomically(folder / f"{one.name}.html", page.encode())
    index = template("index.html.j2").render(
        title=title,
        lead=lead,
        claims=claims(shown),
        corrected=corrected(shown),
        cards=[_card(one) for one in shown],
        made=_summary(shown),
        commands=made["commands"],
        book=made["book"],
    )
    write_atomically(folder / "index.html", index.encode())
    return folder / "index.html"


def write_readme(
    folder: Path, title: str, lead: str, shown: Sequence[Shown], commands: Sequence[str], packed: Sequence[Run]
) -> Path:
    """Write the index as ``README.md``, for reading in a repository; `packed` are the runs in ``runs.zip``."""
    rows = claims(shown).rows
    lines = [f"# {title}", "", lead, "", "Made by:", "", *(f"    {command}" for command in commands), ""]
    if packed:
        spent = sum(run.status.get("seconds", 0.0) for run in packed)
        count = f"{len(packed)} run{'s'[: len(packed) != 1]}"
        lines += [
            f"The {count} took {duration(spent)} of training in total, in wall-clock time, including other load and "
            "sleep of the machine; `tests/benchmarks/step.py --all` compares costs. Records without weights are in "
            f"[{RUNS}]({RUNS}): `workbench unpack {RUNS}` unpacks them, and the last command makes the tables and score "
            "curves again; artifacts that need weights are kept.",
            "",
        ]
    if rows:
        lines += ["## The paper's claims", "", *filter(None, [corrected(shown)]), ""]
        lines += ["| | claim | here | evidence | p (Holm) |", "|---|---|---|---|---|"]
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
    """What is missing and the commands that make it, folded away if it is long."""
    lines = [f"- Missing: {entry['what']}. `{entry['command']}`" for entry in missing]
    if len(lines) <= _FEW:
        return lines
    return [
        "<details>",
        f"<summary>{len(lines)} missing, with the commands that make them</summary>",
        "",
        *lines,
        "",
        "</details>",
    ]


def claims(shown: Sequence[Shown]) -> Table:
    """The paper's claims with their verdicts and evidence, without those for which there are no runs."""
    listed = [(one.name, claim) for one in shown for claim in one.record["claims"]]
    listed = [(name, claim) for name, claim in listed if claim["verdict"] not in _WITHOUT_RUNS]
    adjusted = iter(holm(_tested(shown)))
    rows = [
        [name, claim["claim"], claim["verdict"], claim["confidence"],
         "" if claim.get("p") is None else f"{next(adjusted):.2g}"]
        for name, claim in listed
    ]  # fmt: skip
    return Table("Whether the paper’s claims hold for these runs.", ["", "claim", "here", "evidence", "p (Holm)"], rows)


def corrected(shown: Sequence[Shown]) -> str:
    """How many claims stay significant after correction for their number; "" if none has a p value."""
    ps = _tested(shown)
    if not ps:
        return ""
    alone, together = (sum(p < 0.05 for p in family) for family in (ps, holm(ps)))
    return (
        f"{len(ps)} claims are tested over training seeds (paired t test). {alone} have p below 0.05 alone, {together} "
        f"after Holm's correction for all {len(ps)}; verdicts are those of each claim alone."
    )


def _tested(shown: Sequence[Shown]) -> list[float]:
    """The p values of all claims that have one, in the order of the claims."""
    every = [claim.get("p") for one in shown for claim in one.record["claims"]]
    return [p for p in every if p is not None]


def _relative(record: Mapping[str, Any], name: str) -> dict[str, Any]:
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
    line = " · ".join([*one.record["findings"][:1], *([f"{missing} missing"] if missing else [])])
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


def _summary(shown: Sequence[Shown]) -> list[str]:
    if not shown:
        return []
    runs = {run["fingerprint"] for one in shown for run in one.record["runs"]}
    seconds = sum(one.record["made"]["seconds"] for one in shown)
    dates = sorted(one.record["made"]["date"] for one in shown)
    count = f"{len(shown)} figures and tables from {len(runs)} runs"
    return [f"{count}, made in {duration(seconds)}, the last on {_date(dates[-1])}."]


def _runs(record: Mapping[str, Any]) -> Table:
    rows = [[run["name"], run["fingerprint"], str(run["seed"]), f"{run['step']:,}"] for run in record["runs"]]
    return Table("Runs that this was made from.", ["run", "fingerprint", "seed", "step"], rows)


def _date(stamp: float) -> str:
    return datetime.fromtimestamp(stamp).strftime("%Y-%m-%d")
