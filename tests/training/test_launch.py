"""Launch commands: what is printed starts what was asked for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.config import load_config
from workbench.files import is_locked
from workbench.runs.state import STARTER_LOCK
from workbench.runs.store import find_runs
from workbench.training.cluster import launch_commands, slurm_script
from workbench.training.launch import launch

SMALL = ("data.name=digits", "data.source=auto", "data.limit=16", "vae.name=identity", "backbone.patch=16")
SMALL += ("backbone.size=pico", "training.optimizer=adamw", "training.batch=4")


def test_one_process_needs_no_launcher():
    assert launch_commands(["demo/plain", "training.steps=5"], 1, 1) == "workbench train demo/plain training.steps=5"


def test_nodes_agree_on_the_number_of_processes():
    text = launch_commands(["demo/plain", "objective.pairs=[[2, 5]]"], 8, 4)
    torchrun, _, accelerate = text.splitlines()
    assert (
        "--nnodes=4" in torchrun
        and "--nproc_per_node=8" in torchrun
        and "--num_machines=4 --num_processes=32" in accelerate
    )
    assert all(line.startswith("WORKBENCH_PROCESSES=32 ") for line in (torchrun, accelerate))
    assert all(" TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 " in line for line in (torchrun, accelerate))  # seconds to save
    assert torchrun.endswith("train demo/plain 'objective.pairs=[[2, 5]]'")


def test_nothing_to_launch():
    with pytest.raises(ValueError, match="at least 1; got 0 and 1"):
        launch_commands(["demo/plain"], 0, 1)


# What a node runs: it goes on at the step that was saved, saves it when it gets a signal, and ends at step 3.
SRUN = """#!/bin/bash
echo "$WORKBENCH_PROCESSES" "$WORKBENCH_RUNS" "$SRUN_CPUS_PER_TASK" "$@" >>"$CLUSTER/started"
step=$(cat "$CLUSTER/step" 2>/dev/null || echo 0)
trap 'sleep .3; echo "$step" >"$CLUSTER/step"; exit 1' TERM
[ ! -e "$CLUSTER/broken" ] || exit 3
while [ "$step" -lt 3 ]; do step=$((step + 1)); echo "$step" >"$CLUSTER/now"; sleep .2; done
echo "$step" >"$CLUSTER/step"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >>"$CLUSTER/requeued"; else echo node7; echo node8; fi
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """slurm(nodes, limit=None) -> exit status of the printed batch script, which gets its signal once ``limit`` exists.

    A stand-in for the batch system: its commands are replaced, so that what they are given can be looked at.
    """
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "my runs"))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "40123", "SLURM_CPUS_PER_TASK": "64"}
    environment = {**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CLUSTER": str(tmp_path)}

    def run(nodes: int, limit: Path | None = None) -> int:
        script = slurm_script(["paper/sit-xl-2-256", "training.sharding=fsdp"], "paper/xl", 8, nodes, 24)
        job = subprocess.Popen(["bash", "-c", script], env=environment)
        if limit is not None:
            deadline = time.monotonic() + 60
            while not limit.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            job.send_signal(signal.SIGTERM)
        return job.wait(60)

    return run


def test_the_batch_script_asks_for_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    script = slurm_script(["paper/sit-xl-2-256"], "paper/xl", 8, 4, 24)
    wanted = {"job-name": "paper-xl", "nodes": "4", "gpus-per-node": "8", "time": "24:00:00", "cpus-per-task": "64"}
    for name, value in (*wanted.items(), ("signal", "B:TERM@600")):
        assert f"#SBATCH --{name}={value}\n" in script
    with pytest.raises(ValueError, match="at least 1; got 8, 0 and 24"):
        slurm_script(["demo/plain"], "name", 8, 0, 24)


def test_the_batch_script_starts_one_torchrun_a_node(tmp_path, slurm):
    assert slurm(4) == 0
    assert (tmp_path / "started").read_text().split() == [
        *("32", f"{tmp_path}/my", "runs", "64", sys.executable, "-m", "torch.distributed.run", "--nnodes=4"),
        *("--rdzv_backend=c10d", "--rdzv_id=40123", "--rdzv_endpoint=node7:20123", "--nproc_per_node=8"),
        *("-m", "workbench", "train", "paper/sit-xl-2-256", "training.sharding=fsdp"),
    ]
    assert (tmp_path / "step").read_text() == "3\n" and not (tmp_path / "requeued").exists()


def test_a_job_that_reaches_its_limit_saves_waits_in_the_queue_again_and_goes_on(tmp_path, slurm):
    assert slurm(1, limit=tmp_path / "now") == 0
    saved = int((tmp_path / "step").read_text())
    assert 1 <= saved < 3 and (tmp_path / "requeued").read_text() == "40123\n"
    assert slurm(1) == 0
    assert (tmp_path / "step").read_text() == "3\n" and (tmp_path / "requeued").read_text() == "40123\n"
    assert "--standalone" in (tmp_path / "started").read_text()


def test_a_job_whose_rank_fails_ends_with_its_status(tmp_path, slurm):
    (tmp_path / "broken").touch()
    assert slurm(2) == 3 and not (tmp_path / "requeued").exists()


@pytest.mark.slow
def test_the_printed_line_trains_with_as_many_processes(tmp_path):
    small = [*SMALL, "training.steps=2", "training.sharding=fsdp"]
    line = launch_commands(["demo/plain", *small], 2, 1).splitlines()[0]
    line = line.replace("torchrun", f"{sys.executable} -m torch.distributed.run", 1)
    done = subprocess.run(
        f"WORKBENCH_RUNS={tmp_path} OMP_NUM_THREADS=1 {line}",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("finished at step 2") == 1  # only the first process speaks


@pytest.mark.slow
@pytest.mark.parametrize("queue", [False, True])
def test_the_log_has_no_colours_whatever_jupyter_asks_for(tmp_path, monkeypatch, queue):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    config = load_config("demo/plain", [*SMALL, "training.steps=2", "training.log_every=1"])
    run = launch(config, root=tmp_path / "runs", queue=queue, patience=60.0).run
    deadline = time.monotonic() + 60
    while run.status["state"] != "finished" or is_locked(run.folder / STARTER_LOCK):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    text = (run.folder / "log.txt").read_text()
    assert "finished at step 2" in text and "\x1b" not in text and "\r" not in text


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_are_told_to_stop_save_first(tmp_path, asked):
    small = [*SMALL, "training.steps=100000", "training.log_every=1", "training.checkpoint_every=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "train", "demo/plain", *small, "--processes=2"],
        env={**os.environ, "WORKBENCH_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not any(run.metrics for run in find_runs(tmp_path)):
            time.sleep(0.1)
        # A terminal sends Ctrl-C to the whole group, a batch system its signal to the launcher alone.
        os.killpg(process.pid, asked) if asked == signal.SIGINT else process.send_signal(asked)
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (run,) = find_runs(tmp_path)
    assert run.status["state"] == "stopped"
    assert run.checkpoints[-1].step == run.status["step"] > 0
