"""Views of runs by name: each is a function of its file's name, ``maps(run)``, that returns a `View`.

The files of this folder are the list; other packages register theirs as `workbench.views` (see `docs/extending.md`).
"""

from collections.abc import Callable
from typing import Any

from workbench import plugins
from workbench.config import refuse_unknown
from workbench.lab.view import View


def find_view(name: str) -> Callable[..., View]:
    """The function that makes the view of this name, which may be a module path; ValueError for an unknown one."""
    if not plugins.is_known("view", name):
        refuse_unknown("view", name, plugins.names("view"))
    return plugins.load("view", name)


def view(name: str, run: Any, **options: Any) -> View:
    """A view by its name, which may be one of another package: ``wb.view("maps", run)`` is ``wb.maps(run)``.

    Args:
        name: A view of this package, one that an installed package registers, or a module path, such as
            "mypkg.norms", which is imported.
        run: A run, its folder or its name; several for views that take several.
        options: Options of that view.

    Returns:
        A ``View``, as of `wb.maps`.

    Raises:
        ValueError: For an unknown name, a module that cannot be imported, and as that view.

    Examples:
        >>> view = wb.view("maps", wb.zoo("guided"), images=2, layers=[8], times=[0.5])
        >>> view.axes["layer"].values
        (8,)
    """
    if plugins.is_path(name):
        plugins.allow(name)
    made = find_view(name)(run, **options)
    if not isinstance(made, View):
        raise plugins.PluginError(f"view {name!r} gave {type(made).__name__}; it must give workbench.lab.view.View")
    return made
