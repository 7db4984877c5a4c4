"""Threads beside the training, and batches that fit in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workbench.diffusion.devices import FittingBatches, background_threads


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


def small_gpu(room: int, tried: list[int]):
    """Work that PyTorch would end on a GPU with room for ``room`` items."""

    def work(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return list(range(part.start, part.stop))

    return work


def test_batches_are_halved_until_they_fit_and_stay_so() -> None:
    tried: list[int] = []
    batches = FittingBatches(100)
    found = [item for _, items in batches(small_gpu(30, tried), 60) for item in items]
    assert found == list(range(60)) and tried == [60, 30, 30]
    assert [part for part, _ in batches(small_gpu(30, tried), 40)] == [slice(0, 30), slice(30, 40)]
    assert [part for part, _ in FittingBatches(100)(small_gpu(1000, tried), 250)] == [
        slice(0, 100),
        slice(100, 200),
        slice(200, 250),
    ]


def test_one_item_that_does_not_fit_and_other_errors_are_raised() -> None:
    tried: list[int] = []
    with pytest.raises(ValueError, match="too little memory for a batch of one: CUDA out of memory"):
        list(FittingBatches(8)(small_gpu(0, tried), 8))
    assert tried == [8, 4, 2, 1]

    def broken(part: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(FittingBatches(8)(broken, 8))


def test_what_did_not_fit_is_freed_before_the_next_attempt() -> None:
    import weakref

    kept: list[weakref.ref] = []

    def work(part: slice) -> int:
        if not kept:
            tokens = torch.zeros(10)
            kept.append(weakref.ref(tokens))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert kept[0]() is None
        return part.stop

    assert [stop for _, stop in FittingBatches(2)(work, 2)] == [1, 2]
