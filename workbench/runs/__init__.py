"""A run is a folder: what is written there, and how runs are found and compared."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """The package, which can be called: ``wb.runs()`` has its name, and importing a package sets that name."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return importlib.import_module("workbench.lab.watching.table").runs(*given, **named)


sys.modules[__name__].__class__ = _Package
