"""The demo's three runs, so short that little is learned, for every notebook; and a JupyterLab as a user starts it."""

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from workbench.reporting.lessons import demo_runs

REPOSITORY = Path(__file__).parents[2]
PROCESSES = Path(__file__).parents[1] / "processes"
TINY = (
    "data.limit=200",
    "training.steps=4",
    # In great leaps, or no gate would open in so few steps: layers would be alike, and no label would matter.
    *("training.learning_rate=0.02", "training.warmup_steps=0", "training.ema=0.1"),
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "training.milestone_every=2",
    "sampling.steps=2",
    "sampling.count=20",
)


@pytest.fixture(scope="session")
def tiny():
    return list(TINY)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Where the runs are."""
    root = tmp_path_factory.mktemp("notebook-runs")
    demo_runs(0, TINY, root, progress=lambda *_: None)
    return root


@pytest.fixture(scope="session")
def environment(root, tmp_path_factory):
    """No setting of whoever runs the tests; the hostile ones of somebody who was told to switch everything off."""
    home = tmp_path_factory.mktemp("home")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    (home / "config").mkdir()
    (home / "config" / "jupyter_server_config.py").write_text(
        "c.IdentityProvider.token = ''\nc.ServerApp.ip = '0.0.0.0'\nc.ServerApp.allow_origin = '*'\n"
        "c.ServerApp.allow_remote_access = True\nc.ServerApp.disable_check_xsrf = True\n"
        "c.LabApp.expose_app_in_browser = True\n"  # which the tests speak to
        f"import sys\nsys.path.append({str(PROCESSES)!r})\nimport preloaded\npreloaded.install()\n"  # for the kernels
    )
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        **{name: str(home / place) for name, place in places.items()},
        "WORKBENCH_RUNS": str(root),
        "WORKBENCH_QUEUE": str(home / "queue"),
        "PYTHONPATH": python_path,
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    address: str
    token: str
    folder: Path
    process: subprocess.Popen
    said: list[str]

    def get(self, path: str, **headers: str):
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)
        return urllib.request.urlopen(request, timeout=20)


@pytest.fixture(scope="session")
def lab(environment, tmp_path_factory):
    """`workbench lab` in an empty folder but for one notebook, whose parameters are small."""
    here = tmp_path_factory.mktemp("lab")
    folder = here / "workbench-notebooks"
    folder.mkdir()
    notebook = nbformat.read(REPOSITORY / "notebooks" / "03_guidance.ipynb", 4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += "\nimages, scales = 80, [0.0, 10.0]"
    nbformat.write(notebook, folder / "03_guidance.ipynb")
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "lab", "--no-browser"],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    # Somebody has to read on, or the server stops at a full pipe.
    threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
    try:
        yield _started(process, said, folder)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def notebooks(lab, tiny):
    """The folder of `lab`, in which the parameters of the other notebooks with views are tiny too."""
    few = {
        "00_tour": "images, layers, times, scales, count = 80, [2, 8], [0.3, 0.5], [0.0, 1.0, 5.0], 2",
        "01_teacher": f"""
            images, layers, steps, every = 80, [0, 2, 8], 4, 2
            overrides = {[one for one in tiny if "steps" not in one and "every" not in one]!r}""",
        "02_features": f"overrides, images, stops = {tiny!r}, 80, [0.0, 10.0]",
        "04_compare": f"overrides, images, count, layers = {tiny!r}, 80, 4, [2, 8]",
    }
    for name, source in few.items():
        notebook = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", 4)
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source += f"\n{textwrap.dedent(source)}"
        nbformat.write(notebook, lab.folder / f"{name}.ipynb")
    return lab.folder


def _started(process: subprocess.Popen, said: list[str], folder: Path) -> Lab:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"(http://127\.0\.0\.1:\d+)/lab/tree/00_tour\.ipynb\?token=(\w+)", "".join(said))
        if found:
            lab = Lab(found[1], found[2], folder, process, said)
            try:
                lab.get("/api/status", Authorization=f"token {lab.token}").close()
                return lab
            except OSError:
                pass
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start: {''.join(said)}")
