"""The precision of matrix products within a block: TF32 on a GPU, bfloat16, and what this machine is fast at."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")
HALF: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FAST_BF16 = ("amx_bf16", "avx512_bf16", "sve_bf16")  # instructions that multiply matrices in bfloat16


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


def has_fast_bf16() -> bool:
    """Whether the GPU (compute capability 8.0 or newer), or else the processor, multiplies matrices in bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of PyTorch do not say.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in _FAST_BF16)


def chosen_precision(precision: Literal["no", "bf16", "auto"]) -> Literal["no", "bf16"]:
    """``precision`` with "auto" replaced: "bf16" where this machine multiplies matrices in bfloat16, else "no".

    Raises ValueError for another word.
    """
    if precision not in ("no", "bf16", "auto"):
        raise ValueError(f"precision is {precision!r}; allowed are no, bf16, auto")
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16() else "no"


def reduced(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Context in which matrix products and convolutions are in the type "bf16" or "fp16"; for "no" as they are."""
    dtype = HALF.get(precision)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


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
