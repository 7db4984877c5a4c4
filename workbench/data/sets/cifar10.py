"""CIFAR-10 (Krizhevsky 2009), as torchvision stores it."""

import os

import numpy as np
from einops import rearrange

from workbench.config import DataConfig
from workbench.data.images import TORCHVISION, Images, from_arrays
from workbench.files import home_path


def load(config: DataConfig, split: str) -> Images:
    from torchvision.datasets import CIFAR10

    root = home_path(config.path or os.environ.get("TORCHVISION_DATA") or TORCHVISION)
    try:
        data = CIFAR10(root, train=split == "train", download=not (root / CIFAR10.base_folder).is_dir())
    except (RuntimeError, OSError) as error:  # torchvision raises either for a failed download
        raise ValueError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}); "
            f"unpack cifar-10-python.tar.gz there or give data.path"
        ) from error
    pixels = rearrange(data.data, "n h w c -> n c h w")
    return from_arrays("cifar10", split, pixels, np.asarray(data.targets), data.classes, str(root))
