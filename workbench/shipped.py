"""What comes beside the package, notebooks and reports: in the checkout, else where an installation has its data."""

import sysconfig
from pathlib import Path

import workbench


def shipped(name: str | Path) -> Path:
    """The file or folder of this name, such as "notebooks/paper"; ValueError for neither place."""
    places = (Path(workbench.__file__).parents[1], Path(sysconfig.get_path("data")) / "share" / "workbench")
    for place in places:
        if (place / name).exists():
            return place / name
    raise ValueError(f"{name} is neither in {' nor in '.join(map(str, places))}: install from a checkout")
