"""The paper's figures and tables, made from runs: ``paper.fig4("laptop")`` is an exhibit, to be shown or saved.

An exhibit is a function in the file of its name under ``catalogue``; the folder is the list. ``exhibit`` is the record
they give, ``table`` a table that refuses what is not comparable, ``formats`` writes it. ``numbers`` reads what the
paper prints (``reports/paper.yml``), ``runs`` finds runs by preset and seed, ``scores`` and ``series`` their scores,
``comparison`` puts both side by side, ``claims`` says what they support. How figures look is ``style``.
"""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.config import refuse_unknown

# In the order of the paper, then what goes beyond it.
_ORDER = ("fig", "table", "time")


def exhibits() -> dict[str, Callable[..., Any]]:
    """Every exhibit's function by its name: figures, tables, section 4.5, then those beyond the paper."""
    return {name: getattr(_module(name), name) for name in names()}


def names() -> list[str]:
    """The names of the exhibits, nothing imported."""
    found = [path.stem for path in (Path(__file__).parent / "catalogue").glob("[!_]*.py")]
    return sorted(found, key=_place)


def chosen(only: Iterable[str]) -> list[str]:
    """Those exhibits of `only` in their order, all of them if it is empty; ValueError for an unknown one."""
    wanted = [name.strip() for name in only if name.strip()]
    for name in wanted:
        refuse_unknown("figure or table", name, names())
    return [name for name in names() if name in wanted or not wanted]


def _place(name: str) -> tuple[int, int, str]:
    kind = name.rstrip("0123456789")
    number = name[len(kind) :]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER), int(number or 0), name


def _module(name: str):
    return importlib.import_module(f"workbench.reporting.paper.catalogue.{name}")


def __getattr__(name: str):
    if name not in names():
        raise AttributeError(f"module 'workbench.reporting.paper' has no exhibit {name!r}; it has {', '.join(names())}")
    return getattr(_module(name), name)
