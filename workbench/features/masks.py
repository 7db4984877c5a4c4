"""Where the object is in a run's images, as shares of its tokens."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from workbench.config import DataConfig
from workbench.data.images import load_images, token_share
from workbench.features.grid import FeatureGrid
from workbench.runs.store import Run


def token_side(run: Run) -> int:
    """Side of a run's square grid of tokens."""
    return run.latents["height"] // run.config.backbone.options["patch"]


def object_shares(
    run: Run, rows: Sequence[int] | FeatureGrid, *, data: DataConfig | None = None, split: str | None = None
) -> Float[Tensor, "n m"]:
    """Share of each token of a run's images that is object, from the images' masks.

    Args:
        run: The run whose images and token grid are used.
        rows: The result of `wb.extract`, whose images they are; or row numbers of images in the split.
        data: With row numbers, the image set, if it is not the run's own.
        split: With row numbers, "train" (if None) or "test".

    Returns:
        Shares ``n m`` (images, tokens) in 0..1, in the order of the tokens of `wb.extract`.

    Raises:
        ValueError: For images without masks, masks that cannot be divided into the run's tokens, and another set or
            split than that of the features.

    Examples:
        >>> small = ["data.name=scenes", "data.size=32", "data.limit=100", "vae.name=identity", "backbone.patch=4"]
        >>> small += ["backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> run = wb.trained(wb.load_config("demo/plain", small), progress=lambda stage, done, total: None)
        >>> wb.object_shares(run, rows=[0, 1]).shape
        torch.Size([2, 64])
    """
    if isinstance(rows, FeatureGrid):
        features = rows
        if data not in (None, features.data) or split not in (None, features.split):
            raise ValueError(
                f"the features are of the {features.split} images of {(features.data or run.config.data).name}; "
                "shares of others need their row numbers"
            )
        rows, data, split = features.rows, features.data, features.split
    images = load_images(data or run.config.data, split or "train")
    return token_share(images.masks(rows), token_side(run))
