"""05_training in a real JupyterLab: a training that outlives tab and kernel, a stop, a kill; a chain by keyboard."""

import os
import signal
import time
from pathlib import Path

import nbformat
import pytest
from browsing import Notebook, jupyter

from workbench.files import is_locked
from workbench.runs.state import LIVE, STARTER_LOCK
from workbench.runs.store import Run, find_runs
from workbench.training.control import Control

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK, WIZARD = "05_training.ipynb", "wizard.ipynb"
READY = """async () => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  if (!panel || !panel.context) return false;
  await panel.context.ready;
  await panel.context.sessionContext.ready;
  const session = panel.context.sessionContext.session;
  return Boolean(session) && session.kernel.connectionStatus === "connected" && session.kernel.status === "idle";
}"""
RUN = """(id) => {
  const { content } = window.jupyterapp.shell.currentWidget;
  content.activeCellIndex = [...content.model.cells].findIndex((cell) => cell.id === id);
  window.jupyterapp.commands.execute("notebook:run-cell");
}"""
RAN = """(id) => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cell = [...panel.content.model.cells].find((one) => one.id === id);
  const wrong = cell.sharedModel.getOutputs().find((output) => output.output_type === "error");
  if (wrong) throw new Error(`${wrong.ename}: ${wrong.evalue}`);
  return Boolean(cell.executionCount) && panel.context.sessionContext.session.kernel.status === "idle";
}"""
PRINTED = """(id) => {
  const cell = [...window.jupyterapp.shell.currentWidget.content.model.cells].find((one) => one.id === id);
  return cell.sharedModel.getOutputs().map((output) => [output.text ?? ""].flat().join("")).join("");
}"""
POINTS = "(all) => Math.max(0, ...all.map((one) => (one.getAttribute('d').match(/[ML]/g) ?? []).length))"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("training-runs")


@pytest.fixture(scope="module")
def lab(runs, tmp_path_factory):
    """JupyterLab as `workbench lab` starts it, with a queue of its own; nothing trains when it is over."""
    here = tmp_path_factory.mktemp("training-lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_QUEUE", str(here / "queue"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with jupyter(here, runs) as server:
            notebook = nbformat.read(REPOSITORY / "notebooks" / NOTEBOOK, 4)
            next(cell for cell in notebook.cells if cell.id == "parameters").source += "\ntiny = True"
            nbformat.write(notebook, here / "notebooks" / NOTEBOOK)
            form = "from workbench.lab.watching.wizard import wizard\n\nwizard('demo/guided')"
            cells = [nbformat.v4.new_code_cell(form, id="form")]
            wizard = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
            nbformat.write(wizard, here / "notebooks" / WIZARD)
            yield server
        for run in find_runs(runs):
            _end(run)


def _end(run: Run) -> None:
    """Stop a run that still trains or waits, and wait until its process is gone."""
    if run.status["state"] in LIVE:
        Control(run).stop()
    deadline = time.monotonic() + 60
    while is_locked(run.folder / STARTER_LOCK) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture
def opened(lab, browser):
    """opened(notebook) -> its page, with a kernel that waits; closed pages are closed."""
    contexts = []

    def shown(name: str):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.goto(f"{lab.address}/lab/tree/{name}?reset&token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        until(page, READY, 60)
        return page

    yield shown
    for context in contexts:
        context.close()


def until(page, script: str, seconds: float, argument: object = None) -> None:
    """Wait for a script that may be asynchronous, which `wait_for_function` takes for true at once."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, page.locator(".jp-Notebook").inner_text()[-3000:]
        page.wait_for_timeout(200)


def wait_for(page, condition, seconds: float = 60.0) -> float:
    """Seconds until a condition held."""
    since = time.monotonic()
    while not condition():
        assert time.monotonic() < since + seconds, page.locator(".wb").first.inner_text()[:1500]
        page.wait_for_timeout(50)
    return time.monotonic() - since


def run_cells(page, *ids: str) -> None:
    for name in ids:
        page.evaluate(RUN, name)
        until(page, RAN, 120, name)


def shows(page, state: str):
    return lambda: page.locator(".wb-run .wb-state").first.inner_text() == state


def points(page) -> int:
    """How many points the curve of the loss has, once it is in view: what nobody sees is not drawn."""
    chart = page.get_by_role("slider", name="loss (total) by step")
    chart.scroll_into_view_if_needed()
    return chart.locator(".wb-curve").evaluate_all(POINTS)


def test_it_outlives_tab_and_kernel_obeys_and_comes_back_from_a_kill(runs, opened):
    page = opened(NOTEBOOK)
    run_cells(page, "parameters", "launch", "watch")
    page.wait_for_selector(".wb-live")
    wait_for(page, lambda: shows(page, "running")() and points(page) >= 1)
    (run,) = find_runs(runs)
    pid, seen = run.status["pid"], run.status["step"]
    kernel = int(Notebook(page).ask("import os; print(os.getpid())"))
    page.context.close()
    os.kill(kernel, signal.SIGKILL)

    # Another page, with another kernel: the training has not noticed, and its whole course is there.
    page = opened(NOTEBOOK)
    assert run.status["state"] == "running" and run.status["pid"] == pid and run.status["step"] > seen
    run_cells(page, "parameters", "launch", "watch")
    assert "already launched, nothing was started" in page.evaluate(PRINTED, "launch")
    wait_for(page, lambda: points(page) >= len(run.metrics) - 1 > 1)
    before = points(page)
    wait_for(page, lambda: points(page) > before)  # it goes on by itself

    step = 1 / run.status["rate"]
    page.get_by_role("button", name=f"Stop {run.name}").click()
    told = wait_for(page, lambda: (run.status.get("answer") or {}).get("what") == "stop")
    assert told < max(2.0, step) + 0.5, f"stop was answered after {told:.1f} s; a step takes {step:.1f} s"
    wait_for(page, shows(page, "stopped"), 20)
    assert run.checkpoints[-1].step == run.status["step"]

    page.get_by_role("button", name=f"Resume {run.name}").click()  # while the old process may still be leaving
    wait_for(page, shows(page, "running"))
    assert run.status["pid"] != pid
    os.killpg(run.status["pid"], signal.SIGKILL)
    lost = wait_for(page, shows(page, "lost"), 20)
    assert lost < 10 and "died unexpectedly" in page.locator(".wb-remark").first.inner_text()
    page.get_by_role("button", name=f"Resume {run.name}").click()
    wait_for(page, shows(page, "running"))
    _end(run)
    wait_for(page, shows(page, "stopped"), 20)
    assert "\x1b" not in (run.folder / "log.txt").read_text()  # Jupyter asks its children for colours


FIELDS = {
    "images": "digits",
    "images at most": "16",
    "vae": "identity",
    "size": "pico",
    "patch": "16",
    "stop step": "2",
    "steps": "4",
    "batch": "4",
    "steps of the teacher": "2",
}


def tab_to(page, name: str) -> None:
    """Press Tab until the control of this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent") == name:
            return
    raise AssertionError(f"no Tab leads to {name}")


def test_a_chain_is_launched_by_keyboard_alone(runs, opened):
    before = {run.folder for run in find_runs(runs)}
    page = opened(WIZARD)
    run_cells(page, "form")
    page.wait_for_selector(".wb-plan tbody tr")
    page.get_by_role("combobox", name="start from").focus()
    for name, text in FIELDS.items():
        tab_to(page, name)
        if page.evaluate("document.activeElement.tagName") == "INPUT":
            page.keyboard.press("Control+a")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        field = page.get_by_label(name, exact=True)
        until(page, READY, 30)
        page.wait_for_timeout(300)
        assert field.input_value() == text and field.evaluate("(one) => one === document.activeElement"), name
    assert page.locator(".wb-problem").count() == 0
    tab_to(page, "Launch")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-live", timeout=60_000)
    states = page.locator(".wb-run .wb-state")
    wait_for(page, lambda: states.all_inner_texts() == ["finished", "finished"], 120)
    teacher, student = (run for run in find_runs(runs) if run.folder not in before)
    assert (teacher.config.training.steps, student.config.training.steps) == (2, 4)
    assert student.config.objective.options["teacher"] == str(teacher.folder)
    assert page.get_by_role("heading", name="Everything is trained already.").count() <= 1
