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
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import workbench
from workbench import plugins
from workbench.cli.arguments import RunReference
from workbench.cli.terminal import Console
from workbench.config import parse_value, refuse_unknown
from workbench.config.ranges import Count, Range
from workbench.runs.store import open_run, runs_root
from workbench.runs.weak import find_weak
from workbench.shipped import shipped

if TYPE_CHECKING:
    from workbench.lab.lesson import Lesson

_HOST = "127.0.0.1"
_VIEW = "maps"  # by default
_ZOO = "zoo"  # `zoo/plain` is a run of the zoo, in a lesson file
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
    no_browser: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
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
    """Write a view of a run to one HTML file that works offline and without Python.

    With --lesson the page has the texts and steps of a lesson file; `workbench lesson` also takes the run from it.
    """

    run: RunReference
    file: Annotated[Path, tyro.conf.Positional]
    view: str | None = None
    """A view such as maps, embedding or explore (an unknown name lists all), a view registered by another package, or
    a module path such as mypkg.norms; by default that of the lesson, else maps."""
    images: Count | None = None
    """Number of images, or of samples per row; each view has its own default."""
    weak: str | None = None
    """Weak model to guide against instead of the null label (autoguidance): RUN, RUN@STEP, or a step of the run."""
    title: str | None = None
    """Title of the page, instead of the lesson's."""
    lesson: Path | None = None
    """Markdown file with an introduction, and at its top an initial state, sentences for the controls and steps."""
    state: tuple[str, ...] = ()
    """Initial values of sliders and options, such as w=5 t=0.4 layer=8; they replace those of the lesson."""

    def execute(self) -> None:
        if self.file.suffix != ".html":
            raise ValueError(f"cannot write {self.file.name!r}; the name must end in .html")
        if not self.file.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {self.file.parent}")
        lesson = _read_lesson(self.lesson) if self.lesson else None
        name = self.view or (lesson.view if lesson else "") or _VIEW
        _check_view(name, by_user=self.view is not None)
        state = _state(dict(_assigned(one) for one in self.state))
        run = open_run(self.run)
        if self.weak is not None:
            find_weak(self.weak, run)  # refuses a run or step that does not exist
        options: dict[str, Any] = {} if self.images is None else {_count_of(name): self.images}
        if self.weak is not None:
            options["weak"] = _weak_of(name, self.weak)
        if lesson is not None and lesson.view in ("", name):
            _check_arguments(name, lesson.arguments, str(self.lesson))
            options = {**lesson.arguments, **options}
        view = workbench.view(name, run, **options)
        values = {**(lesson.state if lesson else {}), **state}
        texts = {} if lesson is None else lesson.texts
        if self.title is not None:
            texts = {**texts, "title": self.title}
        _save(view, self.file, texts, values)


@dataclass(frozen=True)
class LessonPages:
    """Write the page of each lesson file, with the view, run, texts and steps that the file names.

    A lesson file is Markdown, the introduction, with a block of YAML at its top (documentation: Lessons). The run may
    be one of the zoo, such as zoo/plain, so that nothing has to be trained.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    into: Path = Path(".")
    """Folder of the pages, each with the name of its lesson; created if it is missing."""

    def execute(self) -> None:
        if not self.files:
            raise ValueError("no lesson file is given; `workbench lesson FILE.md` writes FILE.html")
        lessons = {file: _read_lesson(file) for file in self.files}
        names = [file.stem for file in lessons]
        for file, lesson in lessons.items():
            if not lesson.runs:
                raise ValueError(f"{file} has no run; add `run: zoo/plain`, or use `workbench page --lesson {file}`")
            if names.count(file.stem) > 1:
                raise ValueError(f"two lessons are called {file.stem}; their pages would have the same name")
            _check_view(lesson.view or _VIEW, by_user=False)
            for run in lesson.runs:
                _check_run(run, len(lesson.runs) == 1, file)
        self.into.mkdir(parents=True, exist_ok=True)
        for file, lesson in lessons.items():
            _write_page(file, lesson, self.into / f"{file.stem}.html")


def _read_lesson(file: Path) -> "Lesson":
    from workbench.lab.lesson import Lesson  # with it the views' package is imported, which other commands do not need

    return Lesson.read(file)


def _write_page(file: Path, lesson: "Lesson", page: Path) -> None:
    """Write the page of a lesson; ValueError with the name of its file."""
    name = lesson.view or _VIEW
    _check_arguments(name, lesson.arguments, str(file))
    runs = [_opened(run) for run in lesson.runs]
    try:
        view = workbench.view(name, runs if len(runs) > 1 else runs[0], **lesson.arguments)
        _save(view, page, lesson.texts, lesson.state, command=f"workbench lesson {file.name}")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _state(given: Mapping[str, Any]) -> dict[str, Any]:
    from workbench.lab.lesson import state_of

    return state_of(given, "--state")


def _check_view(name: str, by_user: bool) -> None:
    """ValueError for an unknown view; `by_user` if it was named on the command line, so that its module may run."""
    if not plugins.is_known("view", name):
        refuse_unknown("view", name, plugins.names("view"))
    if plugins.is_path(name):
        if by_user:
            plugins.allow(name)
        plugins.check("view", name)  # a lesson may come from another person


def _check_arguments(name: str, arguments: Mapping[str, Any], where: str) -> None:
    from workbench.lab.lesson import check_arguments

    check_arguments(plugins.load("view", name), arguments, where)


def _check_run(name: str, alone: bool, file: Path) -> None:
    """ValueError unless this is a run, one of the zoo or, beside other runs, a target."""
    group, _, shipped = name.partition("/")
    try:
        if group == _ZOO:
            from workbench.runs.zoo import PRESETS

            refuse_unknown("run of the zoo", shipped, PRESETS)
        else:
            open_run(name)
    except ValueError as error:
        if alone or not _is_target(name):
            raise ValueError(f"{file}: {error}") from error


def _is_target(name: str) -> bool:
    from workbench.features.targets import TARGETS  # which imports torch

    return name in TARGETS


def _opened(name: str) -> Any:
    group, _, shipped = name.partition("/")
    if group == _ZOO:
        return workbench.zoo(shipped)
    return name if _is_target(name) else open_run(name)


def _save(view: Any, page: Path, lesson: Mapping[str, Any], values: Mapping[str, Any], **more: Any) -> None:
    view.state(**values)  # refuses names that `save_html` would take for something else
    path = view.save_html(page, **lesson, **values, **more)
    Console().print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, works offline", soft_wrap=True, highlight=False)


def _assigned(text: str) -> tuple[str, Any]:
    """Name and value of "w=5"."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--state has {text!r}; a value looks like w=5")
    return name, parse_value(value, f"--state {name}")


def copy_notebooks(source: Path, folder: Path) -> Copied:
    """Copy the notebooks in `source` that do not exist in `folder`; existing ones are not changed.

    Raises ValueError if the folder cannot be written.
    """
    if folder.resolve() == source.resolve():
        return Copied((), ())
    new, changed = [], []
    try:
        for notebook in [*sorted(source.glob("*.ipynb")), *sorted(source.glob("paper/*.ipynb"))]:
            name = str(notebook.relative_to(source))
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copyfile(notebook, copy)
                new.append(name)
            elif not filecmp.cmp(notebook, copy, shallow=False):
                changed.append(name)
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


def _weak_of(name: str, weak: str) -> str:
    """The weak model; ValueError for a view that does not guide."""
    if "weak" not in inspect.signature(plugins.load("view", name)).parameters:
        raise ValueError(f"view {name!r} has no guidance against a weak model; omit --weak")
    return weak


def _count_of(name: str) -> str:
    """Name of a view's option for the number of images; ValueError if it has none."""
    parameters = inspect.signature(plugins.load("view", name)).parameters
    options = [option for option in ("images", "count") if option in parameters]
    if not options:
        raise ValueError(f"view {name!r} has no number of images; omit --images")
    return options[0]
