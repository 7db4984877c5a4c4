"""Figures and tables of the paper, made from runs: ``paper.fig4("laptop")`` returns an artifact to show or save.

Each figure or table is a function in the file of its name under ``figures``; other packages register theirs as
`workbench.figures`. ``artifact`` has the record that they return, ``table`` tables that refuse to mix protocols,
``numbers`` the published numbers (``reports/paper.yml``). ``runs`` finds runs by preset and seed, ``scores`` and
``series`` read their scores, ``comparison`` puts the paper's numbers beside ours, ``claims`` gives verdicts, and
``style`` has the look of the figures.
"""

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

from workbench import plugins
from workbench.config import refuse_unknown

# In the order of the paper, then what goes beyond it.
_ORDER = ("fig", "table", "time")


def artifacts() -> dict[str, Callable[..., Any]]:
    """The function of every figure and table by its name, in the order of `names`."""
    return {name: plugins.load("figure", name) for name in names()}


def names() -> list[str]:
    """All names, without importing them: figures, tables, section 4.5, additions to the paper, other packages."""
    return sorted(plugins.names("figure"), key=_sort_key)


def chosen(only: Iterable[str]) -> list[str]:
    """The figures and tables in `only`, in the order of `names`, then module paths; all of `names` if it is empty.

    Allows the import of these module paths. ValueError for an unknown name.
    """
    wanted = [name.strip() for name in only if name.strip()]
    for name in wanted:
        if not plugins.is_known("figure", name):
            refuse_unknown("figure or table", name, names())
    paths = [name for name in dict.fromkeys(wanted) if name not in names()]
    plugins.allow(*paths)
    return [*(name for name in names() if name in wanted or not wanted), *paths]


def make(name: str, scale: str = "laptop", *, evaluate: bool = False, **options: Any) -> Any:
    """Make a figure or table; returns an `Artifact`.

    With `evaluate`, missing scores are computed first; `options` are arguments of the figure's function. ValueError for
    an unknown name, and for a function that returns anything else.
    """
    from workbench.reporting.paper.artifact import Artifact

    function = plugins.load("figure", name)
    if evaluate and "evaluate" in inspect.signature(function).parameters:
        options["evaluate"] = True
    artifact = function(scale, **options)
    if not isinstance(artifact, Artifact):
        needed = "workbench.reporting.paper.artifact.Artifact"
        raise plugins.PluginError(
            f"figure or table {name!r} returned {type(artifact).__name__}; it must return {needed}"
        )
    return artifact.renamed(name)


def about(name: str) -> str:
    """Introduction of a figure or table, from the docstring of its module, as Markdown with a heading."""
    function = plugins.load("figure", name)
    module = plugins.own_module("figure", name) or function.__module__
    first, _, rest = (inspect.getdoc(sys.modules[module]) or name).partition("\n")
    return f"# {first.rstrip('.')}\n{rest}"


def folder_of(name: str) -> str:
    """Folder of a figure or table in a report: its name, with the colon of a module path replaced by a dot."""
    return name.replace(":", ".")


def _sort_key(name: str) -> tuple[bool, int, int, str]:
    kind = name.rstrip("0123456789")
    number, known = name[len(kind) :], kind in _ORDER
    return plugins.own_module("figure", name) is None, _ORDER.index(kind) if known else 9, int(number or 0), name


def __getattr__(name: str):
    if name not in names():
        raise AttributeError(f"module 'workbench.reporting.paper' has no {name!r}; it has {', '.join(names())}")
    return plugins.load("figure", name)
