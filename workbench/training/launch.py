"""Starting training with several processes on this machine."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

_SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def train_in_processes(processes: int, arguments: Sequence[str]) -> int:
    """Run ``workbench train`` under torchrun with ``processes`` ranks; returns its exit code.

    The ranks check that as many really started, and share the cores between them.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {**os.environ, "WORKBENCH_PROCESSES": str(processes)}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *torchrun, "-m", "workbench", "train", *arguments]
    return subprocess.call(command, env=environment, preexec_fn=partial(die_with_parent, signal.SIGTERM))


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process the signal ``number`` when its parent dies; elsewhere nothing happens.

    torchrun starts its workers in sessions of their own, so whatever kills the launcher's group misses them: without
    this they would wait for each other for ever, holding the run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))
