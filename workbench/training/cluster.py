"""Launch commands and Slurm scripts for training on a cluster."""

import shlex
import sys
from collections.abc import Sequence

from workbench.runs.store import runs_root

_SECONDS_TO_SAVE = 600
_CORES, _MEMORY = 8, 64  # of each rank: cores, and GB, as a rank reads a whole checkpoint when it resumes


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
    # Without a longer time, torchrun kills its ranks 30 seconds after a signal.
    expected = f"WORKBENCH_PROCESSES={nodes * processes} TORCH_ELASTIC_SHUTDOWN_TIMEOUT={_SECONDS_TO_SAVE - 60}"
    return f"{expected} {torchrun} -m workbench {train}\n# or\n{expected} {accelerate} -m workbench {train}"


def slurm_script(arguments: Sequence[str], name: str, processes: int, nodes: int, hours: int) -> str:
    """A complete batch script for ``sbatch``: one torchrun per node, with ``processes`` GPUs each.

    Ten minutes before the time limit, or after ``scancel --signal=TERM --batch JOB``, the ranks save and stop, and the
    job waits in the queue again to go on from there. Slurm itself does so for a job that is preempted or loses a node.
    A rank that fails ends the job with its error. Raises ValueError for fewer than one process, node or hour.
    """
    if min(processes, nodes, hours) < 1:
        raise ValueError(f"processes, nodes and hours must be at least 1; got {processes}, {nodes} and {hours}")
    train = shlex.join(["train", *arguments])
    rendezvous = "--standalone" if nodes == 1 else _rendezvous(nodes, "$SLURM_JOB_ID", "$PORT")
    return f"""#!/bin/bash
#SBATCH --job-name={name.replace("/", "-")}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={_CORES * processes}
#SBATCH --mem={_MEMORY * processes}G
#SBATCH --time={hours}:00:00
#SBATCH --signal=B:TERM@{_SECONDS_TO_SAVE}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt
set -euo pipefail
# Every node must see this folder, and the configuration's data.
export WORKBENCH_RUNS={shlex.quote(str(runs_root().resolve()))}
export WORKBENCH_PROCESSES={nodes * processes}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={_SECONDS_TO_SAVE - 60}  # seconds to save before ranks are killed
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take over by itself
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((20000 + SLURM_JOB_ID % 20000))  # jobs on one node must not meet
srun {shlex.quote(sys.executable)} -m torch.distributed.run {rendezvous} --nproc_per_node={processes} \
  -m workbench {train} &
step=$! stopped=
# srun forwards the signal to its tasks, and torchrun to the ranks.
trap 'stopped=yes; kill -TERM "$step" || true' TERM
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ends `wait` before the ranks have saved
  code=0
  wait "$step" || code=$?
done
if [ "$stopped" ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
"""


def _torchrun(processes: int, nodes: int) -> str:
    rendezvous = "--standalone" if nodes == 1 else _rendezvous(nodes, "workbench", "29500")
    return f"torchrun {rendezvous} --nproc_per_node={processes}"


def _rendezvous(nodes: int, job: str, port: str) -> str:
    return f'--nnodes={nodes} --rdzv_backend=c10d --rdzv_id={job} --rdzv_endpoint="$HEAD:{port}"'
