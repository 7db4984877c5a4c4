"""A tree of folders, one a class: ``data.path`` is its root."""

from workbench.data.folder import load_image_folder as load

__all__ = ["load"]
