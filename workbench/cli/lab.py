"""Commands that open the notebooks in JupyterLab and write a view to an HTML file."""

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
    """Names of the notebooks that were copied, and of those in the folder that differ from the package's."""

    new: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Lab:
    """Open the notebooks in JupyterLab, for this machine only, with a random token and without network access."""

    port: Annotated[int, Range(at_least=0, at_most=65_535)] = 0
    """Port; 0 chooses a free one."""
    folder: Path | None = None
    """Folder of the notebooks; missing ones are copied there. By default ./notebooks if it exists, else
    ./workbench-notebooks. Existing notebooks are never overwritten."""
    no_browser: bool = False
    """Only print the address."""

    def execute(self) -> None:
        """Replace this process by JupyterLab's."""
        if importlib.util.find_spec("jupyterlab") is None:
            raise ValueError("JupyterLab is not installed: pip install jupyterlab")
        folder = self.folder or (Path("notebooks") if Path("notebooks").is_dir() else Path("workbench-notebooks"))
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}; create it, or omit --folder")
        port = free_port(self.port)
        copied = copy_notebooks(shipped("notebooks"), folder)
        token = secrets.token_hex(24)
        console = Console()
        if copied.new:
            console.print(f"copied into {folder}/: {', '.join(copied.new)}", soft_wrap=True)
        if copied.changed:
            console.print(f"not updated, because they were edited: {', '.join(copied.changed)}", soft_wrap=True)
        console.print(
            f"Runs: {runs_root().resolve()}\n"
            f"JupyterLab in {folder.resolve()}, for this machine only; stop it with Ctrl-C:\n"
            f"  http://{_HOST}:{port}/lab/tree/00_tour.ipynb?token={token}",
            soft_wrap=True,
            highlight=False,
        )
        sys.stdout.flush()
        arguments = lab_arguments(folder, port, self.no_browser)
        os.execve(sys.executable, [sys.executable, *arguments], lab_environment(os.environ, token))


@dataclass(frozen=True)
class Page:
    """Write a view of a run to one HTML file that works offline and without Python."""

    run: RunReference
    file: Annotated[Path, tyro.conf.Positional]
    view: str = "maps"
    """A view such as maps, embedding or explore (an unknown name lists all), a view registered by another package, or
    a module path such as mypkg.norms."""
    images: Count | None = None
    """Number of images, or of samples per row; each view has its own default."""

    def execute(self) -> None:
        if self.file.suffix != ".html":
            raise ValueError(f"cannot write {self.file.name!r}; the name must end in .html")
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
    """Copy the notebooks in `source` that do not exist in `folder`; existing ones are not changed.

    Raises ValueError if the folder cannot be written.
    """
    if folder.resolve() == source.resolve():
        return Copied((), ())
    new, changed = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(source.glob("*.ipynb")):
            copy = folder / notebook.name
            if not copy.exists():
                shutil.copyfile(notebook, copy)
                new.append(notebook.name)
            elif not filecmp.cmp(notebook, copy, shallow=False):
                changed.append(notebook.name)
    except OSError as error:
        raise ValueError(
            f"cannot write the notebooks into {folder}: {error.strerror}; choose another --folder"
        ) from error
    return Copied(tuple(new), tuple(changed))


def free_port(port: int) -> int:
    """Return `port`, or a free one for 0; ValueError if another program uses it."""
    if not 0 <= port < 65536:
        raise ValueError(f"port is {port}; allowed are 1 to 65535, or 0 for a free one")
    with socket.socket() as probe:
        # As Jupyter's server does, so that a port that was just released counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); choose another, or omit --port"
            ) from error
        return probe.getsockname()[1]


def lab_arguments(folder: Path, port: int, no_browser: bool) -> list[str]:
    """Python arguments that start JupyterLab, without the token, since other users can read them."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in a container; Jupyter needs --allow-root then
    return [
        *("-m", "jupyterlab"),
        f"--ServerApp.ip={_HOST}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder.resolve()}",
        "--LabApp.extension_manager=readonly",  # the default one queries PyPI
        "--LabApp.default_url=/lab/tree/00_tour.ipynb",
        *(["--no-browser"] if no_browser else []),
        *(["--allow-root"] if root else []),
    ]


def lab_environment(environment: Mapping[str, str], token: str) -> dict[str, str]:
    """Environment of JupyterLab: the token, this package's settings first, and the absolute path of the runs."""
    others = environment.get("JUPYTER_CONFIG_PATH")
    return {
        **environment,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_PATH": os.pathsep.join([str(_SETTINGS), *([others] if others else [])]),
        # A kernel's working directory is the folder of its notebook.
        "WORKBENCH_RUNS": str(runs_root().resolve()),
    }


def _count_of(name: str) -> str:
    """Name of a view's option for the number of images; ValueError if it has none."""
    parameters = inspect.signature(plugins.load("view", name)).parameters
    options = [option for option in ("images", "count") if option in parameters]
    if not options:
        raise ValueError(f"view {name!r} has no number of images; omit --images")
    return options[0]
