"""The machine's queue: order, slots, chains, and what survives a kill."""

import json
import os
import signal
import time

import pytest

from workbench.__main__ import main
from workbench.config import load_config
from workbench.runs.history import read_history
from workbench.runs.store import prepare_run
from workbench.training.launch import launch
from workbench.training.queue import cancel, damaged_jobs, discard, entries, jobs, resume, submit
from workbench.training.slots import queue_folder, take_slots

TINY = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=16",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "training.optimizer=adamw",
    "training.batch=4",
    "training.steps=3",
)


@pytest.fixture(autouse=True)
def own_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def config(seed: int = 0, name: str = "demo/plain", *more: str):
    return load_config(name, (*TINY, f"training.seed={seed}", *more))


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shown() -> list[tuple[str, str]]:
    return [(entry.job.run.rpartition("/")[2], entry.state) for entry in entries()]


@pytest.mark.slow
def test_one_after_the_other_and_the_student_after_its_teacher(tmp_path):
    root = tmp_path / "runs"
    held = take_slots(("cpu",), 1, tmp_path / "somebody")
    teacher = launch(config(0, "demo/teacher", "objective.head_width=16"), root=root, queue=True).run
    options = (f"objective.teacher={teacher.folder}", "objective.head_width=16")
    student = launch(config(0, "demo/guided", *options), root=root, queue=True, after=teacher).run
    other = launch(config(1), root=root, queue=True).run
    assert {run.status["state"] for run in (teacher, student, other)} == {"queued"}
    wait_for(lambda: shown()[-1][1] == "waiting", 10)
    assert shown() == [(teacher.name, "waiting"), (student.name, f"after {teacher.name}"), (other.name, "waiting")]
    assert launch(config(1), root=root, queue=True).attached
    os.close(held.handles[0])
    wait_for(lambda: all(run.status["state"] == "finished" for run in (teacher, student, other)))
    begun = {run.name: read_history(run.folder)[-1] for run in (teacher, student, other)}
    assert all(event["what"] == "train" for event in begun.values())
    # The last to ask does not wait for the student, which could not start; but nobody trains beside another.
    order = sorted(begun, key=lambda name: begun[name]["time"])
    assert order.index(teacher.name) == 0 and len(order) == 3
    wait_for(lambda: shown() == [], 10)


@pytest.mark.slow
def test_a_student_whose_teacher_failed_fails(tmp_path):
    teacher = prepare_run(config(0), tmp_path)
    teacher.write_status("failed", 2, error="the loss is not finite")
    run = launch(config(1), root=tmp_path, queue=True, after=teacher).run
    wait_for(lambda: run.status["state"] == "failed", 10)
    assert run.status["error"] == f"it should start after run {teacher.name}, which failed: the loss is not finite"
    assert shown() == []


@pytest.mark.slow
def test_a_killed_waiter_keeps_its_place_and_a_cancelled_one_leaves(tmp_path):
    held = take_slots(("cpu",), 1, tmp_path / "somebody")
    first, second = (launch(config(seed), root=tmp_path, queue=True) for seed in (0, 1))
    wait_for(lambda: [state for _, state in shown()] == ["waiting", "waiting"], 10)
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: [state for _, state in shown()] == ["no process", "waiting"], 10)
    assert "workbench queue resume" in first.run.status["remark"]
    assert [job.run for job in resume()] == [str(first.run.folder)] and resume() == []
    wait_for(lambda: [state for _, state in shown()] == ["waiting", "waiting"], 10)
    assert shown()[0][0] == first.run.name
    for launched in (first, second):
        cancel(launched.run.folder)
        assert launched.run.status["state"] == "created"
    assert shown() == []
    with pytest.raises(ValueError, match="is not in the queue"):
        cancel(first.run.folder)
    os.close(held.handles[0])


@pytest.mark.slow
def test_a_training_that_died_with_the_machine_is_started_again(tmp_path):
    held = take_slots(("cpu",), 1, tmp_path / "somebody")
    launched = launch(config(0), root=tmp_path, queue=True)
    wait_for(lambda: shown() == [(launched.run.name, "waiting")], 10)
    os.kill(launched.pid, signal.SIGKILL)
    wait_for(lambda: shown() == [(launched.run.name, "no process")], 10)
    (job,) = (entry.job for entry in entries())
    started = {"devices": ["cpu"], "boot": "another start of the machine"}
    job.started.write_text(json.dumps(started))
    launched.run.write_status("running", 2)  # so it was when the power went
    assert shown() == [(launched.run.name, "no process")] and launched.run.status["state"] == "lost"
    other = launch(config(1), root=tmp_path, queue=True)  # starts it too, in its old place
    wait_for(lambda: shown() == [(launched.run.name, "waiting"), (other.run.name, "waiting")], 10)
    for run in (launched.run, other.run):
        cancel(run.folder)
    assert launched.run.status["step"] == 2 and launched.run.status["state"] == "stopped"
    os.close(held.handles[0])


def test_slots(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_SLOTS", "2")
    first, second = (take_slots(("cpu",), 1, tmp_path / name) for name in ("one", "two"))
    assert (first.devices, first.beside, first.environment) == (("cpu",), (), {})
    assert take_slots(("cpu",), 1, tmp_path / "three") is None
    forced = take_slots(("cpu",), 1, tmp_path / "three", force=True)
    assert forced.beside == ("one", "two")
    for handle in (*first.handles, *second.handles, *forced.handles):
        os.close(handle)
    assert take_slots(("cpu",), 1, tmp_path / "four").beside == ()
    gpus = take_slots(("gpu0", "gpu1", "gpu2"), 2, tmp_path / "five")
    assert gpus.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert take_slots(("gpu0", "gpu1", "gpu2"), 2, tmp_path / "six") is None
    assert take_slots(("gpu0", "gpu1", "gpu2"), 1, tmp_path / "six").devices == ("gpu2",)
    monkeypatch.setenv("WORKBENCH_SLOTS", "none")
    with pytest.raises(ValueError, match="WORKBENCH_SLOTS must be a number of at least 1; got 'none'"):
        take_slots(("cpu",), 1, tmp_path / "seven")


def test_a_queue_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set WORKBENCH_QUEUE to a writable folder"):
        take_slots(("cpu",), 1, tmp_path)


def submit_for(run, **more):
    record = {"run": str(run.folder), "command": ("true",), "environment": {}, "cwd": "/", "candidates": ("cpu",)}
    return submit(**{**record, "needed": 1, "after": None, "by": "me", **more})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"5", b"null", b"[]", b"{}", b"[" * 50_000, b"\xff", b'{"number": 5}']
    + [{"number": "7"}, {"command": []}, {"command": "true"}, {"command": [1]}, {"candidates": None}]
    + [{"environment": {"A": 1}}, {"submitted": "x"}, {"run": 5}, {"after": 5}, {"more": 1}],
)
def test_a_damaged_job_hinders_no_other(tmp_path, content):
    runs = [prepare_run(config(seed), tmp_path / "runs") for seed in (0, 1)]
    bad, good = map(submit_for, runs)
    if isinstance(content, dict):
        content = json.dumps({**json.loads(bad.file.read_text()), **content}).encode()
    bad.file.write_bytes(content)
    first, second = entries()
    assert (first.name, first.job) == (bad.file.name, None) and first.state.startswith(f"damaged: {bad.file}")
    assert (second.name, second.state) == (runs[1].name, "no process")
    assert [job.number for job in jobs()] == [good.number] and damaged_jobs() == [bad.file.name]
    with pytest.raises(ValueError, match=f"is not in the queue .*these damaged jobs may belong to it: {bad.file.name}"):
        cancel(runs[0].folder)
    third = submit_for(runs[0])
    assert int(third.number) > int(good.number)
    discard(bad.file.name)
    cancel(runs[1].folder)
    assert [entry.name for entry in entries()] == [runs[0].name]


def test_a_run_with_a_damaged_status_hinders_no_other_job(tmp_path):
    runs = [prepare_run(config(seed), tmp_path / "runs") for seed in (0, 1)]
    for number, run in enumerate(runs):
        submit_for(run, after=str(runs[0].folder) if number else None)
    (runs[0].folder / "status.json").write_text("{")
    first, second = entries()
    assert first.name == runs[0].name and first.state.startswith(f"damaged: {runs[0].folder / 'status.json'}")
    assert (second.name, second.state) == (runs[1].name, "no process")
    cancel(runs[0].folder)
    assert (runs[0].folder / "status.json").read_text() == "{"
    assert [entry.name for entry in entries()] == [runs[1].name]


def test_the_commands_of_the_queue_take_a_damaged_job_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    bad = submit_for(prepare_run(config(), tmp_path / "runs"))
    bad.file.write_text('{"number": 5}')
    main(["queue"])
    main(["queue-resume"])
    printed = capsys.readouterr().out
    assert "damaged" in printed and f"damaged and skipped: {bad.file.name}" in printed
    main(["queue-cancel", bad.number])
    main(["queue"])
    assert f"removed the damaged job {bad.file.name}" in capsys.readouterr().out and entries() == []


def test_a_slot_is_held_whatever_is_written_in_it(tmp_path):
    held = take_slots(("cpu",), 1, tmp_path / "run")
    for content in ("", "{", "5", '{"run": null}', "{}"):
        (slot,) = (queue_folder() / "slots" / "cpu").iterdir()
        slot.write_text(content)
        assert take_slots(("cpu",), 1, tmp_path / "other") is None
    os.close(held.handles[0])
