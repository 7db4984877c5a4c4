"""Images in tar or zip archives: ``data.path`` is one of them, a folder of them or a pattern."""

from workbench.data.archives import load_web_dataset as load

__all__ = ["load"]
