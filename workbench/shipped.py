"""Find files that ship beside the package (notebooks, reports): in the checkout or the installation's data folder."""

import sysconfig
from pathlib import Path

import workbench


def shipped(name: str | Path) -> Path:
    """Path of a shipped file or folder, such as "notebooks/paper"; ValueError if it is not found."""
    folders = (Path(workbench.__file__).parents[1], Path(sysconfig.get_path("data")) / "share" / "workbench")
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{name} is neither in {' nor in '.join(map(str, folders))}: install from a checkout")
