"""Starting training with several processes: on this machine, or by a command for a cluster."""

import ctypes
import os
import shlex
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
    with subprocess.Popen(command, env=environment, preexec_fn=partial(die_with_parent, signal.SIGTERM)) as launcher:
        # Ctrl-C reaches torchrun and the ranks by itself, and a second signal would break their saving off.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
        return launcher.wait()


def launch_commands(arguments: Sequence[str], processes: int, nodes: int) -> str:
    """The commands that train ``arguments`` with ``processes`` a node, for a person or a batch script to run.

    Each node of a cluster runs the same line, with HEAD set to the first node's address (and NODE to its number, for
    accelerate). ``training.sharding=fsdp`` among the arguments splits the model; accelerate's own FSDP is not used.
    Raises ValueError for fewer than one process or node.
    """
    if processes < 1 or nodes < 1:
        raise ValueError(f"processes and nodes must be at least 1; got {processes} and {nodes}")
    train = shlex.join(["train", *arguments])
    if processes * nodes == 1:
        return f"workbench {train}"
    if nodes == 1:
        torchrun = f"torchrun --standalone --nproc_per_node={processes}"
        accelerate = f"accelerate launch --multi_gpu --num_processes={processes}"
    else:
        torchrun = (
            f"torchrun --nnodes={nodes} --nproc_per_node={processes} "
            f'--rdzv_backend=c10d --rdzv_id=workbench --rdzv_endpoint="$HEAD:29500"'
        )
        accelerate = (
            f"accelerate launch --multi_gpu --num_machines={nodes} --num_processes={nodes * processes} "
            f'--machine_rank="$NODE" --main_process_ip="$HEAD" --main_process_port=29500'
        )
    expected = f"WORKBENCH_PROCESSES={nodes * processes}"
    return f"{expected} {torchrun} -m workbench {train}\n# or\n{expected} {accelerate} -m workbench {train}"


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process the signal ``number`` when its parent dies; elsewhere nothing happens.

    torchrun starts its workers in sessions of their own, so whatever kills the launcher's group misses them: without
    this they would wait for each other for ever, holding the run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))
