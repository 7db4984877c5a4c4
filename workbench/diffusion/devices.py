"""Copies to a GPU that do not wait for what is queued there."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; to a GPU through pinned memory, without waiting for the work that is queued there."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return pinned(tensor).to(device, non_blocking=True)


def pinned(tensor: Tensor) -> Tensor:
    """``tensor`` in pinned memory, unless it is on a GPU."""
    return tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()
