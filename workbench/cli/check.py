"""The command that checks a machine with a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE
from rich.table import Table

from workbench.cli.terminal import Console
from workbench.config.ranges import Positive


@dataclass(frozen=True)
class CheckGpu:
    """Check this machine's GPU in at most 8 minutes: arithmetic, resuming, speed and memory, as one JSON file.

    Every objective is compared with float32 on the processor; steps, sampling, extraction and checkpoints are timed.
    """

    file: Path = Path("check-gpu.json")
    """Where the results are written, after each item."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu runs a tiny version, which checks the program and not the machine."""
    minutes: Positive = 8.0
    """Items that would take longer are left out."""

    def execute(self) -> None:
        from workbench.reporting.gpu_check import check_gpu, summary

        console = Console()
        with console.status("checking") as status:
            record = check_gpu(self.file, self.device, self.minutes, lambda name: status.update(f"checking: {name}"))
        table = Table("item", "", "", box=SIMPLE, pad_edge=False)
        for row in summary(record):
            table.add_row(*row)
        (console if console.is_terminal else Console(width=160)).print(table)
        console.print(f"{'all ok' if record['ok'] else 'not all ok'}: {self.file.resolve()}", soft_wrap=True)
