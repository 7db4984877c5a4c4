"""The precision of single-precision products on a GPU, as a property of a call: the process is left as it was."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Matrix products and convolutions in TF32, or not, within the block; before and after, as the process has them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, named = (matmul.allow_tf32, cudnn.allow_tf32), _named_precision()
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    if _named_precision() is None:  # the process had another precision by name, which compiling would stumble over
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        if named is not None:
            torch.set_float32_matmul_precision(named)  # "medium" too, which allow_tf32 does not know


def _named_precision() -> str | None:
    """PyTorch's name for the precision of matrix products; None where its backends differ, which it refuses to name."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def advanced_in(
    context: Callable[[], AbstractContextManager[None]], generator: Generator[T, None, None]
) -> Generator[T, None, None]:
    """What ``generator`` yields, each step of it and its end inside a new ``context()``.

    Whoever takes the values stays outside, also while the generator waits, and if it is left before its end.
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
