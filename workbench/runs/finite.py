"""Which of many tensors holds a number that is not finite, at the cost of reading each once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only lists runs does not wait for torch
    from torch import Tensor


def name_of_not_finite(tensors: "Mapping[str, Tensor]") -> str | None:
    """The name of the first tensor with a NaN or an infinity, or None; those of whole numbers are passed over."""
    named = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    first = int(first_not_finite(list(named.values()))) if named else 0
    return list(named)[first] if first < len(named) else None


def first_not_finite(tensors: "Sequence[Tensor]") -> "Tensor":
    """Index of the first of the floating-point `tensors` with a NaN or an infinity, their number if there is none.

    A whole number on their device, so that nothing waits for it until it is read. All must be on one device.
    """
    import torch

    # The largest magnitude is NaN or infinite if any number is, and needs no copy; an empty tensor has none.
    largest = torch._foreach_norm([t if t.numel() else t.new_zeros(1) for t in tensors], torch.inf)
    broken = ~torch.stack([value.float() for value in largest]).isfinite()
    places = torch.arange(len(tensors), device=broken.device)
    return torch.where(broken, places, len(tensors)).min()
