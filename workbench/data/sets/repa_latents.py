"""Images beside latents from REPA's preprocessing: ``data.path`` is its folder."""

from workbench.data.stores import load_store_images as load

__all__ = ["load"]
