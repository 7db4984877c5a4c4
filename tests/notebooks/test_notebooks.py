"""The notebooks: as they are committed, and run from top to bottom on tiny runs."""

import ast
import json
import time
from pathlib import Path

import nbformat
import papermill
import pytest

from workbench.runs.state import LIVE
from workbench.runs.store import find_runs
from workbench.training.control import Control

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
VIEW, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"
FEW = {"images": 80}
# Of each notebook: small parameters, which go on top of the overrides, and how many views and charts it shows.
EXPECTED = {
    "00_tour.ipynb": ({**FEW, "layers": [2, 8], "times": [0.3], "scales": [0.0, 1.0, 5.0], "count": 4}, 7, 0),
    "01_teacher.ipynb": ({**FEW, "steps": 4, "every": 2, "layers": [0, 2, 8]}, 3, 1),
    "02_features.ipynb": ({**FEW, "stops": [0.0, 10.0]}, 5, 2),
    "03_guidance.ipynb": ({**FEW, "scales": [0.0, 10.0]}, 4, 2),
    "04_compare.ipynb": ({**FEW, "count": 4, "layers": [2, 8]}, 3, 3),
    "05_training.ipynb": ({"tiny": True}, 3, 0),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_clean(name):
    notebook = json.loads((FOLDER / name).read_text())
    nbformat.validate(nbformat.from_dict(notebook))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and "widgets" not in notebook["metadata"]
    cells = notebook["cells"]
    # Ids that somebody chose: a random one changes whenever an editor writes the cell anew.
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["id"].replace("-", "").isalpha() for cell in cells), [cell["id"] for cell in cells]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1
    assert cells[0]["cell_type"] == cells[-1]["cell_type"] == "markdown"


def parameters_of(name: str) -> set[str]:
    """What the cell of parameters names. (papermill's own reading stumbles over quotes in a comment.)"""
    cells = json.loads((FOLDER / name).read_text())["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    assigned = (node for node in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(node, ast.Name))
    return {name.id for name in assigned if isinstance(name.ctx, ast.Store)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_runs_from_top_to_bottom(name, root, tiny, environment, tmp_path, monkeypatch, has_browser):
    if has_browser and name != "05_training.ipynb":
        pytest.skip("it runs in a browser, in test_browser_notebooks")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    parameters, views, charts = EXPECTED[name]
    known = parameters_of(name)
    assert parameters.keys() <= known
    overrides = [one for one in tiny if name != "01_teacher.ipynb" or "steps" not in one and "every" not in one]
    ran = papermill.execute_notebook(
        FOLDER / name,
        tmp_path / name,
        parameters=parameters | ({"overrides": overrides} if "overrides" in known else {}),
        cwd=tmp_path,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=240,
    )
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert (shown.count(VIEW), shown.count(PICTURE)) == (views, charts)
    _wait_for_launched(root)


def _wait_for_launched(root: Path) -> None:
    """What a notebook launched outlives it; here it has to end before the folder of its run goes."""
    (long,) = [run for run in find_runs(root) if run.config.training.steps == 400] or [None]  # that is interrupted
    if long and long.status["state"] in LIVE:
        Control(long, patience=60.0).stop()
    deadline = time.monotonic() + 120
    while live := [run.name for run in find_runs(root) if run.status["state"] in LIVE]:
        assert time.monotonic() < deadline, live
        time.sleep(0.2)
    assert all(run.status["state"] == "finished" for run in find_runs(root) if run != long)
