"""Live panels: what is read of a run folder, what is sent when it changes, commands, and the drawing in a browser."""

import base64
import io
import json
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from workbench.files import hold_lock
from workbench.lab.watching import live, state
from workbench.lab.watching.live import LivePanel, RunUpdates, watch
from workbench.lab.watching.log import drawn
from workbench.lab.watching.state import commands, panel_state
from workbench.lab.watching.thumbnails import first_rows, newest_samples
from workbench.runs.history import record_event
from workbench.runs.state import STATES, TRAINER_LOCK
from workbench.runs.store import Run
from workbench.training.launch import Launched
from workbench.training.mailbox import Mailbox

SCORE = {"metric": "fd-clf64", "n_generated": 300, "sampler_steps": 16, "floor": 0.8}


@pytest.fixture
def run(make_run):
    return make_run("demo/plain", 10, 20, 30)


@pytest.fixture
def running(run):
    """The run while a process holds it."""
    with hold_lock(run.folder / TRAINER_LOCK, 1.0):
        run.write_status("running", 30, steps=430, rate=2.0, seconds=15.0)
        yield run


@pytest.fixture
def panels(monkeypatch):
    """Panels without a thread of their own; what they send is in `sent`."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(live, "_open", {})

    def made(*runs: Run) -> LivePanel:
        panel = watch(*runs)
        panel.sent = []
        panel.send = lambda message, buffers=None: panel.sent.append(message)
        return panel

    return made


def test_a_state_is_what_the_folder_says(running):
    found = panel_state(running)
    assert found["curves"]["loss"] == [[10, 20, 30], [10.0, 5.0, 3.33333]]
    assert set(found["curves"]) == {"loss", "denoise", "gradient_norm", "images_per_second"}  # alignment: None
    assert (found["last"], found["complete"], found["error"]) == (30, True, "")
    status = found["status"]
    assert (status["state"], status["step"], status["steps"], status["left"]) == ("running", 30, 430, 200.0)
    assert status["images_per_second"] == 2 * running.config.training.batch and status["seconds_a_step"] == 0.5
    assert found["settings"]["learning_rate"] == running.config.training.learning_rate
    assert (found["scores"], found["samples"], found["log"]) == (None, None, [])
    json.dumps(found, allow_nan=False)


def test_only_new_points_since_a_step_and_no_line_that_is_not_whole(run, log):
    log(run, 40, 50)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 1')
    assert panel_state(run, since=30)["curves"]["loss"] == [[40, 50], [2.5, 2.0]]
    assert panel_state(run, since=50)["curves"] == {} and panel_state(run, since=50)["last"] == 50
    assert panel_state(run)["curves"]["loss"][0] == [10, 20, 30, 40, 50]


def test_a_lost_run_says_so_with_the_end_of_its_log(run):
    run.write_status("running", 30)  # and nobody holds it
    (run.folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(40)) + "Killed\n")
    found = panel_state(run)
    assert found["status"]["state"] == "lost" and "died unexpectedly" in found["status"]["remark"]
    assert found["log"][-2:] == ["line 39", "Killed"] and len(found["log"]) == 12
    assert found["status"]["can"] == {"pause": False, "resume": True, "checkpoint": False, "stop": False, "set": True}


def test_a_bar_in_the_log_is_what_it_came_to(run):
    # As rich draws two bars over each other: up a line for each, erase, write.
    bars = "".join(f"\r\x1b[2K\x1b[1A\x1b[2Kencode \x1b[90m━━\x1b[0m 9/9\ntrain {step}/9" for step in range(1, 9))
    ends = f"stopped at \x1b[1;36m8\x1b[0m\n{'x' * 9999}\n"
    (run.folder / "log.txt").write_text(f"begun\n\x1b[?25lencode\ntrain 0/9{bars}\n\x1b[?25h{ends}")
    assert panel_state(run)["log"] == ["begun", "encode ━━ 9/9", "train 8/9", "stopped at 8", "x" * 400]


def test_a_terminal():
    assert drawn("ab\rc\nd\x1b[2Ke\x1b[Kf") == ["cb", "ef"]
    assert drawn("one\ntwo\x1b[1A\x1b[2Knew\x1b[5Atop") == ["newtop", "two"]
    assert drawn("") == [""] and drawn("a\x1b[31mb\x1b") == ["ab"]


def test_commands_make_sense():
    allowed = {state: {what for what, can in commands(state).items() if can} for state in STATES}
    assert allowed["running"] == {"pause", "checkpoint", "stop", "set"}
    assert allowed["paused"] == {"resume", "checkpoint", "stop", "set"}
    assert allowed["queued"] == allowed["starting"] == {"stop", "set"}
    assert allowed["lost"] == allowed["failed"] == allowed["stopped"] == {"resume", "set"}
    assert allowed["finished"] == set()


def test_numbers_that_are_none_are_not_drawn(run, log):
    # As runs of before have them, whose writer did not refuse them.
    record = {**run.metrics[-1], "step": 40, "loss": float("nan"), "gradient_norm": float("inf")}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    found = panel_state(run)
    assert found["curves"]["loss"][0] == [10, 20, 30] == found["curves"]["gradient_norm"][0]
    assert found["last"] == 40


def test_scores_of_one_way_of_measuring_make_a_curve(run):
    for step, value in ((140, 30.0), (280, 20.0), (280, 19.0)):
        run.append("results.jsonl", {**SCORE, "step": step, "value": value, "low": value - 1, "high": value + 1})
    run.append("results.jsonl", {**SCORE, "n_generated": 50, "step": 420, "value": 99.0})
    run.append("results.jsonl", {"metric": "probe", "layer": 2, "step": 420, "value": 0.5})
    scores = panel_state(run)["scores"]
    assert scores["points"] == [[140, 30.0, 29.0, 31.0], [280, 19.0, 18.0, 20.0]]
    assert (scores["metric"], scores["how"], scores["floor"], scores["left_out"]) == ("fd-clf64", "300 images", 0.8, 1)


def test_damage_is_said_and_the_rest_is_shown(run):
    (run.folder / "status.json").write_text("{")
    found = panel_state(run)
    assert "status.json is damaged" in found["error"] and found["curves"]["loss"][0] == [10, 20, 30]
    (run.folder / "metrics.jsonl").write_text("no\n{}\n")
    assert "metrics.jsonl is damaged" in panel_state(run)["error"]


def test_a_change_of_the_learning_rate_is_known_at_once(run):
    record_event(run.folder, 400, "set", option="learning_rate", old=1e-3, new=5e-4)
    assert panel_state(run)["settings"]["learning_rate"] == 5e-4


def test_thumbnails_are_the_first_images_of_the_newest_step(run):
    folder = run.folder / "samples"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 1), np.uint8)
    np.savez_compressed(folder / "step-00000140-a.npz", arr_0=255 - images, labels=np.arange(30) % 10)
    np.savez_compressed(folder / "step-00000280-b.npz", arr_0=images, labels=np.arange(30) % 10)
    found = newest_samples(run)
    strip = np.array(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
    assert (found["step"], found["count"], strip.shape) == (280, 10, (8, 80))
    assert np.array_equal(strip[:, 24:32], images[3, ..., 0])
    assert found["names"] == [str(number) for number in range(10)]  # a run that never trained knows no classes
    large = np.zeros((2, 256, 128, 3), np.uint8)
    np.savez(folder / "step-00000420-c.npz", arr_0=large, labels=np.arange(2))
    assert Image.open(io.BytesIO(base64.b64decode(newest_samples(run)["png"]))).size == (2 * 32, 64)
    (folder / "step-00000430-d.npz").write_bytes(b"PK")
    assert "step-00000430-d.npz cannot be read" in panel_state(run)["error"]


def test_of_a_large_file_only_the_first_rows_are_unpacked(tmp_path, monkeypatch):
    file, asked = tmp_path / "step-00000001-a.npz", []
    np.savez_compressed(file, arr_0=np.zeros((20_000, 32, 32, 3), np.uint8))
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n))
    assert first_rows(file, "arr_0", 10).shape == (10, 32, 32, 3)
    assert min(asked) >= 0 and sum(asked) < 2 * 10 * 32 * 32 * 3


def test_news_are_only_what_changed(running, log):
    updates = RunUpdates(running)
    assert updates.full()["curves"]["loss"][0] == [10, 20, 30]
    assert updates.changes() == {}
    log(running, 40)
    assert updates.changes() == {"curves": {
        "loss": [[40], [2.5]], "denoise": [[40], [1.25]], "gradient_norm": [[40], [1.0]],
        "images_per_second": [[40], [80.0]],
    }}  # fmt: skip
    (running.folder / "log.txt").write_text("hello\n")
    assert updates.changes() == {"log": ["hello"]}
    with (running.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert updates.changes() == {}
    with (running.folder / "metrics.jsonl").open("a") as file:
        file.write('ss": 1.0}\n')
    assert updates.changes() == {"curves": {"loss": [[50], [1.0]]}}


def test_news_of_a_run_that_went_back_are_everything(running, log):
    updates = RunUpdates(running)
    updates.full()
    running.rewind(10)
    log(running, 15)
    news = updates.changes()
    assert news["whole"] and news["curves"]["loss"][0] == [10, 15]
    assert updates.changes() == {}


def test_a_folder_that_goes_and_comes_back(running):
    updates, aside = RunUpdates(running), running.folder.with_name("aside")
    updates.full()
    running.folder.rename(aside)
    assert "status.json does not exist" in updates.changes()["error"]
    assert updates.changes() == {}
    aside.rename(running.folder)
    news = [updates.changes(), updates.changes()]
    assert any(one.get("error") == "" for one in news)


def test_a_process_that_dies_is_news(run):
    with hold_lock(run.folder / TRAINER_LOCK, 1.0):
        run.write_status("running", 30)
        updates = RunUpdates(run)
        updates.full()
    news = updates.changes()
    assert news["status"]["state"] == "lost" and "curves" not in news


def test_no_curve_has_more_points_than_it_may(run, monkeypatch, log):
    monkeypatch.setattr(state, "OPENED", 50)
    log(run, *range(31, 400))
    steps, values = panel_state(run)["curves"]["loss"]
    assert len(steps) <= 50 and max(values) == 10.0 and steps == sorted(steps)


def test_a_stretch_has_its_own_points(run, panels, monkeypatch, log):
    monkeypatch.setattr(state, "OPENED", 50)
    monkeypatch.setattr(state, "POINTS", 100)
    log(run, *range(31, 5000))
    coarse = [step for step in panel_state(run)["curves"]["loss"][0] if 1000 <= step <= 1060]
    found = state.finer_curves(run, 1000.5, 1060.5)["loss"]
    assert len(coarse) < 5 and found[0] == list(range(1000, 1062)) and found[1][0] == 0.1
    assert "seconds" not in state.finer_curves(run, 0, 10)
    wide = state.finer_curves(run, 100, 4000)["loss"][0]
    assert len(wide) <= 100 and wide[0] < 200 and wide[-1] > 3900
    assert state.finer_curves(run, 6000, 7000)["loss"][0] == [4999]  # the line comes from there
    panel = panels(run)
    panel._on_message(panel, {"type": "range", "range": [1000.5, 1003.5]}, [])
    assert panel.sent[-1]["range"] == [1000.5, 1003.5]
    assert panel.sent[-1]["runs"][0]["denoise"][0] == [1000, 1001, 1002, 1003, 1004]
    panel._on_message(panel, {"type": "range", "range": ["a", None]}, [])
    assert panel.sent[-1]["wrong"]


def test_two_runs_in_one_panel(run, tmp_path, panels, log, make_run):
    other = make_run("demo/teacher", 5)
    panel = panels(run, other, run)
    assert [one.name for one in panel.runs] == [run.name, other.name]
    assert [one["curves"]["loss"][0] for one in panel.opening] == [[10, 20, 30], [5]]
    log(other, 6)
    assert panel.look() and not panel.look()
    assert [list(message["runs"]) for message in panel.sent] == [[1]]
    panel._on_message(panel, {"type": "ready"}, [])
    assert [one["curves"]["loss"][0] for one in panel.sent[-1]["runs"].values()] == [[10, 20, 30], [5, 6]]


def test_what_no_page_shows_is_looked_at_less_often_until_it_is_seen(run, monkeypatch, log):
    for name, seconds in {"_QUICK": 0.05, "_SLOW": 0.05, "_UNSEEN": 60.0}.items():
        monkeypatch.setattr(live, name, seconds)
    looks = threading.Semaphore(0)
    monkeypatch.setattr(LivePanel, "look", lambda self: looks.release() or True)
    panel = LivePanel([run])

    def looked(seconds: float) -> bool:
        return looks.acquire(timeout=seconds)

    def seen(view: str, value: bool) -> None:
        panel._on_message(panel, {"type": "visible", "view": view, "value": value}, [])

    try:
        assert looked(10)  # no page has said anything yet
        seen("a", True)
        seen("b", False)
        assert looked(10) and looked(10)
        seen("a", False)
        while looked(1.0):
            pass
        seen("b", True)
        assert looked(10) and looked(10)
    finally:
        panel.close()


def test_the_same_runs_have_one_panel_until_it_is_closed(run, panels):
    panel = panels(run)
    assert watch(run.folder) is panel
    panel.close()
    assert watch(run) is not panel


def test_nothing_to_watch_lists_what_there_is(run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(run.folder.parent))
    with pytest.raises(ValueError, match=f"name a run to watch; .* holds: {run.name}"):
        watch()


def test_the_code_of_a_panel_opens_it_again(run, panels, monkeypatch):
    assert panels(run).code == f'import workbench as wb\n\nwb.watch("{run.folder}")\n'
    monkeypatch.setenv("WORKBENCH_RUNS", str(run.folder.parent))
    live._open.clear()
    assert panels(run).code == f'import workbench as wb\n\nwb.watch("{run.name}")\n'


def test_buttons_reach_the_trainer_without_waiting(running, panels):
    panel, mailbox = panels(running), Mailbox(running.folder, 0)
    panel.command({"run": 0, "what": "pause"})  # nobody answers: with patience this would never be done
    panel.command({"run": 0, "what": "set", "value": 5e-4})
    heard = mailbox.new()
    assert [(one.what, dict(one.options)) for one in heard] == [
        ("pause", {}),
        ("set", {"option": "learning_rate", "value": 5e-4}),
    ]
    assert all("sent, not answered yet" in said["text"] and not said["wrong"] for said in panel.sent)
    running.write_status("running", 40, answer={"number": 1, "what": "pause", "result": "done", "step": 40})
    panel.look()
    assert panel.sent[-1]["runs"][0]["status"]["answer"]["result"] == "done"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"run": 0, "what": "pause"}, "no process trains it"),
        ({"run": 0, "what": "set", "value": -1}, "learning_rate must be above 0; got -1"),
        ({"run": 0, "what": "delete"}, "there is no command 'delete'"),
        ({"run": 7, "what": "pause"}, "IndexError"),
    ],
)
def test_refusals_are_said(run, panels, content, said):
    panel = panels(run)
    panel.command(content)
    assert panel.sent[-1]["wrong"] and said in panel.sent[-1]["text"]


def test_what_a_resume_came_to_is_said(run, panels, monkeypatch):
    states = [Launched(run, 8, "running")]
    monkeypatch.setattr(live.Control, "resume", lambda self: states.pop(0))
    panel = panels(run)
    panel.command({"run": 0, "what": "resume"})
    assert states == [] and panel.sent == [
        {"type": "status", "text": f"{run.name}: running, process 8", "wrong": False}
    ]


def test_a_line_is_sent_soon_and_the_thread_ends_with_the_panel(running, monkeypatch, log):
    monkeypatch.setattr(live, "_open", {})
    panel, came = watch(running), threading.Event()
    panel.send = lambda message, buffers=None: came.set()
    (thread,) = [one for one in threading.enumerate() if one.name == f"watch {running.name}"]
    for step in range(40, 47):
        came.clear()
        time.sleep(0.03 * (step - 40))
        log(running, step)
        assert came.wait(2.0)
    panel.close()
    thread.join(2.0)
    assert not thread.is_alive()
