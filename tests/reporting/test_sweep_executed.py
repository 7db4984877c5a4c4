"""Sweeps as they are executed: killed, stopped, with a row that fails, and by hand."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
from threadpoolctl import threadpool_limits

from workbench.files import hold_lock
from workbench.reporting.sweep.records import STOP, read_job, sweep_folder
from workbench.reporting.sweep.row import Stopped, open_row
from workbench.reporting.sweep.schedule import run_sweep
from workbench.reporting.sweep.specification import plan, sweep_of
from workbench.runs.store import Run, find_runs, prepare_run
from workbench.shipped import shipped

pytestmark = pytest.mark.slow

SHARED = {
    "training.steps": 8,
    "training.batch": 4,
    "data.limit": 120,
    "vae.name": "identity",
    "backbone.patch": 8,
    "training.log_every": 1,
    "training.checkpoint_every": 2,
}
GUIDED = {"name": "guided", "base": "laptop/sit-nano-2", "overrides": {"objective.head_width": 16}}
DIVERGING = {"base": "laptop/sit-nano-2-plain", "name": "diverging", "overrides": {"training.learning_rate": 1e30}}
SPEC = {"name": "tiny", "overrides": SHARED, "rows": [GUIDED], "evaluate": {"count": 20, "steps": 2}}


@contextlib.contextmanager
def one_thread():
    """Another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def command(root: Path, tree: dict, *options: str) -> subprocess.Popen:
    file = root / "sweep.yaml"
    file.write_text(json.dumps(tree))  # which is YAML too
    environment = {**os.environ, "WORKBENCH_RUNS": str(root / "runs"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "workbench", "sweep", str(file), "--workers", "2", *options]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition, process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None), (
            process and process.stdout.read()
        )
        time.sleep(0.02)


def contents(root: Path) -> dict[str, object]:
    """What a sweep leaves: its table, each run's records and the hash of all its weights; no times."""
    clock = ("images_per_second", "seconds", "machine")
    found: dict[str, object] = {"table": json.loads(sweep_folder(root, "tiny").results.read_text())}
    for run in find_runs(root):
        for name, records in (("metrics", run.metrics), ("results", run.results)):
            found[f"{run.name} {name}"] = [{k: v for k, v in r.items() if k not in clock} for r in records]
        for file in run.folder.glob("checkpoints/*/*.safetensors"):
            found[f"{run.name} {file.parent.name} {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    found["files"] = {path.relative_to(root).as_posix() for path in root.rglob("*") if "diverging" not in str(path)}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep of a guided row, its teacher and a row that fails; how it was told and how it ended."""
    root = tmp_path_factory.mktemp("undisturbed")
    process = command(root, {**SPEC, "rows": [DIVERGING, GUIDED]})
    said, _ = process.communicate(timeout=300)
    return root / "runs", said, process.returncode


def test_a_failing_row_is_named_with_its_cell_and_the_others_are_finished(undisturbed):
    root, said, code = undisturbed
    assert code == 1, said
    assert re.search(r"diverging-0: failed in cell 'train: row.train\(\)': Diverged: the loss is not finite at", said)
    assert "1 of 3 rows failed, 0 were skipped" in said
    place = sweep_folder(root, "tiny")
    record = read_job(place.job("diverging-0"))
    assert (record["state"], record["exit"], record["cell"]) == ("failed", 1, "train: row.train()")
    cells = nbformat.read(place.job("diverging-0") / "row.ipynb", 4).cells
    assert next(cell for cell in cells if cell.id == "train").outputs[-1].ename == "Diverged"


def test_the_table_holds_what_was_measured(undisturbed):
    root, _, _ = undisturbed
    (row,) = json.loads(sweep_folder(root, "tiny").results.read_text())["rows"]
    run = Run(root / row["run"])
    assert (row["row"], row["seed"], row["step"], row["method"]) == ("guided", 0, 8, "self_transcendence")
    assert row["fingerprint"] == run.fingerprint and len(row["scores"]) == 10
    assert row["scores"] == {record["metric"]: record["value"] for record in run.results}
    assert {(r["n_generated"], r["sampler_steps"]) for r in run.results} == {(20, 2)}


def test_the_notebook_is_the_rows_record(undisturbed):
    root, _, _ = undisturbed
    notebook = nbformat.read(sweep_folder(root, "tiny").job("guided-0") / "row.ipynb", 4)
    by_name = {cell.id: cell for cell in notebook.cells}
    shown = [kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())]
    assert shown.count("image/png") == 2 and "| fd-clf64 |" in by_name["score"].outputs[0].data["text/markdown"]
    assert "finished" in by_name["end"].outputs[0].data["text/plain"]
    (injected,) = (cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", ()))
    assert "laptop/sit-nano-2" in injected.source and "head_width=16" in injected.source


def test_killed_twice_it_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    jobs = {job.names: job for job in plan(sweep_of(SPEC), tmp_path)}
    for names in ((), ("guided",)):  # the teacher and the student, each after its first checkpoint

        def begun(mark=jobs[names].fingerprint):
            return any(
                len([*folder.glob("checkpoints/step-*/state.json")]) for folder in tmp_path.glob(f"runs/*-{mark[:8]}")
            )

        process = command(tmp_path, SPEC)
        until(begun, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    process = command(tmp_path, SPEC)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    expected, found = contents(undisturbed[0]), contents(tmp_path / "runs")
    for key in expected.keys() | found.keys():
        if "diverging" in key or "plain" in key:
            continue
        if key == "files":
            assert {f for f in expected[key] if "plain" not in f} == found[key]
        else:
            assert found.get(key) == expected.get(key), key


def test_what_is_finished_is_not_repeated(undisturbed):
    root, _, _ = undisturbed
    before = {file: file.stat().st_mtime_ns for file in sweep_folder(root, "tiny").folder.glob("*/row.ipynb")}
    spec = sweep_of({**SPEC, "rows": [GUIDED]})
    note = sweep_folder(root, "tiny").job("guided-0") / "submitted.json"
    note.write_text("{}")  # of a job of a cluster that ended after the sweep that submitted it
    *_, last = run_sweep(spec, Idle(), root=root)
    assert [(outcome.state, outcome.before) for outcome in last.ended] == [("finished", True)] * 2
    assert not note.exists()
    assert before == {file: file.stat().st_mtime_ns for file in before}


class Idle:
    """An executor that must be given nothing."""

    def submit(self, *order):
        raise AssertionError(order)


def test_the_same_row_by_hand(undisturbed, tmp_path, monkeypatch):
    root, _, _ = undisturbed
    monkeypatch.setenv("WORKBENCH_RUNS", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shared = " ".join(f"{key}={value}" for key, value in SHARED.items())
    line = ["-p", "config", "laptop/sit-nano-2", "-p", "seed", "0", "-p", "overrides", "objective.head_width=16"]
    line += ["-p", "shared", shared, "-y", "evaluate: {count: 20, steps: 2}", "--no-progress-bar"]
    before = contents(root)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(shipped("notebooks/paper/row.ipynb")),
            str(tmp_path / "out.ipynb"),
            *line,
        ],
        check=True,
    )
    end = next(cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.id == "end")
    assert "at step 8: finished" in end.outputs[0].data["text/plain"]
    assert contents(root) == before  # the sweep's run, and its scores


def test_a_stop_before_anything_begins_begins_nothing(tmp_path):
    (only,) = run_sweep(sweep_of(SPEC), Idle(), root=tmp_path, stop=lambda: True)
    assert only.stopping and not only.ended and not sweep_folder(tmp_path, "tiny").stop.exists()


def test_who_leaves_waits_until_the_rows_have_ended(tmp_path):
    """A row that saves for a second when it is asked to stop, and the sweep that is left meanwhile."""
    orders = []

    def row(order):
        orders.append(order)
        until(Path(order["stop"]).exists)
        time.sleep(0.5)
        orders.append("saved")
        return {"state": "stopped"}

    class Inline(ThreadPoolExecutor):
        def submit(self, _, order):
            return super().submit(row, order)

    with Inline(1) as executor:
        for _ in run_sweep(sweep_of(SPEC), executor, root=tmp_path):
            break
        # Leaving the loop dropped the generator, which closes it.
        assert orders[1:] == ["saved"] and orders[0]["parameters"]["config"] == "laptop/sit-nano-2-teacher"


def test_two_sweeps_of_one_name_do_not_fight(tmp_path):
    place = sweep_folder(tmp_path, "tiny")
    place.folder.mkdir(parents=True)
    with hold_lock(place.lock, 1.0), pytest.raises(ValueError, match="another process executes the sweep tiny"):
        next(run_sweep(sweep_of(SPEC), Idle(), root=tmp_path))


PLAIN = {"overrides": [f"{key}={value}" for key, value in SHARED.items()], "evaluate": None}


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    steps = {"training.steps": 100_000, "training.checkpoint_every": 50_000}
    process = command(tmp_path, {**SPEC, "rows": ["laptop/sit-nano-2-plain"], "overrides": {**SHARED, **steps}})
    until(lambda: any("step" in r for run in find_runs(tmp_path / "runs") for r in run.metrics), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "laptop-sit-nano-2-plain-0: stopped\n" in said
    assert "To continue: workbench sweep " in said
    (run,) = find_runs(tmp_path / "runs")
    assert run.status["state"] == "stopped" and run.checkpoint().step == run.status["step"] > 0
    record = read_job(sweep_folder(tmp_path / "runs", "tiny").job("laptop-sit-nano-2-plain-0"))
    assert record["state"] == "stopped"


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, capsys):
    row = open_row("laptop/sit-nano-2-plain", root=tmp_path, **PLAIN)
    run = prepare_run(row.training.config, tmp_path)
    left = []

    def other():
        with run.lock():
            run.write_status("running", 3)
            ready.set()
            time.sleep(1.2)
            run.write_status("stopped", 3)
            left.append(time.monotonic())

    ready = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(10)
    with one_thread():
        assert row.train().status["state"] == "finished"
    thread.join()
    assert f"{run.name} is running in process {os.getpid()}" in capsys.readouterr().out
    assert run.metrics[0]["step"] == 1 and row.spent["train"] > 1


def test_a_row_that_is_asked_to_stop_saves_and_goes_on_from_there(tmp_path, monkeypatch):
    stop = tmp_path / "stop"
    monkeypatch.setenv(STOP, str(stop))
    monkeypatch.setattr("workbench.reporting.sweep.row._POLL", 0.01)
    steps = ["training.steps=120", "training.checkpoint_every=120"]
    row = open_row("laptop/sit-nano-2-plain", [*PLAIN["overrides"], *steps], root=tmp_path)
    run = prepare_run(row.training.config, tmp_path)
    threading.Thread(target=lambda: (until(lambda: run.metrics), stop.touch()), daemon=True).start()
    with pytest.raises(Stopped):
        row.train()
    reached = run.status["step"]
    assert run.status["state"] == "stopped" and 0 < reached < 120 and run.checkpoint().step == reached
    with pytest.raises(Stopped):  # before anything else is begun
        row.train()
    stop.unlink()
    monkeypatch.delenv(STOP)
    assert row.train().status["state"] == "finished"
    assert [record["step"] for record in run.metrics] == [*range(1, 121)]


def test_the_notebook_is_committed_clean():
    notebook = json.loads(shipped("notebooks/paper/row.ipynb").read_text())
    nbformat.validate(nbformat.from_dict(notebook))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["id"].replace("-", "").isalpha() for cell in notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert code[-1]["source"] == "row.end()" and notebook["cells"][-1]["id"] == "end"
    assert papermill.inspect_notebook(shipped("notebooks/paper/row.ipynb")).keys() == {
        "config",
        "overrides",
        "shared",
        "seed",
        "evaluate",
    }
