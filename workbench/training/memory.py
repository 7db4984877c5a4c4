"""Keep freed memory in the process while it trains, instead of returning it to the operating system in every step."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_ALL = 2**31 - 1  # bytes: the largest int
_USUAL = 64 * 2**20, 32 * 2**20  # what glibc itself comes to in a process that allocates large tensors


@contextmanager
def kept_memory() -> Iterator[None]:
    """Context in which freed memory stays in the process; elsewhere than with glibc (Linux) it does nothing.

    The activations of a step are freed in its backward pass. glibc returns them to the operating system, which hands
    out zeroed pages in the next step: a tenth of the time of a step on a CPU.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is not None:
        libc.mallopt(_TRIM_THRESHOLD, _ALL)
        libc.mallopt(_MMAP_THRESHOLD, _ALL)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(_TRIM_THRESHOLD, _USUAL[0])
            libc.mallopt(_MMAP_THRESHOLD, _USUAL[1])
            libc.malloc_trim(0)
