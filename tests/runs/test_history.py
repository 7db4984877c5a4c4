"""Options as functions of the step, and the state of a run on another machine."""

import json
import time

import pytest

from workbench.config import load_config
from workbench.runs.history import Change, read_history, record_event, settings_of
from workbench.runs.state import last_log_lines
from workbench.runs.store import prepare_run


@pytest.fixture
def run(tmp_path):
    return prepare_run(load_config("demo/plain"), tmp_path)


def test_options_hold_from_their_step(run):
    record_event(run.folder, 10, "set", option="learning_rate", old=3e-3, new=5e-4)
    record_event(run.folder, 12, "pause")
    record_event(run.folder, 20, "set", option="log_every", old=10, new=1)
    settings = settings_of(run.config, read_history(run.folder))
    rates = [settings.at(step)["learning_rate"] for step in (0, 9, 10, 30)]
    assert rates == [3e-3, 3e-3, 5e-4, 5e-4]
    assert [settings.at(step)["log_every"] for step in (19, 20)] == [10, 1]
    assert "stop_step" not in settings.first  # nothing to stop without alignment


def test_a_change_replaces_those_that_were_to_come():
    settings = settings_of(load_config("demo/plain"))
    for step, value in ((10, 1.0), (20, 2.0), (15, 3.0)):  # the last after a resume from before step 20
        settings = settings.changed(Change(step, "learning_rate", value))
    assert [settings.at(step)["learning_rate"] for step in (9, 12, 15, 20, 99)] == [3e-3, 1.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("learning_rate", float("nan"), "must be a finite number.*; got nan; allowed: above 0"),
        ("learning_rate", "fast", "learning_rate must be float; got 'fast'"),
        ("log_every", 0, "log_every must be at least 1 and at most 1,000,000,000,000; got 0"),
        ("checkpoint_every", 2.5, "checkpoint_every must be int; got 2.5"),
        ("stop_step", -1, "stop_step must be at least 0"),
        ("batch", 3, "'batch' is not known. Allowed: learning_rate, log_every, checkpoint_every, stop_step"),
    ],
)
def test_unsafe_changes_are_refused(option, value, sentence):
    config = load_config("demo/plain", ["objective.name=layersync"])
    with pytest.raises(ValueError, match=sentence):
        settings_of(config).check(option, value)


@pytest.mark.parametrize(
    ("silent", "rate", "state"),
    [(10, 5.0, "running"), (70, 5.0, "lost"), (70, 0.05, "running"), (120, 0.05, "lost"), (-3600, 5.0, "running")],
)
def test_on_another_machine_the_clock_judges(run, silent, rate, state):
    # A minute or five steps, whichever is longer; 1 / 0.05 s is a step of 20 s. A time to come counts as now.
    record = {"state": "running", "step": 3, "host": "elsewhere", "updated": time.time() - silent, "rate": rate}
    (run.folder / "status.json").write_text(json.dumps(record))
    assert run.status["state"] == state
    assert ("no update from elsewhere" in run.status.get("remark", "")) == (state == "lost")


@pytest.mark.parametrize(
    ("state", "seen", "remark"),
    [("starting", "lost", "before training began"), ("paused", "lost", "while paused"), ("queued", "queued", "resume")],
)
def test_states_without_their_process(run, state, seen, remark):
    run.write_status(state, 4)
    assert run.status["state"] == seen and remark in run.status["remark"]


def test_the_end_of_the_log(run):
    assert last_log_lines(run.folder, 3) == []
    (run.folder / "log.txt").write_bytes(b"one\ntwo\xff\n" + b"x" * 100_000 + b"\nlast")
    assert last_log_lines(run.folder, 1) == ["last"] and len(last_log_lines(run.folder, 9)) == 2
