"""Save checkpoints while training goes on: copy the state, then write the copy in a thread."""

import contextlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from workbench.diffusion.devices import background_threads
from workbench.runs.checkpoints import PARTS, check_room, save_checkpoint, thin

_SLAB = 2**28  # bytes allocated at a time: PyTorch rounds each pinned allocation up to a power of two
_ALIGNED = 64  # bytes
_SPARE = 2**30  # bytes of main memory that a copy leaves free


class Saver:
    """Writes the checkpoints of the main process; a training waits for the copy of its state only.

    A copy from a GPU is queued there, behind the step and before the next one, into pinned memory that is kept for the
    next checkpoint; the processor does not wait for it. Tensors in main memory are copied by the thread while the next
    losses and gradients are computed; `settle` has to be called before the tensors change. Where main memory has no
    room for a copy, training waits until the checkpoint is written. One checkpoint is written at a time. After it,
    older ones are thinned.

    Args:
        folder: Folder of the checkpoints.
        keep: How many complete checkpoints are kept.
        milestone_every: Steps between checkpoints whose weights are kept permanently.
    """

    def __init__(self, folder: Path, keep: int, milestone_every: int | None):
        self.folder, self._keep, self._milestone_every = folder, keep, milestone_every
        self._thread = background_threads(1, "saving")
        self._written: Future[None] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._slabs = _Slabs()

    def save(
        self,
        step: int,
        size: int,
        tensors: Iterable[tuple[str, str, Tensor]],
        state: Mapping[str, Any],
        gathered: bool = False,
    ) -> None:
        """Copy ``tensors`` (part, name, tensor), ``size`` bytes, and begin to write them.

        Waits for an earlier checkpoint that is still being written. ``gathered`` tensors are not part of the training's
        state, so they are copied in any case. Raises DiskFull, and what the earlier one raised.
        """
        self.finish()
        check_room(self.folder, size)
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        if not gathered and not self._slabs.has_room(size):
            for part, name, tensor in tensors:
                parts[part][name] = tensor
            self._write(step, parts, state)
            return
        later: list[tuple[str, str, Tensor]] = []
        queued = None
        for part, name, tensor in tensors:
            if gathered or tensor.is_cuda:
                parts[part][name] = self._slabs.copied(tensor)
            else:
                later.append((part, name, tensor))
            if tensor.is_cuda and queued is None:
                queued = torch.cuda.Event()
        if queued is not None:
            queued.record()
        self._copied.clear()
        self._written = self._thread.submit(partial(self._copy_and_write, step, parts, later, state, queued))

    def prepare(self, size: int, pinned: bool = True) -> None:
        """Begin to allocate memory for a copy of ``size`` bytes, so that the first `save` does not wait for it.

        Pinning 10 GB takes seconds. Without room in main memory nothing is allocated.
        """
        if self._slabs.has_room(size):
            self._written = self._thread.submit(partial(self._slabs.reserve, size, pinned))

    def settle(self) -> None:
        """Wait until the tensors of the last `save` may change."""
        self._copied.wait()

    def check(self) -> None:
        """Raise what the writing of a checkpoint raised, if it has ended; does not wait."""
        if self._written is not None and self._written.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint is on disk; raises what its writing raised."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def close(self) -> None:
        """Wait for the checkpoint, without its errors, and end the thread."""
        with contextlib.suppress(Exception):
            self.finish()
        self._thread.shutdown()

    def _copy_and_write(
        self,
        step: int,
        parts: dict[str, dict[str, Tensor]],
        later: Iterable[tuple[str, str, Tensor]],
        state: Mapping[str, Any],
        queued: torch.cuda.Event | None,
    ) -> None:
        try:
            try:
                for part, name, tensor in later:
                    parts[part][name] = self._slabs.copied(tensor)
            finally:
                self._copied.set()
            if queued is not None:
                queued.synchronize()
            self._write(step, parts, state)
        finally:
            self._slabs.reuse()

    def _write(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        save_checkpoint(self.folder, step, parts, state)
        thin(self.folder, self._keep, self._milestone_every, step)


class _Slabs:
    """Main memory for the copies of one checkpoint, in large pieces; pinned for copies from a GPU, and then kept."""

    def __init__(self) -> None:
        self._pieces: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether they are pinned
        self._used: dict[bool, tuple[int, int]] = {}
        self.reuse()

    def reuse(self) -> None:
        """Forget the copies, which must not be used any more."""
        self._used = {True: (0, 0), False: (0, 0)}
        self._pieces[False].clear()

    def has_room(self, size: int) -> bool:
        """Whether main memory has room for a copy of ``size`` bytes."""
        kept = sum(piece.numel() for piece in self._pieces[True])
        return size - kept + _SPARE < psutil.virtual_memory().available

    def reserve(self, size: int, pinned: bool) -> None:
        """Allocate pieces for ``size`` bytes; a tensor that does not fit the rest of a piece begins the next one."""
        for _ in range(-(-size // _SLAB) - len(self._pieces[pinned])):
            self._pieces[pinned].append(torch.empty(_SLAB, dtype=torch.uint8, pin_memory=pinned))

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in main memory; from a GPU it is queued on the current stream."""
        size = tensor.numel() * tensor.element_size()
        place = self._take(size, pinned=tensor.is_cuda)
        copy = place.view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor.detach(), non_blocking=True)

    def _take(self, size: int, pinned: bool) -> Tensor:
        pieces, (number, start) = self._pieces[pinned], self._used[pinned]
        while number < len(pieces) and start + size > pieces[number].numel():
            number, start = number + 1, 0
        if number == len(pieces):
            pieces.append(torch.empty(max(size, _SLAB), dtype=torch.uint8, pin_memory=pinned))
        self._used[pinned] = number, start + -(-size // _ALIGNED) * _ALIGNED
        return pieces[number][start : start + size]
