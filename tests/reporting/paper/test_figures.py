"""Every artifact on tiny runs: its files, its record and what it says."""

import csv
import inspect
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from matplotlib.figure import Figure
from PIL import Image

from workbench import plugins
from workbench.lab.drawing import encoded
from workbench.reporting import paper
from workbench.reporting.paper import artifact as module
from workbench.reporting.paper import style
from workbench.reporting.paper.artifact import Artifact, timed

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "paper" / "figure.ipynb"
# Small, and what only some take.
FEW = {
    "fig1": {"images": 2, "eval_images": 60},
    "fig2": {"images": 60, "view": False},
    "fig5": {"classes": [0, 3], "guidance_scale": 2.0},
    "fig6": {"classes": [1, 2], "each": 2},
    "fig7": {"classes": [1], "each": 2},
    "fig8": {"stops": (2, 100)},
    "fig9": {"images": 1, "eval_images": 60, "layers": [2, 6]},
    "fig10": {"images": 1, "eval_images": 60, "layers": [2]},
    "leakage": {"images": 60, "scales": (0.0, 10.0)},
    "measures": {"images": 60},
    "objects": {"eval_images": 60},
}
WHOLE = "fig4"  # drawn in every format at its full size; the others as small PNG, which takes a tenth of the time
SHOWN = {"fig7", "objects", "table3", "table5"}  # which have no run of their own here


def test_figures_come_before_tables_and_what_goes_beyond_the_paper():
    kinds = [name.rstrip("0123456789") for name in paper.names()]
    first = [kind for kind in kinds if kind in ("fig", "table", "time")]
    assert kinds[: len(first)] == sorted(first) and {"fig", "table", "time"} == set(first)
    assert {name: make.__name__ for name, make in paper.artifacts().items()} == {name: name for name in paper.names()}
    assert paper.chosen(["table1", "fig10", "fig2"]) == ["fig2", "fig10", "table1"]
    with pytest.raises(AttributeError, match="fig4"):
        paper.fig3  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("name", paper.names())
def test_a_figure_of_tiny_runs(name, where, tmp_path, monkeypatch):
    dpi = 300 if name == WHOLE else 60
    if name != WHOLE:
        monkeypatch.setattr(module, "METADATA", {"png": module.METADATA["png"]})
        monkeypatch.setattr(module, "_DPI", dpi)
    artifact = paper.artifacts()[name](**where, **FEW.get(name, {}))
    folder = artifact.save(tmp_path / name)
    record = json.loads((folder / "artifact.json").read_text())
    assert record["name"] == name and record["caption"] and record["title"]
    assert "nan" not in json.dumps(record["findings"]).lower().split()
    for one in record["figures"]:
        assert len(one["alt"]) > 20
        with Image.open(folder / one["files"]["png"]) as picture:
            # A column or a page wide, as constrained drawing rounds it.
            assert dpi <= picture.width <= 6.95 * dpi and picture.getextrema() != ((255, 255),) * 3
        if name == WHOLE:
            assert (folder / one["files"]["svg"]).read_text().startswith("<?xml")
            assert (folder / one["files"]["pdf"]).read_bytes().startswith(b"%PDF")
    for one in record["tables"]:
        with (folder / one["files"]["csv"]).open() as file:
            lines = list(csv.reader(file))
        assert len(lines) == len(one["rows"]) + 1 and {len(line) for line in lines} == {len(lines[0])}
        assert all(len(row) == len(one["columns"]) for row in one["rows"])
        assert r"\toprule" in (folder / one["files"]["tex"]).read_text()
        assert (folder / one["files"]["md"]).read_text().count("\n|") == len(one["rows"]) + 2
    for one in record["views"]:
        assert (folder / one["file"]).read_text().startswith("<!DOCTYPE html>")
    assert record["runs"] or name in SHOWN
    assert {run["seed"] for run in record["runs"]} <= set(where["seeds"])
    assert record["made"]["seconds"] > 0 and record["made"]["versions"]["torch"]
    assert all(one["command"].startswith("workbench ") for one in record["missing"])
    assert record["figures"] or record["tables"] or record["missing"]
    page = artifact._repr_html_()
    assert all(re.search(re.escape(one["alt"][:20].replace("'", "&#x27;")), page) for one in record["figures"])


@pytest.mark.slow
@pytest.mark.parametrize("name", paper.names())
def test_without_any_run_each_says_what_makes_it(name, tmp_path):
    artifact = paper.artifacts()[name]("laptop", root=tmp_path / "nothing", seeds=(0,))
    assert artifact.missing and all(one.command.startswith("workbench ") for one in artifact.missing)
    artifact.save(tmp_path / name)


@pytest.mark.slow
def test_differences_to_the_paper_need_its_own_protocol(where):
    table = paper.artifacts()["table1"](**where).tables["sit"]
    place = [column.name for column in table.columns].index("ours less paper")
    ours = [column.kind for column in table.columns].index("ours")
    assert any(row.cells[ours] for row in table.rows) and not any(row.cells[place] for row in table.rows)


@pytest.mark.slow
def test_quoted_rows_stand_alone(where):
    for name in ("table2", "table3"):
        table = paper.artifacts()[name](**where).tables["sit"]
        quoted = [row for row in table.rows if row.quoted]
        ours = [place for place, column in enumerate(table.columns) if column.name.startswith("ours")]
        assert quoted and len(ours) == 6 and all(row.cells[place] is None for row in quoted for place in ours)
        assert sum(text[0].endswith("(quoted)") for text in table.texts) == len(quoted)


@pytest.mark.slow
def test_what_was_not_scored_is_scored_if_asked(where, tmp_path):
    few = {**where, "seeds": (0,)}
    before = paper.artifacts()["fig4"](**few)
    after = paper.artifacts()["fig4"](**few, evaluate=True)
    assert before.missing and not after.missing
    steps = {row.cells[1] for row in after.tables["score"].rows}
    assert steps == {2, 4}


@pytest.mark.slow
def test_images_without_masks_are_said_to_have_none(where):
    made = paper.fig9(**where, images=1, eval_images=60, layers=[2])
    said = "Object and background are not measured, as the images of data.name=fashion-mnist have no masks."
    assert made.remarks == (said,) and "object against background" not in [
        c.name for c in made.tables["layers"].columns
    ]
    assert not made.figures["layers"].axes[0].collections
    alone = paper.objects(**where)
    assert alone.caption == said and not alone.figures and "data.name=scenes" in alone.missing[-1].command


def test_equal_figures_are_equal_bytes_and_alternative_texts_are_not_forgotten():
    def picture() -> Figure:
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([1, 3, 2])
        return figure

    for ending in ("png", "pdf", "svg"):
        assert encoded([picture()], ending) == encoded([picture()], ending)
    with pytest.raises(ValueError, match="alternative texts"):
        Artifact("x", "X", "x.", figures={"a": picture()})


def test_what_it_was_called_with_is_kept():
    @timed
    def x(scale: str = "laptop", t: float = 0.5) -> Artifact:
        return Artifact("x", "X", f"{scale} {t}")

    assert x().parameters == {} and x("demo", t=0.5).parameters == {"scale": "demo"}


@pytest.mark.parametrize("name", paper.names())
def test_each_is_introduced_and_can_be_made_by_the_notebook(name):
    heading, introduction = paper.about(name).split("\n", 1)
    assert heading.startswith("# ") and introduction.startswith("\n") and len(introduction.split()) > 20
    parameters = list(inspect.signature(paper.artifacts()[name]).parameters.values())
    assert parameters[0].name == "scale" and all(one.default is not one.empty for one in parameters)


def test_the_notebook_is_committed_clean():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert papermill.inspect_notebook(NOTEBOOK).keys() == {"name", "scale", "options", "evaluate", "folder"}


def test_what_is_no_figure_is_refused(tmp_path, monkeypatch):
    (tmp_path / "nofigure.py").write_text("def other(scale): return 3\nmissing = 4")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "nofigure")
    for name, said in (
        ("nofigure:other", "figure or table 'nofigure:other' returned int; it must return workbench.reporting"),
        ("nofigure:missing", "nofigure has an invalid missing; it must be a function"),
        ("nofigure:nothing", "nofigure has no nothing; it must be a function"),
        ("fig3", "figure or table 'fig3' is not known"),
    ):
        with pytest.raises(ValueError, match=said):
            paper.make(name)


@pytest.mark.parametrize("names", [("plain", "ours"), ("Self-Transcendence, never stopped", "REPA, never stopped")])
def test_the_legend_is_as_wide_as_the_figure_allows(names):
    figure = style.lines([style.Curve(name, {}, [1.0, 2.0], [1.0, 2.0]) for name in names], "step", "score")
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert len({text.get_window_extent().y0 for text in legend.get_texts()}) == (1 if names[0] == "plain" else 2)


@pytest.mark.parametrize(("places", "stay"), [(([1.0, 2.0], [1.0, 2.0]), False), (([1.0, 2.0], [1.5, 2.5]), True)])
def test_marks_are_moved_aside_only_where_they_would_hide_each_other(places, stay):
    figure = style.lines([style.Curve(f"{x}", {}, x, [1.0, 2.0]) for x in places], "seconds", "score")
    drawn = [list(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert (drawn == [*places]) == stay
