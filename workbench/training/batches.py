"""What the network sees at a step: a function of (seed, position in the data order), of nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch

from workbench.config import Config
from workbench.data.latents import Latents
from workbench.data.targets import Targets
from workbench.data.vae import sample_posterior
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.randomness import normal, permutation, uniform
from workbench.diffusion.schedules import sample_time
from workbench.objectives.base import Batch

T = TypeVar("T")


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


def prefetched(draws: Iterable[Callable[[], T]]) -> "Prefetched[T]":
    """The results of ``draws`` in order, the next one being drawn while the last one is used."""
    return Prefetched(iter(draws))


class Prefetched(Iterator[T]):
    """What ``draws`` give, batches in training, drawn one ahead by another thread, until it is closed."""

    def __init__(self, draws: Iterator[Callable[[], T]]):
        self._draws, self._worker = draws, ThreadPoolExecutor(1)
        self._ahead: Future[T] | None = None
        self._begun = False

    def __next__(self) -> T:
        if not self._begun:
            self._begun = True
            self._draw_ahead()
        if self._ahead is None:
            self.close()
            raise StopIteration
        drawn = self._ahead
        self._draw_ahead()
        return drawn.result()

    def settle(self) -> None:
        """Wait until nothing is being drawn: settings of the whole process may change then."""
        if self._ahead is not None:
            wait([self._ahead])

    def close(self) -> None:
        """End the thread, after what it is drawing."""
        self._worker.shutdown(cancel_futures=True)

    def _draw_ahead(self) -> None:
        draw = next(self._draws, None)
        self._ahead = None if draw is None else self._worker.submit(draw)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(seed, "order", epoch, count)
