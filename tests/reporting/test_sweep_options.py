"""Executors of sweeps: what is refused before anything is submitted, and what the queue says."""

import json
import os
import sys
import types

import pytest

from workbench.files import hold_lock
from workbench.reporting.sweep.executors import Elsewhere, found_again, opened, submit
from workbench.reporting.sweep.records import LOCK, STOP, is_stopped, stop_files, write_job
from workbench.reporting.sweep.schedule import run_sweep
from workbench.reporting.sweep.specification import sweep_of


@pytest.mark.parametrize(
    ("name", "address", "options", "words"),
    [
        ("processes", "tcp://a:1", (), "--address needs --executor dask or ray"),
        ("submitit", "tcp://a:1", (), "--address needs --executor dask or ray"),
        ("dask", None, (), "--executor dask needs --address"),
        ("processes", None, ("timeout_min=5",), "--job-options need --executor submitit or ray"),
        ("submitit", None, ("timeout_min",), "'timeout_min'; it must be KEY=VALUE"),
        ("submitit", None, ("cluster=pbs",), "cluster=pbs is not known; allowed: slurm, local, debug"),
        ("submitit", None, ("timeout_min=5",), "needs Slurm's srun, which is not here"),
    ],
)
def test_wrong_options_are_refused(tmp_path, monkeypatch, name, address, options, words):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))  # refused before it is used
    with pytest.raises(ValueError, match=words), opened(name, tmp_path, address, options):
        pass


@pytest.mark.parametrize(("name", "package"), [("submitit", "submitit"), ("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    address = "tcp://a:1" if name == "dask" else None
    with (
        pytest.raises(ValueError, match=rf"pip install .diffusion-workbench\[{name}\]"),
        opened(name, tmp_path, address),
    ):
        pass


def test_options_that_submitit_does_not_know_are_refused(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    with (
        pytest.raises(ValueError, match="--job-options: .*timeout_minutes"),
        opened("submitit", tmp_path, options=["cluster=local", "timeout_minutes=3"]),
    ):
        pass


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.tracker": "aim"}, "row b: training.tracker aim needs its package"),
        ({"data.name": "image-folder", "data.path": "/not/here"}, "row b: data.path /not/here does not exist"),
    ],
)
def test_every_row_is_checked_before_the_first_is_submitted(tmp_path, overrides, words):
    class Refusing:
        def submit(self, function, order):
            pytest.fail("submitted")

    spec = sweep_of({"rows": ["laptop/sit-nano-2-plain", {"name": "b", "base": "demo/plain", "overrides": overrides}]})
    with pytest.raises(ValueError, match=words):
        list(run_sweep(spec, Refusing(), root=tmp_path))
    assert not list(tmp_path.iterdir())


def order(folder) -> dict:
    return {"folder": str(folder), "stop": str(folder / "sweep-stop"), "identity": {"fingerprint": "f"}}


class SlurmJob:
    """A job as submitit returns it, in a queue that is a dictionary."""

    queue: dict[str, str] = {}

    def __init__(self, folder, job_id):
        self.paths, self.job_id = types.SimpleNamespace(folder=folder), job_id

    def done(self, force_check=False):
        return self.queue[self.job_id] not in ("PENDING", "RUNNING")

    @property
    def state(self):
        return self.queue[self.job_id]


def test_a_slurm_job_is_found_again_as_long_as_slurm_has_it(tmp_path, monkeypatch):
    submitit = types.ModuleType("submitit")
    submitit.SlurmJob = SlurmJob
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    folder = tmp_path / "row-0"

    class Executor:
        def submit(self, function, given):
            SlurmJob.queue["7_1"] = "PENDING"
            return SlurmJob(tmp_path, "7_1")

    submit(Executor(), print, [order(folder)])
    assert json.loads((folder / "submitted.json").read_text())["job"] == "7_1"
    assert found_again(order(folder)).state == "PENDING"
    assert found_again({**order(folder), "identity": {"fingerprint": "other"}}) is None  # of another configuration
    SlurmJob.queue["7_1"] = "NODE_FAIL"
    assert found_again(order(folder)) is None


def test_a_row_that_another_process_executes_is_waited_for(tmp_path):
    folder = tmp_path / "row-0"
    folder.mkdir()
    assert found_again(order(folder)) is None
    with hold_lock(folder / LOCK, 1.0):
        future = found_again(order(folder))
        assert not future.done()
    assert future.done()
    with pytest.raises(ValueError, match="the process that executed the row ended"):
        future.result()
    write_job(folder, "finished")
    assert future.result()["state"] == "finished"
    assert Elsewhere(folder, pid=os.getpid()).done()  # a process, but not one of submitit


def test_a_row_stops_for_the_sweep_or_for_itself(tmp_path, monkeypatch):
    files = stop_files(order(tmp_path))
    monkeypatch.setenv(STOP, os.pathsep.join(files))
    for file in files:
        assert not is_stopped()
        with open(file, "w"):
            assert is_stopped()
        os.unlink(file)
    monkeypatch.delenv(STOP)
    assert not is_stopped()
