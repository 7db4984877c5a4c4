"""The processes that a launcher started for one command, on one or several machines.

PyTorch is imported when it is needed, as commands ask here whether there are several processes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=30)  # images are generated between two meetings


@dataclass(frozen=True)
class Ranks:
    """This process, number ``rank`` of ``count``, and number ``local`` of those on its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> str:
        """The GPU of this process, or the CPU if there is none."""
        import torch

        gpus = torch.cuda.device_count()
        return f"cuda:{self.local % gpus}" if gpus else "cpu"

    def of_main(self, value: Any) -> Any:
        """The ``value`` of the main process, for which the others wait."""
        if self.count == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            from torch.distributed import barrier

            barrier()


def several_started() -> bool:
    """Whether a launcher started this process as one of several; reads its environment only."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Meet the processes that a launcher started together with this one, until the block ends; alone without any.

    The environment is that of torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Only messages are
    exchanged, so the processes meet through gloo, with GPUs too.
    """
    if not several_started():
        yield Ranks()
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), local)
    finally:
        torch.distributed.destroy_process_group()
