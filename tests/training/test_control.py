"""Detached trainings in other hands: launched, left alone, paused, changed, stopped, killed, resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.config import load_config
from workbench.files import hold_lock
from workbench.runs.history import read_history, record_event
from workbench.runs.state import STARTER_LOCK
from workbench.runs.store import Run, find_runs, prepare_run
from workbench.training.control import Control
from workbench.training.launch import launch
from workbench.training.loop import fit
from workbench.training.mailbox import Mailbox, last_number, send

SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=16",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "training.optimizer=adamw",
    "training.batch=4",
    "training.log_every=10",
)
LONG = load_config("demo/plain", (*SMALL, "training.steps=1000000", "training.checkpoint_every=1000000"))
_EVENTS = ["launch", "train", "pause", "checkpoint", "resume", "set", "stop"]
_LAUNCH = """
import sys, time
from pathlib import Path
from workbench.config import load_config
from workbench.training.launch import launch
launched = launch(load_config(sys.argv[1]), root=Path(sys.argv[2]), patience=60.0)
print(launched.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    for run in find_runs(tmp_path / "runs"):
        if run.status["state"] in ("starting", "running", "paused"):
            os.killpg(run.status["pid"], signal.SIGKILL)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoint(run.config.training.steps)
    parts = {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}
    return {f"{part}:{name}": value for part, named in parts.items() for name, value in named.items()}


@pytest.mark.slow
def test_a_training_outlives_who_launched_it_and_obeys_others(tmp_path):
    root = tmp_path / "runs"
    run = prepare_run(LONG, root)
    arguments = [sys.executable, "-c", _LAUNCH, str(run.folder / "config.yaml"), str(root)]
    notebook = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    pid = int(notebook.stdout.readline())
    os.killpg(notebook.pid, signal.SIGKILL)
    notebook.wait()
    assert run.status["state"] == "running" and run.status["pid"] == pid

    again = launch(LONG, root=root)
    assert (again.attached, again.pid, again.run.folder) == (True, pid, run.folder)
    control = Control(run)
    paused = control.pause()
    assert (paused.result, run.status["state"]) == ("done", "paused") and paused.seconds < 2
    time.sleep(0.5)
    assert run.status["step"] == paused.step  # it waits
    assert control.checkpoint().step == paused.step  # also while it waits
    assert control.resume().result == "done"
    wait_for(lambda: run.metrics and run.metrics[-1]["step"] > paused.step)
    assert [c.step for c in run.checkpoints] == [paused.step]
    assert control.set("log_every", 1).result == "done: log_every 10 -> 1"
    with pytest.raises(ValueError, match="'weight_decay' is not known.*learning_rate, log_every, checkpoint_every"):
        control.set("weight_decay", 0.1)
    with pytest.raises(ValueError, match="learning_rate must be above 0; got -1.0"):
        control.set("learning_rate", -1)
    send(run.folder, "dance")
    send(run.folder, "set", option="log_every", value=0)
    stopped = control.stop()
    assert stopped.result == "done" and stopped.seconds < 2
    wait_for(lambda: run.status["state"] == "stopped", 10)
    assert run.checkpoints[-1].step == run.status["step"] == stopped.step
    assert [e["what"] for e in read_history(run.folder)] == _EVENTS
    with pytest.raises(ValueError, match="is stopped at step .*no process trains it"):
        control.pause()


@pytest.mark.slow
def test_straight_after_a_stop_it_is_launched_again(tmp_path):
    """The answer comes before the weights are saved, and the process leaves after that: both are waited for."""
    root = tmp_path / "runs"
    first = launch(LONG, root=root, patience=60.0)
    control = Control(first.run, patience=30.0)
    asked = Control(first.run, patience=0.0).stop()  # does not wait, so `resume` has to
    assert str(asked).startswith("stop: sent, not answered yet: the run is in the middle of a step, at step ")
    again = control.resume()
    assert not again.attached and again.pid != first.pid and again.state in ("starting", "running")
    wait_for(lambda: first.run.status["state"] == "running")
    control.stop()
    third = launch(LONG, root=root, patience=60.0)
    assert not third.attached and third.pid not in (first.pid, again.pid) and third.state == "running"
    assert first.run.status["step"] > 0  # it went on
    assert [e["what"] for e in read_history(first.run.folder)].count("launch") == 3
    since = time.monotonic()
    with pytest.raises(ValueError, match="is running; only a run that is paused or ended early resumes"):
        control.resume()
    assert time.monotonic() - since < control.patience / 2  # the stops of earlier processes are not waited for
    control.stop()
    wait_for(lambda: first.run.status["state"] == "stopped", 10)


def test_a_process_that_does_not_leave_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.training.launch._LEAVING", 0.5)
    run = prepare_run(LONG, tmp_path)
    run.write_status("stopped", 7)
    since = time.monotonic()
    with (
        hold_lock(run.folder / STARTER_LOCK, 1.0),
        pytest.raises(ValueError, match="process .* still holds it after .*: try"),
    ):
        Control(run, patience=0.5).resume()
    assert time.monotonic() - since >= 1.0  # first by its own patience
    with run.lock(), pytest.raises(ValueError, match=f"{run.name} is stopped, but process"):
        launch(LONG, root=tmp_path)


@pytest.mark.slow
def test_killed_after_a_change_it_is_lost_and_resumes_to_the_same_weights(tmp_path):
    config = load_config("demo/plain", (*SMALL, "training.steps=200", "training.checkpoint_every=30"))
    launched = launch(config, root=tmp_path / "runs", patience=60.0)
    run = launched.run
    wait_for(lambda: run.status["step"] >= 20)
    changed = Control(run).set("learning_rate", 3e-4)
    os.killpg(launched.pid, signal.SIGKILL)
    wait_for(lambda: run.status["state"] == "lost", 10)
    assert "died unexpectedly" in run.status["remark"]
    assert 20 <= changed.step < 200
    assert Control(run).resume().run.folder == run.folder
    wait_for(lambda: run.status["state"] == "finished")
    whole = prepare_run(config, tmp_path / "whole")
    record_event(whole.folder, changed.step, "set", option="learning_rate", old=1e-3, new=3e-4)
    list(fit(config, tmp_path / "whole"))
    cut, uncut = weights(run), weights(whole)
    assert cut.keys() == uncut.keys() and all(torch.equal(cut[name], uncut[name]) for name in cut)
    assert [e["what"] for e in read_history(run.folder)] == ["launch", "train", "set", "launch", "train"]


@pytest.mark.slow
def test_several_processes_obey_at_the_same_step(tmp_path):
    run = launch(LONG, processes=2, root=tmp_path / "runs", patience=90.0).run
    control = Control(run)
    assert run.status["state"] == "running"
    paused = control.pause()
    assert paused.result == "done" and paused.seconds < 3
    assert control.set("learning_rate", 1e-4).step == paused.step
    assert control.resume().result == "done"
    stopped = control.stop()
    assert stopped.result == "done" and stopped.seconds < 3  # two seconds, and a step on a busy machine
    wait_for(lambda: run.status["state"] == "stopped", 20)
    assert run.checkpoints[-1].step == stopped.step


def test_looking_for_commands_costs_little(tmp_path):
    send(tmp_path, "pause")
    box = Mailbox(tmp_path, 0)
    assert [(c.number, c.what) for c in box.new()] == [(1, "pause")] and box.new() == ()
    since = time.process_time()  # its own work, not what other programs take of the machine
    for _ in range(10_000):
        box.new()
    assert (time.process_time() - since) / 10_000 < 20e-6
    assert [send(tmp_path, what) for what in ("resume", "stop")] == [2, 3]
    assert [c.what for c in box.new()] == ["resume", "stop"]  # neither is lost
    assert Mailbox(tmp_path, 3).new() == ()
    (tmp_path / "control.json").write_text("{")
    assert box.new() == ()


def test_a_run_that_nobody_trains_takes_changes_for_its_resume(tmp_path):
    config = load_config("demo/plain", (*SMALL, "training.steps=6", "training.checkpoint_every=2"))
    for record in fit(config, tmp_path):
        if record["step"] == 4:
            break
    run = prepare_run(config, tmp_path)
    answer = Control(run).set("checkpoint_every", 1)
    assert (answer.step, answer.result) == (4, "done: checkpoint_every 2 -> 1")
    assert [record["step"] for record in fit(config, tmp_path)] == [5, 6]


def test_the_stop_step_turns_the_objective_on_again_exactly(tmp_path):
    options = ("backbone.patch=8", "training.steps=8", "training.log_every=1", "training.checkpoint_every=3")
    repa = ("objective.encoder=effnet-lite0", "objective.head_width=16", "objective.layer=2", "objective.stop_step=2")
    config = load_config("demo/plain", (*SMALL, *options, "objective.name=repa", *repa))
    aligned = []
    for record in fit(config, tmp_path / "changed"):
        aligned += [record["step"]] if record["alignment"] is not None else []
        if record["step"] == 4:  # heard after step 5
            send(prepare_run(config, tmp_path / "changed").folder, "set", option="stop_step", value=7)
    assert aligned == [1, 2, 6, 7]
    changed = prepare_run(config, tmp_path / "changed")
    assert [(e["step"], e["old"], e["new"]) for e in read_history(changed.folder) if e["what"] == "set"] == [(5, 2, 7)]
    replayed = prepare_run(config, tmp_path / "replayed")
    record_event(replayed.folder, 5, "set", option="stop_step", old=2, new=7)
    list(fit(config, tmp_path / "replayed"))
    first, second = weights(changed), weights(replayed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_changed_stop_step_leaves_a_decaying_weight_alone(tmp_path):
    options = ("training.steps=8", "training.log_every=1", "training.checkpoint_every=3")
    decay = ("objective.weight=0.5", "objective.decay_start=2", "objective.decay_length=2")
    config = load_config("demo/plain", (*SMALL, *options, "objective.name=sra", *decay))

    def trained(root: Path, leave: int | None) -> Run:
        """With stop_step set to 6 at step 3; left after step ``leave`` and resumed."""
        run = prepare_run(config, root)
        record_event(run.folder, 3, "set", option="stop_step", old=None, new=6)
        for record in fit(config, root) if leave else ():
            if record["step"] == leave:
                break
        for _ in fit(config, root):
            pass
        return run

    whole = trained(tmp_path / "whole", None)
    used = [(r["loss"] - r["denoise"]) / r["alignment"] if r["alignment"] else 0 for r in whole.metrics]
    # 0.5 until step 2 (counted from 0), then tenfold less every two steps, nothing from step 6 on.
    assert used == pytest.approx([0.5, 0.5, 0.5, 0.5 / 10**0.5, 0.05, 0.05 / 10**0.5, 0, 0], rel=1e-3, abs=1e-9)
    first = weights(whole)
    for leave in (2, 4, 7):  # before the change, between it and the stop, after the stop
        second = weights(trained(tmp_path / str(leave), leave))
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_an_objective_without_a_stop_step_is_given_one(tmp_path):
    options = ("training.steps=4", "training.log_every=1", "objective.name=vae_align", "objective.head_width=16")
    config = load_config("demo/plain", (*SMALL, *options, "objective.layer=2"))
    record_event(prepare_run(config, tmp_path).folder, 2, "set", option="stop_step", old=None, new=0)
    assert [record["step"] for record in fit(config, tmp_path) if record["alignment"] is not None] == [1, 2]


@pytest.mark.slow
def test_a_launch_that_fails_at_once_says_why(tmp_path):
    images = ("data.name=image-folder", f"data.path={tmp_path / 'none'}")
    wrong = load_config("demo/plain", (*SMALL, "training.steps=5", *images))
    launched = launch(wrong, root=tmp_path / "runs", patience=60.0)
    assert launched.state == launched.run.status["state"] == "failed"
    assert "there is no file or folder data.path" in launched.failed and "workbench train" in launched.failed
    with pytest.raises(ValueError, match="batch 4 cannot be divided among 3 processes"):
        launch(LONG, processes=3, root=tmp_path / "runs")
    with pytest.raises(ValueError, match="GPU 97 is not available"):
        launch(LONG, devices=[97], root=tmp_path / "runs")
    with pytest.raises(ValueError, match="'demo/teacher' has not been trained"):
        launch(load_config("demo/guided"), root=tmp_path / "runs")


def test_a_configuration_that_changed_is_refused(tmp_path):
    run = prepare_run(LONG, tmp_path)
    file = Path(run.folder / "config.yaml")
    file.write_text(file.read_text().replace("batch: 4", "batch: 8"))
    with pytest.raises(ValueError, match=f"config.yaml was changed after the run was created.*{run.fingerprint}"):
        launch(LONG, root=tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "5", "{}", '{"commands": [5]}', '{"commands": [{"number": "x"}]}', "[" * 50_000]
)
def test_damaged_commands_stop_no_training(tmp_path, content):
    """They are lost; those that come later are heard."""
    config = load_config("demo/plain", (*SMALL, "training.steps=3"))
    run = prepare_run(config, tmp_path)
    record_event(run.folder, 0, "pause", command=7)
    (run.folder / "control.json").write_text(content)
    assert last_number(run.folder) == 7
    assert [record["step"] for record in fit(config, tmp_path)][-1] == 3 and run.status["state"] == "finished"
    with pytest.warns(UserWarning, match="control.json is damaged: .*; it is replaced"):
        assert send(run.folder, "stop") == 8
    assert send(run.folder, "stop") == 9 == last_number(run.folder)


def test_a_finished_run_takes_no_changes(tmp_path):
    config = load_config("demo/plain", SMALL)
    run = prepare_run(config, tmp_path)
    run.write_status("finished", 700)
    with pytest.raises(ValueError, match=r"finished at step 700: log_every can no longer change"):
        Control(run).set("log_every", 5)
    run.write_status("stopped", 7)
    for value in (10**23, 10**12 + 1, 0, -1, "x", None, [1], True, 1.5):
        with pytest.raises(ValueError, match="log_every must be"):
            Control(run).set("log_every", value)
    assert Control(run).set("log_every", 5).result == "done: log_every 10 -> 5"


SET = '{"what": "set", "step": 1, "option": %s, "new": %s}'


@pytest.mark.parametrize(
    "line",
    ["5", "[1, 2]", "null", "{}", '{"what": "set", "step": 1}', SET % ('"log_every"', '"x"'), SET % ("[]", "1")]
    + ['{"what": "launch", "step": 0, "devices": "all"}'],
)
def test_a_damaged_history_is_one_sentence(tmp_path, line):
    config = load_config("demo/plain", SMALL)
    run = prepare_run(config, tmp_path)
    run.write_status("stopped", 7)
    (run.folder / "history.jsonl").write_text(f"{line}\n{line}\n")
    for ask in (lambda: Control(run).set("log_every", 5), Control(run).resume, lambda: list(fit(config, tmp_path))):
        with pytest.raises(ValueError, match="history.jsonl is damaged"):
            ask()
