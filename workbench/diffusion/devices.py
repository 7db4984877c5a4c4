"""Copies to a GPU that do not wait for what is queued there, and how many cores a calculation uses."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor


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
