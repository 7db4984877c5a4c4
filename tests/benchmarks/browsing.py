"""JupyterLab as `workbench lab` starts it, driven in headless Chromium: where the speed of views is measured."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
_PATIENCE = 300.0  # seconds that a cell may take
_PLACES = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
_NAME = "bench.ipynb"
_READY = """async () => {
  const panel = window.jupyterapp?.shell.currentWidget;
  if (!panel?.context) return false;
  await panel.context.ready;
  await panel.context.sessionContext.ready;
  const kernel = panel.context.sessionContext.session?.kernel;
  return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""
_ASK = """async (code) => {
  const { kernel } = window.jupyterapp.shell.currentWidget.context.sessionContext.session;
  const future = kernel.requestExecute({ code, store_history: false });
  let said = "";
  future.onIOPub = ({ header, content }) => { if (header.msg_type === "stream") said += content.text; };
  const { content } = await future.done;
  if (content.status !== "ok") throw new Error(`${content.ename}: ${content.evalue}`);
  return said;
}"""
_RUN = """(index) => {
  const { content } = window.jupyterapp.shell.currentWidget;
  content.activeCellIndex = index;
  content.deselectAll();
  window.jupyterapp.commands.execute("notebook:run-cell");
}"""
_STATE = """(index) => {
  const { content, context } = window.jupyterapp.shell.currentWidget;
  const cell = content.model.cells.get(index);
  const wrong = cell.sharedModel.getOutputs().find((output) => output.output_type === "error");
  return {
    error: wrong ? `${wrong.ename}: ${wrong.evalue}` : "",
    running: cell.executionState === "running",
    done: Boolean(cell.executionCount) && context.sessionContext.session.kernel.status === "idle",
  };
}"""


@dataclass(frozen=True)
class Server:
    """A running JupyterLab."""

    address: str
    token: str


class Notebook:
    """A notebook open in JupyterLab; cells count from 0."""

    def __init__(self, page: Any):
        self.page = page
        until(page, lambda: page.evaluate(_READY), "a kernel")

    def run(self, index: int) -> None:
        """Run a cell to its end; ValueError with its error."""
        self.begin(index)
        until(self.page, lambda: self._done(index), f"cell {index}")

    def begin(self, index: int) -> None:
        """Begin to run a cell, and do not wait."""
        self.page.evaluate(_RUN, index)
        self.page.wait_for_timeout(50)  # the old number of the cell is gone by then

    def ask(self, code: str) -> str:
        """What code prints in the kernel."""
        return self.page.evaluate(_ASK, code)

    def running(self, index: int) -> bool:
        """Whether a cell is at work. Not asked of the kernel, which answers a widget meanwhile and is idle after it."""
        return self.page.evaluate(_STATE, index)["running"]

    def interrupt(self, index: int) -> None:
        """Stop a cell that runs."""
        kernel = "window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel"
        self.page.evaluate(f"async () => {{ await {kernel}.interrupt(); }}")
        until(self.page, lambda: not self.running(index), "the interrupted cell")

    def view(self, index: int) -> Any:
        """The output of a cell."""
        return self.page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .jp-OutputArea-output:has(.wb-foot)")

    def _done(self, index: int) -> bool:
        state = self.page.evaluate(_STATE, index)
        if state["error"]:
            raise ValueError(f"a cell of the measurement failed: {state['error']}")
        return state["done"]


def until(page: Any, there: Any, what: str, seconds: float = _PATIENCE) -> None:
    """Wait until `there()` is true; ValueError saying what did not come."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise ValueError(f"waited {seconds:g} s in the browser for {what}, in vain")
        page.wait_for_timeout(20)


def find_chromium() -> str:
    """The path of a Chromium, `$CHROMIUM` if set; ValueError saying how to get one, or playwright, if it is missing."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise ValueError(f"there is no browser here ({', '.join(_BROWSERS)}): apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        raise ValueError(
            "playwright, which drives the browser, is not installed: pip install 'diffusion-workbench[test]'"
        )
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, as playwright's browser; its errors become ValueErrors. ValueError as `find_chromium`."""
    path = find_chromium()
    from playwright.sync_api import Error, sync_playwright

    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses root
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=path, args=[*_FLAGS, *(["--no-sandbox"] if root else [])])
            try:
                yield browser
            finally:
                browser.close()
    except Error as error:
        raise ValueError(f"the browser could not go on: {error.message.splitlines()[0]}") from error


@contextmanager
def jupyter(folder: Path, runs: Path) -> Iterator[Server]:
    """`workbench lab` in a folder, with `runs` for its runs and none of its user's settings.

    A free port and a token of its own. ValueError with what it said if it does not start.
    """
    home, notebooks = folder / "home", folder / "notebooks"
    (home / "CONFIG_DIR").mkdir(parents=True)
    notebooks.mkdir()
    settings = "c.LabApp.expose_app_in_browser = True\n"  # which the measurement speaks to
    (home / "CONFIG_DIR" / "jupyter_server_config.py").write_text(settings)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        **{f"JUPYTER_{place}": str(home / place) for place in _PLACES},
        **{f"JUPYTERLAB_{place}_DIR": str(home / place) for place in ("SETTINGS", "WORKSPACES")},
        "IPYTHONDIR": str(home / "ipython"),
        "WORKBENCH_RUNS": str(runs.resolve()),
        "PYTHONPATH": path,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "lab", "--no-browser", "--folder", str(notebooks)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    # Somebody has to read on, or the server stops at a full pipe.
    reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    reader.start()
    try:
        yield _started(process, said)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()


@contextmanager
def opened(browser: Any, server: Server, folder: Path, cells: Sequence[str], probe: str) -> Iterator[Notebook]:
    """A notebook of these cells in JupyterLab of `jupyter(folder)`; the script `probe` runs before any view."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "notebooks" / _NAME)
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    try:
        page = context.new_page()
        page.goto(f"{server.address}/lab/tree/{_NAME}?reset&token={server.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.evaluate(probe)
        yield Notebook(page)
    finally:
        context.close()


def _started(process: subprocess.Popen, said: list[str]) -> Server:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"(http://127\.0\.0\.1:\d+)/lab/tree/\S+\?token=(\w+)", "".join(said))
        if found:
            with suppress(OSError):  # it listens a moment after it said where
                urllib.request.urlopen(f"{found[1]}/api/status?token={found[2]}", timeout=20).close()
                return Server(found[1], found[2])
        time.sleep(0.1)
    raise ValueError(f"JupyterLab did not start: {''.join(said)[-2000:]}")


def versions() -> dict[str, str]:
    """Of what draws the views, beside those that `machine` gives."""
    packages = ("jupyterlab", "ipywidgets", "anywidget", "ipykernel", "playwright")
    with chromium() as browser:
        return {"chromium": browser.version, **{name: version(name) for name in packages}}
