"""Freed memory stays in the process while it trains, and goes back to the operating system afterwards."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from workbench.training.memory import kept_memory

SIZE, COUNT = 40 * 2**20, 4  # bytes and number of the tensors: each is larger than glibc keeps by itself
PAGE = resource.getpagesize()

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")


def faults(rounds: int) -> int:
    """Pages that the operating system hands out while tensors are made and freed, as in a training step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        tensors = [torch.full((SIZE,), 1, dtype=torch.uint8) for _ in range(COUNT)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_freed_memory_is_kept_during_training_alone():
    with kept_memory():
        faults(6)  # the heap grows until its gaps fit
        assert faults(2) < COUNT * SIZE / PAGE / 10
        kept = resident()
    assert resident() < kept - COUNT * SIZE / 2
