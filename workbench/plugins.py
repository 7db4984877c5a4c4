"""Plug-ins: objectives, backbones, data sets, detectors, scores, views and figures, each one file, found by name.

A name is resolved in this order:

1. a file of that name in the package (``workbench/objectives/repa.py`` is ``repa``);
2. an entry point of an installed package (group ``workbench.objectives``);
3. a dotted module path, ``mypkg.mymethod``, or ``mymodule:MyObjective`` to select an object of the module.

Importing a module runs its code, so a module path is only imported if a registered entry point refers to that module or
the user named it: on the command line, in their own YAML file, with ``--plugin MODULE`` or in ``$WORKBENCH_PLUGINS``. A
run folder or archive cannot make the workbench import a module. Child processes inherit the named modules through the
environment.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "WORKBENCH_PLUGINS"  # environment variable: module paths that may be imported, separated by commas
OPTION = "--plugin"  # the same as an option of every command
_PATH = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*(:(?!\d)\w+)?")
_NAME = re.compile(r"\w[\w.-]*")  # of an entry point; it can become part of the name of a file


class PluginError(ValueError):
    """A plug-in that is unknown, must not be imported, or does not export what its kind requires."""


@dataclass(frozen=True)
class Kind:
    """Location of the plug-ins of a kind, and the object that each file exports.

    ``needs`` are the required attributes of that object; ``base`` describes what it has to be. ``hyphens``: names have
    hyphens where file names have underscores. ``is_class``: the object is a class.
    """

    option: str  # which names the plug-in, as errors call it
    package: str  # whose files are plug-ins
    exports: str  # "" for a function that is called as its file
    needs: tuple[str, ...]
    base: str
    group: str  # of entry points
    hyphens: bool = True
    is_class: bool = False

    @property
    def folder(self) -> Path:
        return Path(__file__).parent.joinpath(*self.package.split(".")[1:])


KINDS = {
    "objective": Kind(
        option="objective.name",
        package="workbench.objectives",
        exports="Objective",
        needs=("SUPPLIED", "weight_at", "loss"),
        base="a subclass of workbench.objectives.base.Objective",
        group="workbench.objectives",
        hyphens=False,
        is_class=True,
    ),
    "backbone": Kind(
        option="backbone.name",
        package="workbench.backbones",
        exports="Backbone",
        needs=("SUPPLIED", "sizes", "forward_tapped", "features", "initialize"),
        base="a subclass of workbench.backbones.base.TransformerBackbone with its sizes",
        group="workbench.backbones",
        hyphens=False,
        is_class=True,
    ),
    "data": Kind(
        option="data.name",
        package="workbench.data.sets",
        exports="load",
        needs=("__call__",),
        base="a function load(config, split) that returns workbench.data.images.Images",
        group="workbench.datasets",
    ),
    "detector": Kind(
        option="detector",
        package="workbench.evaluation.detectors",
        exports="load",
        needs=("__call__",),
        base="a function load(device) that returns workbench.evaluation.detectors.base.Detector",
        group="workbench.detectors",
    ),
    "score": Kind(
        option="score",
        package="workbench.evaluation.scores",
        exports="METRIC",
        needs=("title", "better", "measure", "direction"),
        base="a workbench.evaluation.metrics.Metric",
        group="workbench.scores",
    ),
    "view": Kind(
        option="view",
        package="workbench.lab.views",
        exports="",
        needs=("__call__",),
        base="a function, called as its file, of a run that returns workbench.lab.view.View",
        group="workbench.views",
        hyphens=False,
    ),
    "figure": Kind(
        option="figure or table",
        package="workbench.reporting.paper.figures",
        exports="",
        needs=("__call__",),
        base="a function, called as its file, of a scale that returns workbench.reporting.paper.artifact.Artifact",
        group="workbench.figures",
        hyphens=False,
    ),
}


def names(kind: str) -> list[str]:
    """Names of the plug-ins of a kind, such as "objective": the package's own, then those that are registered."""
    own = _own(kind)
    return [*sorted(own), *sorted(name for name in _registered(kind) if name not in own)]


def own_module(kind: str, name: str) -> str | None:
    """Module of one of the package's own plug-ins; None for any other name."""
    return f"{KINDS[kind].package}.{_own(kind)[name]}" if name in _own(kind) else None


def source(kind: str, name: str) -> bytes:
    """The source of the module of a plug-in of another package; nothing for one of our own or one that is not found.

    The packages around the module are imported, the module is not.
    """
    module = name.partition(":")[0]
    if name in _own(kind):
        return b""
    for entry in _registered(kind).get(name, []):
        module = entry.module
    try:
        check(kind, name)
        found = importlib.util.find_spec(module)
        return Path(found.origin).read_bytes() if found and found.origin else b""
    except (Exception, SystemExit):  # whatever code of others does; `load` says what is wrong
        return b""


def is_known(kind: str, name: str) -> bool:
    """Whether ``name`` is a plug-in or a module path; a module path is not imported to check it."""
    return name in _own(kind) or name in _registered(kind) or is_path(name)


def is_path(name: str) -> bool:
    """Whether a name is a module path ("mypkg.mymethod", "mymodule:MyObjective") and not a plug-in's name."""
    return ("." in name or ":" in name) and _PATH.fullmatch(name) is not None


def short_name(kind: str, name: str) -> str:
    """The name itself, or of a module path its last part, with the hyphens of the kind: "tiny" of "mypkg.tiny".

    PluginError if the package has a plug-in of that name, whose numbers would be taken for these.
    """
    if name in _own(kind) or name in _registered(kind) or not is_path(name):
        return name
    if registered := _registered_as(kind, name):
        return registered
    here, (module, _, attribute) = KINDS[kind], name.partition(":")
    short = _called(here, module.rpartition(".")[2] if attribute in ("", here.exports) else attribute)
    if short in _own(kind):
        raise PluginError(f"{here.option} {name!r} would be called {short!r}, as the workbench's own; rename it")
    return short


def named(kind: str) -> list[str]:
    """Module paths that the user named and that no entry point of the kind leads to, which makes them known already."""
    return [path for path in _named() if not _registered_as(kind, path)]


def exports(kind: str, path: str) -> bool:
    """Whether a module that the user named exports a plug-in of a kind, or something that is called as one.

    The module is imported. PluginError as `load`.
    """
    check(kind, path)
    here, (module, _, attribute) = KINDS[kind], path.partition(":")
    found = getattr(_imported(here, path, module), attribute or _default_of(here, module), None)
    return _fits(here, found) if attribute else found is not None


def load(kind: str, name: str) -> Any:
    """Load the class or function that the plug-in ``name`` exports.

    Raises PluginError for a name that is unknown or registered twice, a module path that must not be imported (see
    `check`), a module whose import fails, and a module that does not export what its kind needs.
    """
    here, own = KINDS[kind], own_module(kind, name)
    if own:
        return getattr(importlib.import_module(own), here.exports or name)
    values = _registered(kind).get(name, [])
    if len({(entry.module, entry.attr) for entry in values}) > 1:
        packages = " and ".join(sorted(f"{entry.dist.name}" for entry in values))
        raise PluginError(f"{here.option} {name!r} is registered by {packages}; give the module path of one of them")
    if values:
        return _exported(here, name, values[0].module, values[0].attr)
    if not is_path(name):
        raise PluginError(f"{here.option} {name!r} is not known")
    check(kind, name)
    module, _, attribute = name.partition(":")
    return _exported(here, name, module, attribute)


def check(kind: str, name: str) -> None:
    """Raise PluginError if ``name`` is a module path that is neither registered nor named by the user."""
    if not is_path(name) or name in _own(kind):
        return
    module = name.partition(":")[0]
    if module in _allowed() or name in _registered(kind) or module in _registered_modules(kind):
        return
    here = KINDS[kind]
    raise PluginError(
        f"{here.option} {name!r} is a module that was not named in this command: if you trust its code, add "
        f"{OPTION} {module} to the command (or set {VARIABLE}={module}), or install the package that registers it as "
        f"{here.group}"
    )


def allow(*paths: str) -> None:
    """Allow this process and its children to import module paths that the user named."""
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*_named(), *paths]))


def allow_named(arguments: Iterable[str]) -> list[str]:
    """Remove ``--plugin MODULE`` from a command line and allow these modules; PluginError if MODULE is missing."""
    left, rest = [], iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option != OPTION:
            left.append(argument)
            continue
        module = value if equals else next(rest, "")
        if _PATH.fullmatch(module) is None:
            raise PluginError(f"{OPTION} takes a module, such as {OPTION} mypkg.mymethod; got {module[:120]!r}")
        allow(module)
    return left


def _named() -> list[str]:
    """The module paths that the user named."""
    return [path.strip() for path in os.environ.get(VARIABLE, "").split(",") if path.strip()]


def _allowed() -> set[str]:
    return {path.partition(":")[0] for path in _named()}


@cache
def _own(kind: str) -> dict[str, str]:
    """The package's own plug-ins of a kind: file stem by name."""
    here = KINDS[kind]

    def exports(file: Path) -> bool:
        name = here.exports or file.stem
        mark = rf"^(class {name}\(|def {name}\(|{name} = |from \S+ import .*\b{name}$)"
        return re.search(mark, file.read_text(encoding="utf-8"), re.M) is not None

    stems = [file.stem for file in here.folder.glob("[!_]*.py") if exports(file)]
    return {_called(here, stem): stem for stem in stems if stem != "base"}


def _called(here: Kind, stem: str) -> str:
    """What a file is called as a plug-in; ``is_.py`` is "is", which no module can be called."""
    return stem.rstrip("_").replace("_", "-") if here.hyphens else stem


def _registered(kind: str) -> dict[str, list[Any]]:
    """Entry points of a kind by name."""
    found: dict[str, list[Any]] = {}
    for entry in _entry_points(KINDS[kind].group, tuple(sys.path)):
        found.setdefault(entry.name, []).append(entry)
    return found


def _registered_as(kind: str, path: str) -> str | None:
    """The name by which what a module path leads to is registered, if it is."""

    def place(module: str, attribute: str) -> tuple[str, str]:
        return module, attribute or _default_of(KINDS[kind], module)

    entries = (entry for entries in _registered(kind).values() for entry in entries)
    wanted = place(*path.partition(":")[::2])
    return next((entry.name for entry in entries if place(entry.module, entry.attr) == wanted), None)


def _registered_modules(kind: str) -> set[str]:
    return {entry.module for entries in _registered(kind).values() for entry in entries}


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[Any, ...]:
    """Entry points of a group, read once for each state of ``sys.path``; names of other characters are left out."""
    from importlib.metadata import entry_points

    found = entry_points(group=group)
    paths = (entry.value.partition("[")[0].replace(" ", "") for entry in found)
    return tuple(e for e, path in zip(found, paths, strict=True) if _PATH.fullmatch(path) and _NAME.fullmatch(e.name))


def _exported(here: Kind, name: str, module: str, attribute: str | None) -> Any:
    """What a module outside the package exports."""
    attribute = attribute or _default_of(here, module)
    found = getattr(_imported(here, name, module), attribute, None)
    if not _fits(here, found):
        what = "has no" if found is None else "has an invalid"
        raise PluginError(f"{here.option} {name!r}: {module} {what} {attribute}; it must be {here.base}")
    return found


def _default_of(here: Kind, module: str) -> str:
    """What a module is expected to export where no path names it."""
    return here.exports or module.rpartition(".")[2]


def _fits(here: Kind, found: Any) -> bool:
    wanted: Callable[[Any], bool] = inspect.isclass if here.is_class else lambda _: True
    return wanted(found) and all(hasattr(found, need) for need in here.needs)


def _imported(here: Kind, name: str, module: str) -> Any:
    """A module outside the package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise PluginError(
                f"{here.option} {name!r} cannot be imported: there is no module {error.name}; install its package, or "
                f"add its folder to PYTHONPATH"
            ) from error
        raise PluginError(f"{here.option} {name!r} cannot be imported: {_place(error)}") from error
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        raise PluginError(f"{here.option} {name!r} cannot be imported: {_place(error)}") from error


def _place(error: BaseException) -> str:
    """An error as one sentence, with the last line of the imported file that it comes from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames if frame.name == "<module>"] or [frames[-1].filename]
    last = [frame for frame in frames if frame.filename == files[-1]][-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
