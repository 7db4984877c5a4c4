"""What the network sees at a step: a function of (seed, position in the data order), of nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from workbench.config import Config
from workbench.data.codecs import sample_posterior
from workbench.data.latents import Latents
from workbench.data.targets import Targets
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.randomness import normal, permutation, uniform
from workbench.diffusion.schedules import sample_time
from workbench.objectives.base import Batch


def draw_batch(config: Config, latents: Latents, targets: Mapping[str, Targets], step: int, rows: range) -> Batch:
    """Rows ``rows`` of the global batch of ``step`` (from 0).

    Row r of step s is position p = s batch + r of an endless data order, a fresh permutation each epoch, and p also
    addresses its noise, time, posterior sample, mirroring and label dropping. So neither the number of processes nor
    accumulation nor resuming changes what is trained on, and every method sees the same draws.
    """
    seed = config.training.seed
    positions = np.arange(rows.start, rows.stop) + step * config.training.batch
    epochs, places = np.divmod(positions, len(latents))
    indices = np.array([_order(seed, int(e), len(latents))[p] for e, p in zip(epochs, places, strict=True)])
    shape = (latents.channels, latents.height, latents.height)
    flipped = (uniform(seed, "flip", positions, 1)[:, 0] < 0.5).numpy() if config.data.flip else None
    z = sample_posterior(latents.moments(indices, flipped), normal(seed, "posterior", positions, shape))
    eps = normal(seed, "noise", positions, shape)
    path = get_path(config.diffusion.path)
    t = sample_time(uniform(seed, "time", positions, 1)[:, 0], config.diffusion.time, path)
    labels = torch.from_numpy(latents.labels[indices])
    dropped = uniform(seed, "label", positions, 1)[:, 0] < config.diffusion.label_dropout
    noised = interpolate(path, z, eps, t)
    y = labels.masked_fill(dropped, len(latents.classes))
    return Batch(
        z=z,
        eps=eps,
        t=t,
        x_t=noised.x_t,
        v=noised.v,
        y=y,
        labels=labels,
        u=uniform(seed, "objective", positions, 1)[:, 0],
        targets={name: tokens.tokens(indices, flipped) for name, tokens in targets.items()},
    )


def prefetched(draws: Iterable[Callable[[], Batch]]) -> Iterator[Batch]:
    """The results of ``draws`` in order, the next one being drawn while the last one is used."""
    with ThreadPoolExecutor(1) as worker:
        waiting = None
        for draw in draws:
            ahead = worker.submit(draw)
            if waiting is not None:
                yield waiting.result()
            waiting = ahead
        if waiting is not None:
            yield waiting.result()


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(seed, "order", epoch, count)
