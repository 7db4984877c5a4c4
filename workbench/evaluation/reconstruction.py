"""How far reconstructions of an autoencoder are from the images themselves, as a Frechet distance."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from workbench.data.images import Images
from workbench.data.vae import VAE
from workbench.evaluation.detectors.base import Detector
from workbench.evaluation.frechet import frechet_distance
from workbench.evaluation.reference import principal, see

_BATCH = 100


def reconstruction_distance(vae: VAE, images: Images, detector: Detector, count: int = 1000) -> dict[str, float | int]:
    """Frechet distance between ``count`` images and their reconstructions, and between them and as many other images.

    No generator that decodes with ``vae`` can be expected below the first; the second, ``fd_real``, is what two sets of
    real images of this size differ by. With fewer images, half of them are used for each. Features are reduced to the
    principal directions of the first images if the detector says so. Raises ValueError as the detector does, and for
    fewer than four images.
    """
    count = min(count, len(images) // 2)
    if count < 2:
        raise ValueError(f"a Frechet distance needs at least 4 images; there are {len(images)}")

    def reconstructed(pixels: UInt8[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        return vae.decode(vae.encode(pixels).chunk(2, dim=1)[0])

    batches = [images.batch(part) for part in np.array_split(np.arange(2 * count), -(-2 * count // _BATCH))]
    pixels = torch.cat(batches)
    first, second = pixels[:count].split(_BATCH), pixels[count:].split(_BATCH)
    real = see(first, detector)
    basis = None if detector.reduction is None else principal(real.statistics, detector.reduction)
    sets = (real, see(map(reconstructed, first), detector), see(second, detector))
    seen, decoded, others = (part.reduced(basis).statistics for part in sets)
    return {
        f"fd_{detector.name}": frechet_distance(seen, decoded, small_ok=True).value,
        "fd_real": frechet_distance(seen, others, small_ok=True).value,
        "fd_count": count,
    }
