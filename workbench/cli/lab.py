"""Commands around the notebooks: JupyterLab on them, and a view as a page for a reader without it."""

import filecmp
import importlib.util
import inspect
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import workbench
from workbench import plugins
from workbench.cli.arguments import RunReference
from workbench.cli.terminal import Console
from workbench.config import refuse_unknown
from workbench.config.ranges import Count, Range
from workbench.runs.store import open_run, runs_root
from workbench.shipped import shipped

_HOST = "127.0.0.1"
_SETTINGS = Path(workbench.__file__).parent / "lab" / "jupyter"


@dataclass(frozen=True)
class Copied:
    """Names of notebooks: new in the folder, and those there that are no longer what came with the package."""

    new: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Lab:
    """Open JupyterLab on the notebooks: for this machine alone, with a random token, asking nothing of the network."""

    port: Annotated[int, Range(at_least=0, at_most=65_535)] = 0
    """0 takes any that is free."""
    folder: Path | None = None
    """Where the notebooks are, or are copied to; by default ./notebooks if there is one, else ./workbench-notebooks.
    A notebook that is there is never overwritten."""
    no_browser: bool = False
    """Print the address and open nothing."""

    def execute(self) -> None:
        """Replace this process by JupyterLab's."""
        if importlib.util.find_spec("jupyterlab") is None:
            raise ValueError("JupyterLab is not installed here: pip install jupyterlab")
        folder = self.folder or (Path("notebooks") if Path("notebooks").is_dir() else Path("workbench-notebooks"))
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}; make it, or leave --folder out")
        port = free_port(self.port)
        copied = copy_notebooks(shipped("notebooks"), folder)
        token = secrets.token_hex(24)
        console = Console()
        if copied.new:
            console.print(f"copied into {folder}/: {', '.join(copied.new)}", soft_wrap=True)
        if copied.changed:
            console.print(f"changed since they came, and kept: {', '.join(copied.changed)}", soft_wrap=True)
        console.print(
            f"Runs are those of {runs_root().resolve()}.\n"
            f"JupyterLab on {folder.resolve()}, for this machine alone; Ctrl-C ends it:\n"
            f"  http://{_HOST}:{port}/lab/tree/00_tour.ipynb?token={token}",
            soft_wrap=True,
            highlight=False,
        )
        sys.stdout.flush()
        arguments = lab_arguments(folder, port, self.no_browser)
        os.execve(sys.executable, [sys.executable, *arguments], lab_environment(os.environ, token))


@dataclass(frozen=True)
class Page:
    """Write a view of a run as one HTML file that works offline and without Python: for a class, for a colleague."""

    run: RunReference
    file: Annotated[Path, tyro.conf.Positional]
    view: str = "maps"
    """A view such as maps, embedding or explore (an unknown name lists all), one that another package registers, or a
    module path such as mypkg.norms."""
    images: Count | None = None
    """How many images are shown and measured, or samples a row; each view has its own default."""

    def execute(self) -> None:
        if self.file.suffix != ".html":
            raise ValueError(f"cannot write {self.file.name!r}; a page ends in .html")
        if not self.file.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {self.file.parent}")
        if not plugins.is_known("view", self.view):
            refuse_unknown("view", self.view, plugins.names("view"))
        if plugins.is_path(self.view):
            plugins.allow(self.view)
        run = open_run(self.run)
        options = {} if self.images is None else {_count_of(self.view): self.images}
        path = workbench.view(self.view, run, **options).save_html(self.file)
        Console().print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, works offline", soft_wrap=True, highlight=False)


def copy_notebooks(source: Path, folder: Path) -> Copied:
    """Copy the notebooks of `source` that `folder` lacks; none that is there is touched.

    ValueError for a folder that cannot be written.
    """
    if folder.resolve() == source.resolve():
        return Copied((), ())
    new, changed = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(source.glob("*.ipynb")):
            there = folder / notebook.name
            if not there.exists():
                shutil.copyfile(notebook, there)
                new.append(notebook.name)
            elif not filecmp.cmp(notebook, there, shallow=False):
                changed.append(notebook.name)
    except OSError as error:
        raise ValueError(
            f"cannot write the notebooks into {folder}: {error.strerror}; choose another --folder"
        ) from error
    return Copied(tuple(new), tuple(changed))


def free_port(port: int) -> int:
    """`port`, or any free one for 0; ValueError if another program has it."""
    if not 0 <= port < 65536:
        raise ValueError(f"port is {port}; allowed are 1 to 65535, or 0 for any that is free")
    with socket.socket() as probe:
        # As the server will bind it: a port that its last owner left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); choose another, or leave --port out"
            ) from error
        return probe.getsockname()[1]


def lab_arguments(folder: Path, port: int, no_browser: bool) -> list[str]:
    """Arguments for Python that start JupyterLab; no secret is among them, as every process can read them."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in a container; Jupyter refuses without
    return [
        *("-m", "jupyterlab"),
        f"--ServerApp.ip={_HOST}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder.resolve()}",
        "--LabApp.extension_manager=readonly",  # the other one asks PyPI
        "--LabApp.default_url=/lab/tree/00_tour.ipynb",
        *(["--no-browser"] if no_browser else []),
        *(["--allow-root"] if root else []),
    ]


def lab_environment(environment: Mapping[str, str], token: str) -> dict[str, str]:
    """The environment of JupyterLab: the token, our settings before others', and the runs by their whole path."""
    before = environment.get("JUPYTER_CONFIG_PATH")
    return {
        **environment,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_PATH": os.pathsep.join([str(_SETTINGS), *([before] if before else [])]),
        # Kernels work in the folder of their notebook.
        "WORKBENCH_RUNS": str(runs_root().resolve()),
    }


def _count_of(name: str) -> str:
    """The option of a view that says how many images it shows; ValueError if it has none."""
    parameters = inspect.signature(plugins.load("view", name)).parameters
    found = [option for option in ("images", "count") if option in parameters]
    if not found:
        raise ValueError(f"view {name!r} has no number of images; leave --images out")
    return found[0]
