"""Copies to a GPU that do not wait for what is queued there, batches that fit its memory, and how many cores to use."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

T = TypeVar("T")


class FittingBatches:
    """Divides work into batches that fit in memory: ``size`` items, halved whenever memory runs out.

    The smaller size is kept for the batches that follow. With enough memory the batches are the same on every machine.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, work: Callable[[slice], T], count: int) -> Iterator[tuple[slice, T]]:
        """Each part of ``range(count)`` in order, and what ``work(part)`` returned for it.

        Work that ran out of memory is called again with a smaller part. Raises ValueError if one item does not fit.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            try:
                found = work(part)
            except RuntimeError as error:
                self._halve(part.stop - part.start, error)
                continue
            yield part, found
            start = part.stop

    def _halve(self, tried: int, error: RuntimeError) -> None:
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        if not should_reduce_batch_size(error):
            raise error
        if tried == 1:
            raise ValueError(f"there is too little memory for a batch of one: {error}") from error
        self.size = tried // 2
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        clear_device_cache(garbage_collection=True)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; to a GPU through pinned memory, without waiting for the work that is queued there."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return pinned(tensor).to(device, non_blocking=True)


def pinned(tensor: Tensor) -> Tensor:
    """``tensor`` in pinned memory, unless it is on a GPU."""
    return tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()


def background_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor of ``count`` threads, whose tensor operations use one core each.

    Every thread that shares out its operations gets helpers of its own from OpenMP. Once these are more than the cores,
    none waits actively for work any longer, and training steps on the processor take 1.7 times as long ever after.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_use_one_core)


def one_core() -> AbstractContextManager[object]:
    """Context in which NumPy, SciPy and scikit-learn use one core, so that sums do not depend on how many there are."""
    return _controller(len(sys.modules)).limit(limits=1)


def _use_one_core() -> None:
    torch.get_num_threads()  # sets this thread's number to that of the process, which would otherwise happen later
    _controller(len(sys.modules)).limit(limits=1, user_api="openmp")


@lru_cache(maxsize=1)
def _controller(modules: int) -> ThreadpoolController:
    """The libraries that compute in threads; looked for again when there are more ``modules``, as it takes time."""
    return ThreadpoolController()
