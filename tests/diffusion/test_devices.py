"""Threads beside the training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workbench.diffusion.devices import background_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Tensor operations of the main thread use two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
@pytest.mark.usefixtures("two_threads")
def test_background_threads_start_no_threads_of_their_own() -> None:
    large = torch.ones(2**22)
    (large + large).sum()  # the threads of this one exist before they are counted
    before = _threads()
    with background_threads(1, "test") as executor:
        assert executor.submit(lambda: float((large + large).sum())).result() == 2**23
        assert _threads() == before + 1
    assert torch.get_num_threads() == 2
