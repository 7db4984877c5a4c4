"""Set the precision of float32 matrix products on a GPU within a block, and restore it afterwards."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Enable or disable TF32 for matrix products and convolutions within the block, and restore the previous state."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, named = (matmul.allow_tf32, cudnn.allow_tf32), _named_precision()
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    if _named_precision() is None:  # inconsistent settings, with which torch.compile fails
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        if named is not None:
            torch.set_float32_matmul_precision(named)  # also restores "medium", which allow_tf32 cannot express


def _named_precision() -> str | None:
    """PyTorch's name for the precision of matrix products; None if its backends differ, for which it has no name."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def advanced_in(
    context: Callable[[], AbstractContextManager[None]], generator: Generator[T, None, None]
) -> Generator[T, None, None]:
    """Iterate over ``generator``, running each of its steps and its cleanup inside a new ``context()``.

    The code that consumes the values runs outside the context.
    """
    try:
        while True:
            with context():
                try:
                    value = next(generator)
                except StopIteration:
                    return
            yield value
    finally:
        with context():
            generator.close()
