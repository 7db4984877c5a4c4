"""Starting training with several processes on this machine."""

import os
import subprocess
import sys
from collections.abc import Sequence


def train_in_processes(processes: int, arguments: Sequence[str]) -> int:
    """Run ``workbench train`` under torchrun with ``processes`` ranks; returns its exit code.

    The ranks check that as many really started, and share the cores between them.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {**os.environ, "WORKBENCH_PROCESSES": str(processes)}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.call([sys.executable, *torchrun, "-m", "workbench", "train", *arguments], env=environment)
