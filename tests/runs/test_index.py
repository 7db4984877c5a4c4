"""The table of runs: the same with its index, without it and after changes behind its back; tags, trash."""

import json
import shutil
import time

import pytest

from workbench.config import load_config
from workbench.runs import index
from workbench.runs.index import runs_table
from workbench.runs.shelf import read_notes, restore, set_notes, trash, trashed
from workbench.runs.store import find_runs, prepare_run


@pytest.fixture
def teacher(tmp_path):
    run = prepare_run(load_config("demo/teacher"), tmp_path)
    run.write_status("finished", 175, steps=175)
    run.append("metrics.jsonl", {"step": 100, "loss": 2.0, "seconds": 60.0})
    run.append("metrics.jsonl", {"step": 175, "loss": 1.0, "seconds": 100.0})
    return run


@pytest.fixture
def student(teacher, tmp_path):
    run = prepare_run(load_config("demo/guided", ["training.seed=3"]), tmp_path)
    run.append("metrics.jsonl", {"step": 10, "loss": 0.5, "seconds": 7.0})
    run.write_status("stopped", 10, steps=420)
    for value in (9.0, 8.0):
        run.append("results.jsonl", {"metric": "fd-clf64", "value": value})
    run.append("results.jsonl", {"metric": "probe", "layer": 6, "value": 0.7})
    return run


def test_a_row_is_what_the_folder_says(teacher, student, tmp_path):
    first, second = runs_table(tmp_path)
    assert (first.name, first.method, first.layers, first.cost) == (teacher.name, "vae_align", (2,), 100.0)
    assert (second.name, second.fingerprint, second.state) == (student.name, student.fingerprint, "stopped")
    assert (second.method, second.backbone, second.guidance_scale) == ("self_transcendence", "sit-nano", 10.0)
    assert (second.layers, second.seed, second.step, second.steps) == ((6, 8), 3, 10, 420)
    assert dict(second.scores) == {"fd-clf64": 8.0, "probe of layer 6": 0.7}  # the newest
    assert (second.teacher, second.loss, second.seconds, second.cost) == (teacher.name, 0.5, 7.0, 107.0)
    assert second.value("fd-clf64") == 8.0 and second.value("seed") == 3 and second.value("kid") is None


def test_a_teacher_costs_up_to_the_step_that_taught(teacher, tmp_path):
    prepare_run(load_config("demo/guided", ["objective.teacher_step=70"]), tmp_path).append(
        "metrics.jsonl", {"step": 1, "loss": 1.0, "seconds": 1.0}
    )
    assert runs_table(tmp_path)[1].cost == pytest.approx(1.0 + 100.0 * 70 / 175)


def test_changes_behind_its_back_are_seen(teacher, student, tmp_path):
    before = runs_table(tmp_path)
    assert runs_table(tmp_path) == before
    (tmp_path / ".index.json").unlink()
    assert runs_table(tmp_path) == before
    student.append("results.jsonl", {"metric": "fd-clf64", "value": 7.0})
    student.append("metrics.jsonl", {"step": 20, "loss": 0.25, "seconds": 9.0})
    student.write_status("running", 20)  # and the process is gone
    set_notes(student, tags=["best", "best"], notes="look at this")
    row = runs_table(tmp_path)[1]
    assert (row.value("fd-clf64"), row.loss, row.cost, row.state) == (7.0, 0.25, 109.0, "lost")
    assert (row.tags, row.notes) == (("best",), "look at this")
    for content in ("", "{", '{"version": 0, "runs": 3}'):
        (tmp_path / ".index.json").write_text(content)
        assert runs_table(tmp_path)[1] == row
    shutil.rmtree(student.folder)
    assert [row.name for row in runs_table(tmp_path)] == [teacher.name]


def test_a_damaged_run_is_a_row_that_says_so(teacher, student, tmp_path):
    (student.folder / "config.yaml").write_text("data: [1")
    row = runs_table(tmp_path)[1]
    assert row.name == student.name and "config.yaml cannot be used" in row.damage
    (student.folder / "provenance.json").write_text("{")
    assert [bool(row.damage) for row in sorted(runs_table(tmp_path), key=lambda row: row.name)].count(True) == 1


def test_two_hundred_runs_within_half_a_second(student, tmp_path):
    record = student.provenance
    for number in range(198):
        folder = shutil.copytree(student.folder, tmp_path / f"run-{number}")
        (folder / "provenance.json").write_text(json.dumps({**record, "fingerprint": f"{number:016d}"}))
    first = runs_table(tmp_path)
    since = time.perf_counter()
    assert runs_table(tmp_path) == first and len(first) == 200
    assert time.perf_counter() - since < 0.5


def test_an_index_that_cannot_be_written_is_done_without(student, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(index, "write_atomically", refuse)
    assert len(runs_table(tmp_path)) == 2 and not (tmp_path / ".index.json").exists()


def test_notes_stay_apart(student):
    assert read_notes(student) == {"tags": [], "notes": ""}
    set_notes(student, tags=["b", "a"])
    set_notes(student, notes="text")
    assert read_notes(student) == {"tags": ["a", "b"], "notes": "text"}


def test_trash_and_back(teacher, student, tmp_path):
    with pytest.raises(ValueError, match=f"{teacher.name} is the teacher of {student.name}"):
        trash(teacher)
    with student.lock(), pytest.raises(ValueError, match="workbench stop"):
        trash(student)
    trash(student)
    assert trashed(tmp_path) == [student.name] and [run.name for run in find_runs(tmp_path)] == [teacher.name]
    trash(teacher)  # nobody is left who needs it
    with pytest.raises(ValueError, match=f"'nothing' is not in the trash; it holds: .*{student.name}"):
        restore("nothing", tmp_path)
    for run in (teacher, student):
        assert restore(run.name, tmp_path).fingerprint == run.fingerprint
    trash(student)
    assert prepare_run(load_config("demo/guided", ["training.seed=3"]), tmp_path).name == student.name
    with pytest.raises(ValueError, match="already exists: a run with that name"):
        restore(student.name, tmp_path)
