"""A folder with one subfolder per class: ``data.path`` is its root."""

from workbench.data.folder import load_image_folder as load

__all__ = ["load"]
