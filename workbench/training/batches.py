"""Training batches: each sample depends only on the seed and its position in the data order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch

from workbench.config import Config
from workbench.data.latents import Latents
from workbench.data.targets import Targets
from workbench.data.vae import sample_posterior
from workbench.diffusion.devices import background_threads
from workbench.diffusion.paths import get_path, interpolate
from workbench.diffusion.randomness import normal, permutation, uniform
from workbench.diffusion.schedules import sample_time
from workbench.objectives.base import Batch

T = TypeVar("T")


def draw_batch(config: Config, latents: Latents, targets: Mapping[str, Targets], step: int, rows: range) -> Batch:
    """Draw rows ``rows`` of the global batch of ``step`` (from 0).

    Row r of step s is position p = s batch + r of an endless data order with a new permutation each epoch. The position
    also determines noise, time, posterior sample, flip and label dropout. So the training data depend neither on the
    number of processes nor on accumulation or resumes, and all objectives get the same samples.
    """
    seed = config.training.seed
    positions = np.arange(rows.start, rows.stop) + step * config.training.batch
    epochs, offsets = np.divmod(positions, len(latents))
    indices = np.array([_order(seed, int(e), len(latents))[i] for e, i in zip(epochs, offsets, strict=True)])
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


def prefetched(draws: Iterable[Callable[[], T]], ahead: int = 1) -> "Prefetched[T]":
    """The results of ``draws`` in order; the next ``ahead`` ones are computed in as many threads."""
    return Prefetched(iter(draws), ahead)


class Prefetched(Iterator[T]):
    """Iterator over the results of functions, some of which are computed ahead in threads; close it after use."""

    def __init__(self, draws: Iterator[Callable[[], T]], ahead: int = 1):
        self._draws, self._workers, self._count = draws, background_threads(ahead, "batches"), ahead
        self._ahead: deque[Future[T]] = deque()

    def __next__(self) -> T:
        self._draw_ahead()  # only at the beginning
        if not self._ahead:
            self.close()
            raise StopIteration
        current = self._ahead.popleft()
        self._draw_ahead()
        return current.result()

    def settle(self) -> None:
        """Wait for the threads to be idle, so that settings of the whole process may be changed."""
        wait(self._ahead)

    def close(self) -> None:
        """Stop the threads after their current draws."""
        self._workers.shutdown(cancel_futures=True)

    def _draw_ahead(self) -> None:
        while len(self._ahead) < self._count and (draw := next(self._draws, None)) is not None:
            self._ahead.append(self._workers.submit(draw))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(seed, "order", epoch, count)
