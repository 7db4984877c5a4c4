"""Launch commands: what is printed starts what was asked for."""

import os
import signal
import subprocess
import sys
import time

import pytest

from workbench.config import load_config
from workbench.files import is_locked
from workbench.runs.state import STARTER_LOCK
from workbench.runs.store import find_runs
from workbench.training.cluster import launch_commands, slurm_script
from workbench.training.launch import launch


def test_one_process_needs_no_launcher():
    assert launch_commands(["demo/plain", "training.steps=5"], 1, 1) == "workbench train demo/plain training.steps=5"


def test_nodes_agree_on_the_number_of_processes():
    text = launch_commands(["demo/plain", "objective.pairs=[[2, 5]]"], 8, 4)
    torchrun, _, accelerate = text.splitlines()
    assert "--nnodes=4 --nproc_per_node=8" in torchrun and "--num_machines=4 --num_processes=32" in accelerate
    assert all(line.startswith("WORKBENCH_PROCESSES=32 ") for line in (torchrun, accelerate))
    assert torchrun.endswith("train demo/plain 'objective.pairs=[[2, 5]]'")


def test_nothing_to_launch():
    with pytest.raises(ValueError, match="at least 1; got 0 and 1"):
        launch_commands(["demo/plain"], 0, 1)


def test_the_batch_script_starts_one_torchrun_a_node(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "my runs"))
    script = slurm_script(["paper/sit-xl-2-256", "training.sharding=fsdp"], "paper/xl", 8, 4, 24)
    for name, said in (("job-name", "paper-xl"), ("nodes", "4"), ("gpus-per-node", "8"), ("time", "24:00:00")):
        assert f"#SBATCH --{name}={said}\n" in script
    # Run with the cluster's own commands replaced: what a node would be told is what it prints.
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$WORKBENCH_PROCESSES" "$WORKBENCH_RUNS" "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [
        *("32", f"{tmp_path}/my", "runs", "torchrun", "--nnodes=4", "--nproc_per_node=8", "--rdzv_backend=c10d"),
        *("--rdzv_id=workbench", "--rdzv_endpoint=node7:29500", "-m", "workbench", "train", "paper/sit-xl-2-256"),
        "training.sharding=fsdp",
    ], done.stderr
    with pytest.raises(ValueError, match="at least 1; got 8, 0 and 24"):
        slurm_script(["demo/plain"], "name", 8, 0, 24)


@pytest.mark.slow
def test_the_printed_line_trains_with_as_many_processes(tmp_path):
    small = ["data.name=digits", "data.source=auto", "data.limit=16", "vae.name=identity", "backbone.patch=16"]
    small += ["training.steps=2", "training.batch=4", "training.sharding=fsdp"]
    line = launch_commands(["demo/plain", *small], 2, 1).splitlines()[0].replace("torchrun", "-m torch.distributed.run")
    variable, _, rest = line.partition(" ")
    done = subprocess.run(
        f"{variable} WORKBENCH_RUNS={tmp_path} OMP_NUM_THREADS=1 {sys.executable} {rest}",
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
    small = ["data.name=digits", "data.source=auto", "data.limit=16", "vae.name=identity", "backbone.patch=16"]
    config = load_config("demo/plain", [*small, "training.steps=2", "training.batch=4", "training.log_every=1"])
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
    small = ["data.name=digits", "data.source=auto", "data.limit=16", "vae.name=identity", "backbone.patch=16"]
    small += ["training.steps=100000", "training.batch=4", "training.log_every=1", "training.checkpoint_every=100000"]
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
