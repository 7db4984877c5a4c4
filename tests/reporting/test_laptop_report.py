"""The committed laptop report from its own records: every table again, and a plain word where weights are needed."""

import csv
import io
import json
import re
import shutil

import pytest
from matplotlib.figure import Figure

from workbench.files import read_json, write_json
from workbench.reporting import paper
from workbench.reporting.build.assemble import assemble
from workbench.reporting.build.make import reason_not_shown
from workbench.reporting.build.pages import read_artifacts
from workbench.reporting.paper.artifact import Artifact
from workbench.reporting.paper.ours import correction
from workbench.reporting.paper.table import Column, Table, to_csv
from workbench.runs.archive import unpack_records
from workbench.runs.store import Run
from workbench.shipped import shipped

NEED_WEIGHTS = {"fig1", "fig2", "fig5", "fig6", "fig7", "fig9", "fig10", "leakage", "measures", "objects"}
COMMITTED = shipped("reports/laptop")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    assert len(unpack_records(COMMITTED / "runs.zip", root)) == 168
    return root


def made(name: str, root) -> Artifact:
    return paper.artifacts()[name]("laptop", root=root)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(paper.names()) - NEED_WEIGHTS))
def test_tables_and_sentences_are_made_again_from_the_records(name, root):
    artifact = made(name, root)
    committed = {path.stem: path.read_text() for path in (COMMITTED / name).glob("*.csv")}
    assert committed and {key: to_csv(table) for key, table in artifact.tables.items()} == committed
    record = read_json(COMMITTED / name / "artifact.json")
    now = json.loads(json.dumps(artifact.record()))
    assert [now[key] for key in ("caption", "findings", "claims")] == [
        record[key] for key in ("caption", "findings", "claims")
    ]
    assert set(artifact.figures) == {path.stem for path in (COMMITTED / name).glob("*.png")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NEED_WEIGHTS))
def test_what_needs_weights_says_so_with_a_command_that_keeps_the_records(name, root, tmp_path):
    artifact = made(name, root)
    assert not artifact.figures and not artifact.tables
    assert "needs the weights of" in artifact.caption and "only the records" in artifact.caption
    assert artifact.missing and all("only records are here" in one.what for one in artifact.missing)
    for one in artifact.missing:
        assert one.command.startswith("WORKBENCH_RUNS=runs-with-weights workbench ") and "trash" not in one.command
    assert reason_not_shown(artifact.save(tmp_path / name)).startswith(artifact.caption)


def test_nothing_is_drawn_with_empty_axes():
    empty, table = Figure(), Table("Nothing.", (Column("row"),), ())
    empty.subplots().axhline(1.0)
    with pytest.raises(AssertionError, match="nothing is drawn in a"):
        Artifact("x", "X", "x.", figures={"a": empty}, alts={"a": "A line."})
    with pytest.raises(AssertionError, match="table b has no rows"):
        Artifact("x", "X", "x.", tables={"b": table})


def rows(name: str, table: str, folder=COMMITTED) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / name / f"{table}.csv").read_text())))


@pytest.mark.parametrize(
    ("name", "table"),
    [("table1", "sit"), ("table1", "lightningdit"), ("table2", "sit"), ("table2", "lightningdit"),
     ("table4", "fid"), ("table4", "is"), ("table5", "fid"), ("table5", "is"), ("time", "total")],
)  # fmt: skip
def test_a_row_says_what_ours_is_beside_the_papers_name(name, table):
    model = "LightningDiT-nano/2" if table == "lightningdit" else "SiT-nano/2"
    found = [row for row in rows(name, table) if any(row[key] for key in row if re.match("ours: |ours [(]", key))]
    assert found
    for row in found:
        assert row["ours"].startswith(model) and "Fashion-MNIST" in row["ours"] and " steps" in row["ours"]
        # The row's name is the paper's, and ours is not called by it.
        assert row["paper's row"] not in row["ours"] and not re.search(r"SiT-(B|L|XL)|DiT-(B|XL)/|\d+K", row["ours"])
    assert all(not row["ours"] for row in rows(name, table) if row not in found)


def test_the_teachers_steps_of_ours_are_not_the_papers():
    by_name = {row["paper's row"]: row["ours"] for row in rows("table5", "fid")}
    assert by_name["aligned 50K"].endswith("400 steps; teacher 50 steps")
    assert by_name["aligned 300K"].endswith("400 steps; teacher 300 steps")
    record = read_json(COMMITTED / "table5" / "artifact.json")
    ours = " ".join(claim["confidence"] for claim in record["claims"])
    assert "aligned 50 steps" in ours and not re.search(r"\d+K", ours)


@pytest.mark.slow
def test_numbers_of_models_that_were_corrected_since_say_so_wherever_they_stand(root, tmp_path):
    older, folder = tmp_path / "older", tmp_path / "report"
    shutil.copytree(root, older)
    wrong = {run.name for run in map(Run, older.glob("laptop-lightningdit-*"))}
    for name in wrong:  # as they were recorded before the correction
        kept = {key: value for key, value in Run(older / name).provenance.items() if key != "rotary"}
        write_json(older / name / "provenance.json", kept)
    assert wrong == {run.name for run in map(Run, older.glob("laptop-*")) if correction(run)}
    names = ("table1", "table2", "table4", "time")
    for name in names:
        made(name, older).save(folder / name)
    assemble("laptop", folder, "workbench report laptop", older, small=True)
    readme = (folder / "README.md").read_text()
    shown = {one.name: one for one in read_artifacts(folder, names)}
    for name, one in shown.items():
        expected = bool(wrong & {run["name"] for run in one.record["runs"]})
        assert expected == (name in ("table1", "table2"))
        assert any("rescaled rotary positions" in sentence for sentence in one.record["findings"]) == expected
        section = readme.partition(f"## {one.record['title']}\n")[2].partition("\n## ")[0]
        assert ("rescaled rotary positions" in section) == expected
    for name in ("table1", "table2"):
        for ending in ("md", "tex"):
            assert "rescaled rotary positions" in (folder / name / f"lightningdit.{ending}").read_text()
            assert "rescaled" not in (folder / name / f"sit.{ending}").read_text()
        ours = [row["ours"] for row in rows(name, "lightningdit", folder) if row["ours"]]
        assert ours and all("rescaled positions" in one for one in ours)
    claims = [line for line in readme.splitlines() if line.startswith("| table") and "On LightningDiT" in line]
    assert len(claims) == 4 and all("rescaled rotary positions" in line for line in claims)
