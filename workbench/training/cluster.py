"""Launch commands and Slurm scripts for training on a cluster."""

import shlex
from collections.abc import Sequence

from workbench.runs.store import runs_root


def launch_commands(arguments: Sequence[str], processes: int, nodes: int) -> str:
    """Shell commands that run ``workbench train`` with ``processes`` per node, by torchrun or accelerate.

    Every node runs the same line, with HEAD set to the first node's address and, for accelerate, NODE to its own
    number. ``training.sharding=fsdp`` in the arguments shards the model; accelerate's own FSDP is not used.
    Raises ValueError for fewer than one process or node.
    """
    if processes < 1 or nodes < 1:
        raise ValueError(f"processes and nodes must be at least 1; got {processes} and {nodes}")
    train = shlex.join(["train", *arguments])
    if processes * nodes == 1:
        return f"workbench {train}"
    if nodes == 1:
        accelerate = f"accelerate launch --multi_gpu --num_processes={processes}"
    else:
        accelerate = (
            f"accelerate launch --multi_gpu --num_machines={nodes} --num_processes={nodes * processes} "
            f'--machine_rank="$NODE" --main_process_ip="$HEAD" --main_process_port=29500'
        )
    torchrun = _torchrun(processes, nodes)
    expected = f"WORKBENCH_PROCESSES={nodes * processes}"
    return f"{expected} {torchrun} -m workbench {train}\n# or\n{expected} {accelerate} -m workbench {train}"


def slurm_script(arguments: Sequence[str], name: str, processes: int, nodes: int, hours: int) -> str:
    """A complete batch script for ``sbatch``: one torchrun per node, with ``processes`` GPUs each.

    The ranks get SIGTERM five minutes before the time limit and on preemption. They save, and the requeued job
    resumes. Raises ValueError for fewer than one process, node or hour.
    """
    if min(processes, nodes, hours) < 1:
        raise ValueError(f"processes, nodes and hours must be at least 1; got {processes}, {nodes} and {hours}")
    train = shlex.join(["train", *arguments])
    return f"""#!/bin/bash
#SBATCH --job-name={name.replace("/", "-")}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --time={hours}:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=%x-%j.txt
set -euo pipefail
# Every node must see this folder, and the configuration's data.
export WORKBENCH_RUNS={shlex.quote(str(runs_root().resolve()))}
export WORKBENCH_PROCESSES={nodes * processes}
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {_torchrun(processes, nodes)} -m workbench {train}
"""


def _torchrun(processes: int, nodes: int) -> str:
    if nodes == 1:
        return f"torchrun --standalone --nproc_per_node={processes}"
    return (
        f"torchrun --nnodes={nodes} --nproc_per_node={processes} "
        f'--rdzv_backend=c10d --rdzv_id=workbench --rdzv_endpoint="$HEAD:29500"'
    )
