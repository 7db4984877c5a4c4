"""Over any executor: a notebook that stands in for the row's, with a kernel that dies and an end without a word."""

import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from workbench.reporting.sweep.executors import opened
from workbench.reporting.sweep.records import read_job, sweep_folder
from workbench.reporting.sweep.schedule import run_sweep
from workbench.reporting.sweep.specification import plan, sweep_of

pytestmark = pytest.mark.slow

STAND_IN = """\
import json, os, signal, sys
if config.endswith("teacher"):
    os.kill(os.getpid(), signal.SIGKILL)
print(os.environ["OMP_NUM_THREADS"], os.environ["WORKBENCH_RUNS"], os.getcwd())
---
if config.endswith("plain"):
    mark = {"fingerprint": "FINGERPRINT", "run": "r", "step": 1, "scores": {}}
    open(os.environ["WORKBENCH_ROW_MARK"], "w").write(json.dumps(mark))
"""


@pytest.fixture
def stand_in(tmp_path):
    """A notebook that dies for a teacher, ends without a word for vae, and says that it trained a plain row."""
    spec = sweep_of({"name": "s", "rows": ["laptop/sit-nano-2", "laptop/sit-nano-2-vae", "laptop/sit-nano-2-plain"]})
    mark = next(job.fingerprint for job in plan(spec, tmp_path) if job.training.source.endswith("plain"))
    parts = STAND_IN.replace("FINGERPRINT", mark).split("---\n")
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}, id="parameters")]
    cells += [nbformat.v4.new_code_cell(part, id=f"part-{number}") for number, part in enumerate(parts)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    file = tmp_path / "stand-in.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), file)
    return spec, file


def check_stand_in(outcomes, place, root):
    words = ("teacher", "sit-nano-2-0", "vae", "plain")
    teacher, student, vae, plain = (next(outcomes[id] for id in outcomes if word in id) for word in words)
    record = read_job(place.job(teacher.id))
    assert (record["state"], record["exit"], record["reason"]) == ("failed", 3, "the kernel died")
    assert teacher.cell == "part-0: import json, os, signal, sys"
    cells = nbformat.read(teacher.notebook, 4).cells
    assert all(cell.metadata.papermill.status == "completed" for cell in cells)  # which is why it is not asked
    assert (student.state, student.reason) == ("left out", f"it needs {teacher.id}, which failed")
    assert (vae.state, vae.reason) == ("failed", "the notebook ended without reaching row.end() in its last cell")
    assert plain.state == "finished" and read_job(place.job(plain.id))["run"] == "r"
    (printed,) = (o.text for c in nbformat.read(plain.notebook, 4).cells for o in c.outputs)
    assert printed.split()[1:] == [str(root), os.getcwd()]


def test_a_dead_kernel_is_a_failure_and_its_students_are_left_out(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    spec, notebook = stand_in
    with ThreadPoolExecutor(3) as executor:
        *_, last = run_sweep(spec, executor, root=tmp_path, notebook=notebook)
    check_stand_in({outcome.id: outcome for outcome in last.ended}, sweep_folder(tmp_path, "s"), tmp_path)
    assert {outcome.id for outcome in last.failures} == {o.id for o in last.ended if "plain" not in o.id}
    assert json.loads(sweep_folder(tmp_path, "s").results.read_text())["rows"] == []  # there is no such run


def test_over_a_cluster_of_dask(stand_in, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    spec, notebook = stand_in
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        executor = client.get_executor(pure=False)
        *_, last = run_sweep(spec, executor, root=tmp_path, notebook=notebook, workers=2)
    check_stand_in({outcome.id: outcome for outcome in last.ended}, sweep_folder(tmp_path, "s"), tmp_path)


FOUR = """\
import json, os, time
from pathlib import Path
runs = Path(os.environ["WORKBENCH_RUNS"])
(runs / f"begun-{seed}").open("a").write("x")
---
from workbench.reporting.sweep.records import is_stopped
while not (runs / "go").exists() and not is_stopped():
    time.sleep(0.05)
if is_stopped():
    raise SystemExit
mark = {"fingerprint": json.loads((runs / "marks.json").read_text())[str(seed)], "run": "r", "step": 1, "scores": {}}
Path(os.environ["WORKBENCH_ROW_MARK"]).write_text(json.dumps(mark))
"""


@pytest.fixture
def four(tmp_path):
    """A sweep of four rows, whose notebook notes each start and waits for the file "go"."""
    spec = sweep_of({"name": "four", "rows": ["demo/plain"], "seeds": [0, 1, 2, 3]})
    marks = {str(job.training.seed): job.fingerprint for job in plan(spec, tmp_path)}
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}, id="parameters")]
    cells += [nbformat.v4.new_code_cell(part, id=f"part-{n}") for n, part in enumerate(FOUR.split("---\n"))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    file = tmp_path / "four.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), file)
    return spec, file


def run_four(spec, notebook, root) -> None:
    with opened("submitit", sweep_folder(root, spec.name).folder, options=["cluster=local"]) as executor:
        for _ in run_sweep(spec, executor, root=root, notebook=notebook, workers=2):
            pass


def begun(root) -> list[int]:
    return [len(path.read_text()) for path in sorted(root.glob("begun-*"))]


def test_jobs_of_submitit_outlive_the_sweep_and_are_found_again(four, tmp_path):
    """Four rows: the sweep is killed while all run, and the next one waits for them instead of starting others."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    spec, notebook = four
    process = multiprocessing.get_context("fork").Process(target=run_four, args=(spec, notebook, tmp_path))
    process.start()
    deadline = time.monotonic() + 120
    while begun(tmp_path) != [1, 1, 1, 1]:
        assert process.is_alive() and time.monotonic() < deadline, begun(tmp_path)
        time.sleep(0.05)
    process.kill()
    process.join()
    place = sweep_folder(tmp_path, "four")
    assert [read_job(place.job(job.id))["state"] for job in plan(spec, tmp_path)] == ["running"] * 4
    with opened("submitit", place.folder, options=["cluster=local"]) as executor:
        updates = run_sweep(spec, executor, root=tmp_path, notebook=notebook, workers=2)
        assert next(updates).ended == ()
        (tmp_path / "go").touch()
        *_, last = updates
    assert [outcome.state for outcome in last.ended] == ["finished"] * 4
    assert begun(tmp_path) == [1, 1, 1, 1]
    assert not list(place.folder.glob("*/submitted.json"))


def test_the_debug_executor_of_submitit_executes_in_this_process(stand_in, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    spec, notebook = stand_in
    with opened("submitit", sweep_folder(tmp_path, "s").folder, options=["cluster=debug"]) as executor:
        *_, last = run_sweep(spec, executor, root=tmp_path, notebook=notebook)
    check_stand_in({outcome.id: outcome for outcome in last.ended}, sweep_folder(tmp_path, "s"), tmp_path)


def test_over_ray(stand_in, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    spec, notebook = stand_in
    with opened("ray", sweep_folder(tmp_path, "s").folder, options=["num_cpus=1"]) as executor:
        *_, last = run_sweep(spec, executor, root=tmp_path, notebook=notebook)
    check_stand_in({outcome.id: outcome for outcome in last.ended}, sweep_folder(tmp_path, "s"), tmp_path)
