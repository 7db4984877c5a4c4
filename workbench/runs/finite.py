"""Find the first tensor with a non-finite value, reading each tensor once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # listing runs must not import torch
    from torch import Tensor


def name_of_not_finite(tensors: "Mapping[str, Tensor]") -> str | None:
    """Name of the first floating-point tensor with a NaN or infinity, or None."""
    named = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    first = int(first_not_finite(list(named.values()))) if named else 0
    return list(named)[first] if first < len(named) else None


def first_not_finite(tensors: "Sequence[Tensor]") -> "Tensor":
    """Index of the first of the floating-point `tensors` with a NaN or infinity; ``len(tensors)`` if there is none.

    The result is a scalar on their common device, so there is no synchronization until it is read.
    """
    import torch

    tensors = [t.detach() if t.numel() else t.new_zeros(1) for t in tensors]  # an empty one has no largest value
    # What is NaN or infinite if any value is, and needs no copy. The norms are one kernel on a GPU; on a CPU they take
    # fifteen times as long as the smallest and largest values.
    if tensors[0].device.type == "cpu":
        found = [torch.stack(torch.aminmax(t)) for t in tensors]
    else:
        found = list(torch._foreach_norm(tensors, torch.inf))
    broken = ~torch.stack([value.float() for value in found]).isfinite().view(len(tensors), -1).all(dim=1)
    indices = torch.arange(len(tensors), device=broken.device)
    return torch.where(broken, indices, len(tensors)).min()
