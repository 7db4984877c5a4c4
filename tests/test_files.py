"""What several processes share: JSON that any reader can read, and homes that are not there."""

import errno
import fcntl
import math
import os

import pytest

from workbench.files import append_jsonl, hold_lock, home_path, is_locked, read_json, read_jsonl, write_json
from workbench.training.slots import queue_folder, take


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_refused_by_place(tmp_path, number):
    for write, file in ((write_json, tmp_path / "a.json"), (append_jsonl, tmp_path / "a.jsonl")):
        write(file, {"a": 1.5})
        before = file.read_bytes()
        with pytest.raises(
            ValueError, match=rf"^{file} cannot hold scores.1.low = {number}: JSON only has finite numbers"
        ):
            write(file, {"scores": [{"low": 0.0}, {"low": number}]})
        assert file.read_bytes() == before
    assert read_json(tmp_path / "a.json") == {"a": 1.5} == read_jsonl(tmp_path / "a.jsonl")[0]


def test_a_home_that_is_not_known_is_said(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(home_path("~/x")) == "/somewhere/x" and str(home_path("x/~")) == "x/~"
    with pytest.raises(ValueError, match="^~no-such-user/x begins with an unknown home folder; set HOME, or give"):
        home_path("~no-such-user/x")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_but_can_be_read(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = tmp_path / ".lock"
    with pytest.raises(ValueError, match=rf"file system of {file} has no file locks .*mount it with them"):
        hold_lock(file, 0.0).__enter__()
    with pytest.raises(ValueError, match="set WORKBENCH_RUNS and WORKBENCH_QUEUE"):
        take(file)
    assert not is_locked(file)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_machines_and_jobs_that_share_a_home_have_queues_of_their_own(tmp_path, monkeypatch):
    for name in ("WORKBENCH_QUEUE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "node7/a")
    assert queue_folder() == tmp_path / ".cache/workbench/queue/node7-a"
    monkeypatch.setenv("SLURM_JOB_ID", "40123")
    assert queue_folder().name == "node7-a-job-40123"
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "mine"))
    assert queue_folder() == tmp_path / "mine"
