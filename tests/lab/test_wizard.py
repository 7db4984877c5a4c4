"""The wizard: fields read from the package, what they come to, the plan they show, measuring and launching."""

import json
import time

import pytest

from workbench.config import load_config, presets
from workbench.files import is_locked
from workbench.lab.watching import form, live
from workbench.lab.watching.live import LivePanel
from workbench.lab.watching.wizard import Wizard, wizard
from workbench.runs.state import STARTER_LOCK
from workbench.runs.store import find_runs, prepare_run

TINY = {
    "data.name": "digits",
    "data.limit": "16",
    "vae.name": "identity",
    "backbone.size": "pico",
    "backbone.patch": "16",
    "objective.head_width": "16",
    "training.batch": "4",
    "training.steps": "4",
    "teacher.steps": "2",
}


@pytest.fixture(autouse=True)
def own_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(live, "_open", {})


@pytest.fixture
def made(tmp_path):
    """made(**changes) -> the wizard, what it says in `sent`."""

    def opened(preset: str = "demo/guided", changes: dict[str, str] = TINY) -> Wizard:
        one = wizard(preset, tmp_path / "runs")
        one.sent = []
        one.send = lambda message, buffers=None: one.sent.append(message)
        for key, text in changes.items():
            one.change(key, text)
        assert one.problem == ""
        return one

    return opened


def texts(found: list[dict]) -> dict[str, str]:
    return {field["key"]: field["text"] for field in found}


def test_the_fields_are_those_of_the_package(tmp_path):
    found = {field["key"]: field for field in form.fields("demo/guided", {}, tmp_path)}
    json.dumps(found)
    assert found["preset"]["values"] == presets()
    assert (
        found["backbone.size"]["texts"][found["backbone.size"]["values"].index("nano")] == "nano (depth 12, width 128)"
    )
    assert found["objective.name"]["values"] == [
        "denoise", "dispersive", "layersync", "repa", "self_transcendence", "sra", "vae_align",
    ]  # fmt: skip
    assert (
        found["objective.teacher"]["values"] == ["demo/teacher"] and found["objective.guidance_scale"]["text"] == "10.0"
    )
    assert found["objective.window"]["values"] == ["none", "select", "scale"]
    assert (found["objective.normalize"]["text"], found["objective.normalize"]["values"]) == ("true", ["true", "false"])
    assert (found["training.steps"]["text"], found["teacher.steps"]["text"]) == ("240", "100")
    assert texts(form.fields("demo/plain", {}, tmp_path)).keys().isdisjoint({"teacher.steps", "objective.layer"})
    # Every option of every method has a field, and what stands there is what it is.
    for preset in ("demo/teacher", "laptop/sit-nano-2-layersync", "laptop/sit-nano-2-repa", "laptop/sit-nano-2"):
        config = load_config(preset)
        shown = texts(form.fields(preset, {}, tmp_path))
        again = load_config(preset, [f"{k}={v}" for k, v in shown.items() if k not in ("preset", "teacher.steps")])
        assert again == config


def test_a_change_is_one_of_teacher_and_student(tmp_path):
    student, teacher = form.configs("demo/guided", TINY | {"objective.guidance_scale": "3"}, tmp_path)
    assert student.objective.options["guidance_scale"] == 3.0 and student.training.steps == 4
    assert (teacher.objective.name, teacher.training.steps) == ("vae_align", 2)
    for one in (student, teacher):
        assert (one.data.name, one.backbone.options["size"], one.training.batch) == ("digits", "pico", 4)
    # The head is the method's own: the student's is not its teacher's.
    assert (student.objective.options["head_width"], teacher.objective.options["head_width"]) == (16, 256)


def test_another_method_starts_afresh_and_finds_a_teacher(tmp_path):
    changes = {"objective.layer": "4", "objective.weight": "9", "training.steps": "5", "teacher.steps": "3"}
    preset, changes = form.changed("demo/guided", changes, "objective.name", "repa", tmp_path)
    assert (preset, changes) == ("demo/guided", {"training.steps": "5", "objective.name": "repa"})
    _, changes = form.changed("demo/plain", {}, "objective.name", "self_transcendence", tmp_path)
    assert changes == {"objective.name": "self_transcendence", "objective.teacher": "demo/teacher"}
    assert form.configs("demo/plain", changes, tmp_path)[1].name == "demo-teacher"
    assert form.changed("demo/plain", changes, "preset", "demo/teacher", tmp_path) == ("demo/teacher", {})


def test_a_finished_run_can_be_the_teacher(tmp_path):
    run = prepare_run(load_config("demo/teacher"), tmp_path)
    assert run.name not in form._teachers("demo/guided", tmp_path)
    run.write_status("finished", 175)
    field = {f["key"]: f for f in form.fields("demo/guided", {}, tmp_path)}["objective.teacher"]
    assert field["values"] == ["demo/teacher", run.name]
    assert form.configs("demo/guided", {"objective.teacher": str(run.folder)}, tmp_path)[1] is None


def test_the_code_does_the_same(tmp_path):
    text = form.code("demo/guided", TINY, tmp_path)
    given = {}
    exec(text.replace(".launch()", "").replace("wb.watch(*launched)", ""), given)
    assert [stage.config for stage in given["launched"].stages] == list(
        reversed(form.configs("demo/guided", TINY, tmp_path))
    )
    assert "'" not in text and "teacher=" not in form.code("demo/plain", {}, tmp_path)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("objective.layer", "99", "objective.layer 99 is outside 1..12"),
        ("backbone.patch", "5", "patch 5 does not divide"),
        ("training.steps", "many", "training.steps must be int; got 'many'"),
        ("training.batch", "0", "training.batch must be at least 1"),
        ("objective.teacher", "", "objective.teacher"),
        ("data.name", "image-folder", "needs data.path"),
        ("training.seed", "[", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_and_can_be_mended(made, key, text, said):
    one = made()
    before = texts(one.fields)[key]
    one.change(key, text)
    assert said in one.problem and (one.plan, one.code) == ({}, "")
    assert key in texts(one.fields)  # the field is there
    one.change(key, before)
    assert one.problem == "" and one.plan["left"] == 6
    one.change(key, text)
    one._on_message(one, {"type": "launch"}, [])
    deadline = time.monotonic() + 5
    while not one.sent:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert one.sent[-1]["wrong"] and "nothing to launch" in one.sent[-1]["text"] and find_runs(one.root) == []


def test_nothing_that_makes_no_sense_is_done(made):
    one = made()
    for content in ({"type": "change"}, {"type": "dance"}, "x", {}):
        one._on_message(one, content, [])
    assert [said["wrong"] for said in one.sent] == [True] and one.problem == ""
    with pytest.raises(ValueError, match="preset 'demo/gided' is not known; did you mean 'demo/guided'"):
        wizard("demo/gided")


def test_measured_then_launched_then_watched(made):
    one = made()
    assert not one.plan["measured"] and one.plan["total"] == "not measured"
    one._on_message(one, {"type": "measure"}, [])
    assert one.busy.startswith("measuring")
    one._on_message(one, {"type": "launch"}, [])  # one thing at a time
    assert one.sent == [{"type": "status", "text": "still measuring a few steps …", "wrong": True}]
    deadline = time.monotonic() + 120
    while one.busy:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert one.plan["measured"] and [bar["role"] for bar in one.plan["bars"]] == ["teacher", "student"]
    assert all(bar["whole"] == bar["left"] > 0 for bar in one.plan["bars"])
    one.launch()
    panel = one._below.children[1]
    assert isinstance(panel, LivePanel) and [run.folder for run in panel.runs] == [
        sent.run.folder for sent in one.launched
    ]
    assert not one.sent[-1]["wrong"] and all(sent.run.name in one.sent[-1]["text"] for sent in one.launched)
    while any(s.run.status["state"] != "finished" or is_locked(s.run.folder / STARTER_LOCK) for s in one.launched):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    one._on_message(one, {"type": "refresh"}, [])
    assert one.plan["left"] == 0 and [bar["left"] for bar in one.plan["bars"]] == [0.0, 0.0]
    panel.close()


def test_it_is_shown_with_what_opens_below(made):
    one = made()
    data = one._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == one._below.model_id
