"""The paper's figures and tables, made from runs: ``paper.fig4("laptop")`` is an artifact, to be shown or saved.

A figure or table is a function in the file of its name under ``figures``; the folder is the list, and other packages
register theirs as `workbench.figures`. ``artifact`` is the record they give, ``table`` a table that refuses what is
not comparable, ``formats`` writes it. ``numbers`` reads what the paper prints (``reports/paper.yml``), ``runs`` finds
runs by preset and seed, ``scores`` and ``series`` their scores, ``comparison`` puts both side by side, ``claims`` says
what they support. How figures look is ``style``.
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
    """Names without importing anything: figures, tables, section 4.5, those beyond the paper, those registered."""
    return sorted(plugins.names("figure"), key=_place)


def chosen(only: Iterable[str]) -> list[str]:
    """Those figures and tables of `only` in the order of `names`, then module paths; all of `names` if it is empty.

    A module path may be imported from then on. ValueError for an unknown name.
    """
    wanted = [name.strip() for name in only if name.strip()]
    for name in wanted:
        if not plugins.is_known("figure", name):
            refuse_unknown("figure or table", name, names())
    paths = [name for name in dict.fromkeys(wanted) if name not in names()]
    plugins.allow(*paths)
    return [*(name for name in names() if name in wanted or not wanted), *paths]


def make(name: str, scale: str = "laptop", *, evaluate: bool = False, **options: Any) -> Any:
    """The figure or table of this name, an `Artifact`.

    With `evaluate`, one that shows scores first takes those that are missing; `options` are its own. ValueError for an
    unknown name, and for a function that returns something else.
    """
    from workbench.reporting.paper.artifact import Artifact

    function = plugins.load("figure", name)
    if evaluate and "evaluate" in inspect.signature(function).parameters:
        options["evaluate"] = True
    made = function(scale, **options)
    if not isinstance(made, Artifact):
        needed = "workbench.reporting.paper.artifact.Artifact"
        raise plugins.PluginError(f"figure or table {name!r} gave {type(made).__name__}; it must give {needed}")
    return made.renamed(name)


def about(name: str) -> str:
    """What the file of a figure or table says of it, as Markdown with a heading."""
    function = plugins.load("figure", name)
    module = plugins.own_module("figure", name) or function.__module__
    first, _, rest = (inspect.getdoc(sys.modules[module]) or name).partition("\n")
    return f"# {first.rstrip('.')}\n{rest}"


def folder_of(name: str) -> str:
    """The folder of a figure or table in a report: its name, without the colon that a module path may have."""
    return name.replace(":", ".")


def _place(name: str) -> tuple[bool, int, int, str]:
    kind = name.rstrip("0123456789")
    number, known = name[len(kind) :], kind in _ORDER
    return plugins.own_module("figure", name) is None, _ORDER.index(kind) if known else 9, int(number or 0), name


def __getattr__(name: str):
    if name not in names():
        raise AttributeError(f"module 'workbench.reporting.paper' has no {name!r}; it has {', '.join(names())}")
    return plugins.load("figure", name)
