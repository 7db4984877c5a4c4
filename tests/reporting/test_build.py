"""Reports: notebooks that make artifacts, made again when something changed; pages, README and PDF of them."""

import importlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.cli.report import Report
from workbench.config import load_config
from workbench.files import read_json, write_json
from workbench.reporting import paper
from workbench.reporting.build.assemble import assemble
from workbench.reporting.build.make import make
from workbench.reporting.build.pages import claims, corrected, read_artifacts
from workbench.runs.archive import unpack_records
from workbench.runs.store import prepare_run

FIGURE = '''
"""Title of NAME.

What its file says.
"""
from matplotlib.figure import Figure
from workbench.reporting.paper.artifact import Claim, Artifact, Missing
from workbench.reporting.paper.table import Column, Number, Row, Table
from workbench.runs.store import find_runs, home

def NAME(scale="laptop", evaluate=False):
    figure = Figure(figsize=(4, 3)); figure.subplots().plot([1, 2])
    table = Table("Scores <of> two rows.", (Column("row"), Column("FD", "ours")), (Row(("plain", Number(3.5))),))
    said = "What is missing was scored." if evaluate else "It is so."
    return Artifact(
        name="NAME", title="Title of NAME", caption="What is seen.", figures={"line": figure}, alts={"line": "A line."},
        tables={"scores": table}, claims=(Claim("One is better", "holds here", "In 3 of 3 seeds."),), remarks=(said,),
        runs=tuple(find_runs(home())), missing=MISSING,
    )
'''
NOTHING = """
from workbench.reporting.paper.artifact import Artifact, Missing

def NAME(scale):
    lacking = (Missing("a run", "workbench train demo/plain"),)
    return Artifact("NAME", "Title of NAME", "This takes a run.", missing=lacking)
"""
FIGURES = ("one", "two", "three")


def figure(place: Path, name: str, code: str = FIGURE, missing: str = "()") -> None:
    (place / "own" / f"ours_{name}.py").write_text(
        code.replace("def NAME", f"def ours_{name}").replace("NAME", name).replace("MISSING", missing)
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Figures that an installed package registers, a run and where the report goes."""
    for name in ("own", "own/ours-1.0.dist-info", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "ours-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n"
    )
    entries = "\n".join(f"{name} = ours_{name}" for name in FIGURES)
    (tmp_path / "own" / "ours-1.0.dist-info" / "entry_points.txt").write_text(f"[workbench.figures]\n{entries}\n")
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "own"), os.environ.get("PYTHONPATH", "")]))
    importlib.invalidate_caches()
    prepare_run(load_config("demo/plain"), tmp_path / "runs")
    return tmp_path


def states(place: Path, **options) -> dict[str, str]:
    options = {"only": ["one", "two"], **options}
    return {one.name: one.state for one in make("laptop", place / "runs", place / "out", workers=2, **options)}


@pytest.mark.slow
def test_what_nothing_changed_for_is_kept_and_what_fails_leaves_its_last_form(place):
    figure(place, "one")
    figure(place, "two", missing='(Missing("a run", "workbench train demo/guided"),)')
    assert states(place) == {"one": "made", "two": "made"}
    assert states(place) == {"one": "kept", "two": "kept"}
    # Another run matters to the one that lacks some; a score of its own run to the other one too.
    prepare_run(load_config("demo/plain", ["training.seed=1"]), place / "runs")
    assert states(place) == {"one": "kept", "two": "made"}
    assert states(place, only=["one"], force=True) == {"one": "made"}
    # What was made without scoring first is made again when that is asked for, and then is the same to both.
    assert [states(place, only=["one"], score=True)["one"] for _ in range(2)] == ["made", "kept"]
    assert states(place, only=["one"]) == {"one": "kept"}
    executed = json.loads((place / "out" / "one" / "one.ipynb").read_text())
    (about,) = (cell["outputs"][0]["data"]["text/markdown"] for cell in executed["cells"] if cell["id"] == "about")
    assert "".join(about) == "# Title of one\n\nWhat its file says."
    record = json.loads((place / "out" / "one" / "artifact.json").read_text())
    assert record["findings"] == ["One is better: holds here. In 3 of 3 seeds.", "What is missing was scored."]
    run = prepare_run(load_config("demo/plain"), place / "runs")
    run.append("results.jsonl", {"metric": "fd-clf64", "value": 1.0})
    before = (place / "out" / "one" / "artifact.json").read_bytes()
    figure(place, "one", 'def NAME(scale): raise ValueError("no luck")')
    figure(place, "three", "import os, signal\ndef NAME(scale): os.kill(os.getpid(), signal.SIGKILL)")
    reasons = {}
    for one in make("laptop", place / "runs", place / "out", only=["one", "three", "two"], workers=2):
        reasons[one.name] = (one.state, one.reason)
    assert reasons["one"][0] == "failed" and "ValueError: no luck (cell figure)" in reasons["one"][1]
    assert reasons["three"][0] == "failed" and re.search("(?i)kernel died", reasons["three"][1])
    assert reasons["two"] == ("made", "")
    assert (place / "out" / "one" / "artifact.json").read_bytes() == before


@pytest.mark.slow
def test_what_cannot_be_shown_is_listed_and_fails_where_it_was_asked_for(place, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(place / "runs"))
    figure(place, "one", NOTHING)
    figure(place, "three")
    monkeypatch.setattr(paper, "names", lambda: ["one", "three"])
    command = Report(out=place / "out", workers=2)
    command.execute()  # the whole of it was made of what there is
    said = "workbench: one cannot be shown yet. This takes a run. Missing: a run: workbench train demo/plain"
    assert said in capsys.readouterr().err
    replace(command, scale="laptop", out=place / "out", only="three").execute()
    with pytest.raises(SystemExit) as ended:
        replace(command, only="one,three").execute()  # kept, and still nothing to see
    assert ended.value.code == 1 and said in capsys.readouterr().err
    # What was made of more than there is now stays.
    before = (place / "out" / "laptop" / "three" / "artifact.json").read_bytes()
    figure(place, "three", NOTHING)
    with pytest.raises(SystemExit):
        replace(command, only="three").execute()
    assert "three cannot be shown yet" in capsys.readouterr().err
    assert (place / "out" / "laptop" / "three" / "artifact.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": 3}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "fig2").mkdir()
    (tmp_path / "fig2" / "artifact.json").write_text(content)
    with pytest.raises(ValueError, match=r"fig2/artifact\.json is damaged"):
        assemble("laptop", tmp_path, "workbench report laptop", tmp_path)


def test_what_is_not_there_is_refused(place):
    for options, words in (
        ({"only": ["fig3"]}, "figure or table 'fig3' is not known; did you mean 'fig"),
        ({}, "laptop"),
    ):
        with pytest.raises(ValueError, match=words):
            list(make("laptop" if options else "desktop", place / "runs", place / "out", **options))


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """A report of two artifacts, written by hand: what the notebooks would leave."""
    folder = tmp_path_factory.mktemp("report")
    for number, name in enumerate(("fig2", "table1")):
        artifact(folder / name, name, missing=number == 1)
    return folder


def artifact(folder: Path, name: str, missing: bool) -> None:
    folder.mkdir()
    for ending in ("png", "pdf", "svg", "csv", "md", "tex", "ipynb", "html"):
        (folder / f"{name}.{ending}").write_text("content")
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(folder / f"{name}.png")
    files = {
        kind: {ending: f"{name}.{ending}" for ending in endings.split()}
        for kind, endings in (("picture", "png pdf svg"), ("table", "csv md tex"))
    }
    record = {
        "name": name, "title": f"Title of {name}", "caption": "What is <seen> – with 3 seeds.", "parameters": {},
        "findings": ["One is better: holds here. In 3 of 3 seeds.", "`compute` counts <it>."],
        "claims": [{"claim": "One is better", "verdict": "holds here", "confidence": "In 3 of 3 seeds."},
                   {"claim": "Two is", "verdict": "inconclusive: no runs", "confidence": "None."}],
        "missing": [{"what": "a run", "command": "workbench train demo/plain"}] if missing else [],
        "figures": [{"name": name, "alt": "A grey field.", "wide": True, "files": files["picture"]}],
        "tables": [{"name": name, "caption": "Scores.", "columns": ["row", *"abcdefghi"], "words": [0], "keys": 1,
                    "rows": [["plain", *map(str, range(9))]], "files": files["table"]}],
        "views": [{"name": name, "title": "Maps", "file": f"{name}.html"}],
        "runs": [{"name": "plain-1", "fingerprint": "ab12", "seed": 0, "step": 400}],
        "made": {"versions": {"torch": "2"}, "processor": "P", "cores": 2, "commit": None, "date": 1.8e9,
                 "seconds": 3.0},
    }  # fmt: skip
    (folder / "artifact.json").write_text(json.dumps(record))


def test_pages_hold_together_without_a_network(bound):
    index = assemble("laptop", bound, "workbench report laptop", bound)
    pages = {path.name: path.read_text() for path in bound.glob("*.html")}
    assert index.name in pages and set(pages) == {"index.html", "fig2.html", "table1.html"}
    for page in pages.values():
        assert "http://" not in page and "https://" not in page and "<seen>" not in page
        places = re.findall(r'(?:href|src)="([^"]+)"', page)
        assert len(places) > 4 and all((bound / place).is_file() for place in places)
    assert pages["index.html"].count('<dt class="yes">holds here</dt>') == 2 and "no runs" not in pages["index.html"]
    assert "workbench train demo/plain" in pages["table1.html"] and "<iframe" in pages["fig2.html"]
    assert 'rel="next" href="table1.html"' in pages["fig2.html"]
    assert "<code>compute</code> counts &lt;it&gt;." in pages["fig2.html"] and "`" not in pages["fig2.html"]
    assert "workbench report laptop --only fig2" in pages["fig2.html"]


def test_claims_are_corrected_for_their_number(tmp_path):
    for name, p in (("fig2", 0.01), ("table1", 0.04)):
        artifact(tmp_path / name, name, missing=False)
        record = read_json(tmp_path / name / "artifact.json")
        record["claims"][0]["p"] = p
        write_json(tmp_path / name / "artifact.json", record)
    shown = read_artifacts(tmp_path, ["fig2", "table1"])
    # Holm: 2 x .01, and .04; a claim without runs is not tested.
    assert [row[-1] for row in claims(shown).rows] == ["0.02", "0.04"]
    sentence = "2 claims are tested over training seeds (paired t test). 2 have p below 0.05 alone, 2 after Holm"
    assert corrected(shown).startswith(sentence)
    page = assemble("laptop", tmp_path, "workbench report laptop", tmp_path).read_text()
    assert sentence in page and page.count("Corrected p = 0.0") == 2
    assert corrected([]) == ""


def test_the_pdf_has_every_figure_and_its_contents(bound):
    assemble("laptop", bound, "workbench report laptop", bound)
    book = (bound / "book.pdf").read_bytes()
    # A portrait page each after the contents, and one across for each wide table.
    assert book.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", book)) == 5
    assert len(re.findall(rb"/Title", book)) == 3  # its own and two in the outline


def test_the_small_edition_is_pictures_tables_and_records(bound, tmp_path):
    run = prepare_run(load_config("demo/plain"), tmp_path)
    run.append("metrics.jsonl", {"step": 700, "seconds": 90.0})
    run.write_status("finished", 700, seconds=90.0)
    run.folder.rename(tmp_path / "plain-1")
    readme = assemble("laptop", bound, "workbench report laptop --small", tmp_path, small=True).read_text()
    left = {path.suffix for name in ("fig2", "table1") for path in (bound / name).iterdir()}
    assert left == {".png", ".pdf", ".svg", ".csv", ".md", ".tex", ".json"}
    assert all((bound / place).is_file() for place in re.findall(r"\]\(([^)]+)\)", readme))
    assert "| fig2 | One is better | holds here | In 3 of 3 seeds. |" in readme
    assert "workbench sweep reports/sweeps/laptop-ablations.yaml" in readme and "The 1 run took 90\u202fs" in readme
    assert "- Missing: a run. `workbench train demo/plain`" in readme
    assert [run.name for run in unpack_records(bound / "runs.zip", tmp_path / "elsewhere")] == ["plain-1"]


OF_SCENES = """
from workbench.reporting.paper.artifact import Artifact
from workbench.reporting.paper.runs import PRESETS, runs_of
from workbench.reporting.paper.table import Column, Row, Table

def NAME(scale):
    found = runs_of(scale, PRESETS[scale], [0], weights=True)
    rows = tuple(Row((row, run.name)) for row, by_seed in found.runs.items() for run in by_seed.values())
    table = Table("Runs.", (Column("row"), Column("run")), rows)
    return Artifact("NAME", "Title of NAME", "Runs.", tables={"runs": table})
"""


@pytest.mark.slow
def test_runs_that_ship_with_the_package_are_in_the_report_of_their_scale(place):
    figure(place, "one", OF_SCENES)
    (made,) = make("scenes", place / "runs", place / "out", only=["one"], workers=1)
    assert made.state == "made"
    table = (place / "out" / "one" / "runs.csv").read_text()
    for row in ("plain", "guided", "teacher"):
        assert f"{row},zoo-scenes-{row}-" in table
