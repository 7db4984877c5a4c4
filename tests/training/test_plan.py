"""The plan of a training: what is counted, what is reused, chains of teacher and student, and what is refused."""

import json
import os
import re
import sys
import time
from dataclasses import replace

import pytest

from workbench.__main__ import main
from workbench.config import load_config
from workbench.files import is_locked
from workbench.runs.state import STARTER_LOCK
from workbench.runs.store import find_runs, prepare_run
from workbench.training import pace as paces
from workbench.training.loop import fit
from workbench.training.pace import Pace, known_pace, measure_pace
from workbench.training.plan import duration_text, notes, operations_text, plan, smaller, table
from workbench.training.queue import entries
from workbench.training.sizes import capacity, disk_bytes, encoded, model_size, size_text
from workbench.training.slots import take_slots

TINY = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=16",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "training.batch=4",
    "training.steps=6",
    "training.checkpoint_every=2",
    "training.milestone_every=null",
    # Muon's own products would hide those of the teacher in so small a model.
    "training.optimizer=adamw",
)
HEAD = "objective.head_width=16"


@pytest.fixture(autouse=True)
def own_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def plain(*more: str):
    return load_config("demo/plain", (*TINY, *more))


def chain(*more: str):
    """A student and its teacher."""
    student = load_config("demo/guided", (*TINY, HEAD, "objective.stop_step=2", *more))
    return student, load_config("demo/teacher", (*TINY, HEAD, "training.steps=4", *more))


def make_pace(aligned: float = 3.0, plain: float = 2.0) -> Pace:
    return Pace(aligned, plain, 10**6, 300, 200, 0.1, 5)


def measured(found, *paced: Pace):
    return replace(found, stages=tuple(replace(s, pace=p) for s, p in zip(found.stages, paced, strict=True)))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_and_disk_are_those_of_a_real_run(tmp_path, optimizer):
    config = plain(f"training.optimizer={optimizer}")
    found = plan(config, tmp_path).stages[0]
    assert (found.role, found.state, found.done, found.left, found.run) == ("run", "new", 0, 6, None)
    list(fit(config, tmp_path))
    (run,) = find_runs(tmp_path)
    model = run.checkpoint().load("model")
    assert found.size.backbone == sum(v.numel() for k, v in model.items() if k.startswith("backbone."))
    assert found.size.heads == 0
    # One kept checkpoint of model, average and moments, and one in the making.
    files = sum(f.stat().st_size for f in (run.folder / "checkpoints").rglob("*.safetensors"))
    assert found.disk == pytest.approx(2 * files, rel=0.05)
    again = plan(config, tmp_path)
    assert (again.stages[0].state, again.stages[0].left, again.seconds, again.encode) == ("finished", 0, 0, 0)
    assert again.stages[0].run.folder == run.folder and again.disk == 0 and again.measured


def test_heads_are_counted_and_a_teacher_stands_beside():
    student, teacher = chain()
    latents = encoded(student)
    ours, theirs = model_size(student, latents.shape), model_size(teacher, latents.shape)
    # Weights, gradients and two moments of all that is trained, the average, and for the student its teacher.
    assert theirs.standing == 4 * (4 * (theirs.backbone + theirs.heads) + theirs.backbone)
    assert ours.standing == 4 * (4 * (ours.backbone + ours.heads) + 2 * ours.backbone)
    assert ours.backbone == theirs.backbone and ours.heads > 0
    assert (ours.aligned_steps, theirs.aligned_steps) == (2, 4)
    assert (latents.images, latents.shape.channels, latents.shape.height) == (16, 1, 32)


def test_disk_by_hand():
    size = replace(model_size(plain(), encoded(plain()).shape), backbone=1000, heads=500, moments=3000)
    config = plain("training.steps=100", "training.checkpoint_every=10", "training.keep=2", "training.log_every=50")
    # Three checkpoints (two kept, one in the making) of 6000 model + 4000 average + 12000 moments; two records.
    assert disk_bytes(config, size) == 3 * 22_000 + 2 * 320
    milestones = replace(config, training=replace(config.training, milestone_every=20))
    assert disk_bytes(milestones, size) == 3 * 22_000 + 2 * 320 + (5 - 2) * 10_000


def test_the_time_of_a_chain_by_hand(tmp_path):
    student, teacher = chain()
    found = measured(plan(student, tmp_path, teacher=teacher), make_pace(), make_pace(10.0, 4.0))
    assert [stage.role for stage in found.stages] == ["teacher", "student"]
    assert [stage.seconds() for stage in found.stages] == [4 * 3.0, 2 * 10.0 + 4 * 4.0]
    assert found.seconds == 48 and found.stages[1].seconds(1) == 10 + 16 and found.stages[1].seconds(3) == 3 * 4.0
    assert [stage.operations() for stage in found.stages] == [4 * 300, 2 * 300 + 4 * 200]
    assert found.encode == 16
    rows = {row[0]: row[1:] for row in table(found)}
    assert rows["time"] == ("12 s", "36 s", "48 s") and rows["steps"] == ("4", "6", "10")
    assert rows["a step"] == ("3.00 s", "10.00 s, 4.00 s after stop_step") + ("",)
    assert rows["run"][:2] == ("new", "new")
    assert "16 images are encoded first" in notes(found)[1]
    json.dumps(rows)


def test_memory_is_planned_for_gpus_and_images_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("paper/sit-b-2-256-plain")
    found = plan(config, tmp_path, gpu_gigabytes=80)
    (stage,) = found.stages
    assert stage.activations / 1e9 == pytest.approx(43.1, abs=0.1)  # counted once with fake tensors of another program
    assert stage.memory == stage.size.standing + stage.activations < found.capacity == 80e9
    assert found.warnings == ()
    assert "1,281,167 images of 1,000 classes, latents of 4 x 32 x 32" in " ".join(notes(found))
    assert dict(table(found))["memory"] == size_text(stage.memory)
    (sentence,) = replace(found, capacity=int(40e9)).warnings
    assert re.search(
        r"a step takes 4\d\.?\d* GB or more; .* it fits with training.accumulation=2 \(2\d\.\d GB\)$", sentence
    )


def test_what_does_not_fit_at_all_is_to_be_sharded(tmp_path):
    found = plan(plain(), tmp_path, gpu_gigabytes=1e-5)
    assert "take training.sharding=fsdp" in found.warnings[0]
    sizes = dict(smaller(found.stages[0], 1))
    assert list(sizes) == ["training.accumulation=2", "training.accumulation=4", "backbone.checkpoint_blocks=true"]
    assert sizes["training.accumulation=4"] < sizes["training.accumulation=2"] < found.stages[0].memory


@pytest.mark.slow
def test_presets_of_large_models_fit_eight_gpus_of_80_gigabytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for preset in ("paper/sit-xl-2-512-plain", "paper/lightningdit-xl-1-256-plain"):
        found = plan(load_config(preset), tmp_path, processes=8, gpu_gigabytes=80)
        assert not [text for text in found.warnings if "GB or more" in text], (preset, found.warnings)


def test_before_a_measurement_nothing_is_said_of_time(tmp_path):
    found = plan(plain(), tmp_path)
    assert (found.measured, found.seconds) == (False, None)
    assert dict(table(found))["time"] == "not measured" and "activations" in dict(table(found))["memory"]


def test_what_is_there_is_reused(tmp_path):
    student, teacher = chain()
    for record in fit(teacher, tmp_path):
        if record["step"] == 4:
            break
    list(fit(teacher, tmp_path))
    run = find_runs(tmp_path)[0]
    taught = replace(student, objective=replace(student.objective, options={
        **student.objective.options, "teacher": str(run.folder)}))  # fmt: skip
    for record in fit(replace(taught, training=replace(taught.training, log_every=1)), tmp_path):
        if record["step"] == 3:
            break
    begun = find_runs(tmp_path)[1]
    by_config, by_folder = plan(student, tmp_path, teacher=teacher), plan(taught, tmp_path)
    for found in (by_config, by_folder):
        assert [stage.run.folder for stage in found.stages] == [run.folder, begun.folder]
        assert [(stage.state, stage.done, stage.left) for stage in found.stages] == [
            ("finished", 4, 0),
            ("stopped", 3, 3),
        ]
        reused, goes_on = dict((row[0], row[1:]) for row in table(found))["run"][:2]
        assert reused.endswith("finished, reused") and goes_on.endswith("stopped, resumes at step 3")
    assert by_config.root == tmp_path.resolve()
    # Other options of logging are the same run; another seed is another, which the teacher still teaches.
    other = plan(replace(student, training=replace(student.training, seed=7)), tmp_path, teacher=teacher)
    assert [stage.state for stage in other.stages] == ["finished", "new"]


def test_a_preset_names_its_teacher(tmp_path):
    found = plan(load_config("demo/guided", (HEAD,)), tmp_path)
    assert [stage.config.name for stage in found.stages] == ["demo-teacher", "demo-guided"]
    assert [stage.steps for stage in found.stages] == [100, 240]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("objective.layer=13",), "objective.layer 13 is outside 1..12"),
        (("backbone.patch=5",), "patch 5 does not divide the latent height 32"),
        (("objective.teacher_layer=13",), "objective.teacher_layer 13 is outside 1..12"),
        (("objective.teacher=nobody",), "'nobody' is not a run folder or the name of a run"),
        (("data.name=image-folder", "data.path=nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(load_config("demo/guided", (*TINY, HEAD, *more)), tmp_path)


def test_a_teacher_of_another_kind_is_refused(tmp_path):
    student, teacher = chain()
    deeper = replace(teacher, backbone=replace(teacher.backbone, options={**teacher.backbone.options, "size": "nano"}))
    with pytest.raises(ValueError, match="the teacher has backbone .*nano.*, the student .*pico.*must be the same"):
        plan(student, tmp_path, teacher=deeper)
    blind = replace(teacher, diffusion=replace(teacher.diffusion, label_dropout=0.0))
    with pytest.raises(ValueError, match="its null class is untrained"):
        plan(student, tmp_path, teacher=blind)
    with pytest.raises(ValueError, match="batch 4 cannot be divided among 3 processes"):
        plan(student, tmp_path, teacher=teacher, processes=3)


def test_too_little_room_is_said(tmp_path):
    found = replace(plan(plain(), tmp_path), free=10, capacity=10, beside=("somebody",))
    disk, memory, beside = found.warnings
    assert "will be written" in disk and "a step takes" in memory and beside.startswith("somebody trains")
    with pytest.raises(ValueError, match="a step takes .* or more; .* has 0 kB"):
        found.measure()
    assert capacity() > 10**8


def test_who_trains_there_is_named(tmp_path):
    held = take_slots(("cpu",), 1, tmp_path / "somebody")
    assert (plan(plain(), tmp_path).devices, plan(plain(), tmp_path).beside) == (("cpu",), ("somebody",))
    os.close(held.handles[0])
    assert plan(plain(), tmp_path).beside == ()


@pytest.mark.slow
def test_a_pace_is_measured_once_in_another_process(tmp_path, monkeypatch):
    student, teacher = chain()
    shape = encoded(student).shape
    assert known_pace(student, shape) is None
    found = plan(student, tmp_path, teacher=teacher).measure()
    assert "torch" in sys.modules and found.measured
    ours = found.stages[1]
    assert ours.pace.memory > ours.size.standing and ours.pace.plain > 0 and 0 < ours.pace.aligned < 60
    # The guided step runs the teacher twice up to its layer, and the head.
    assert ours.pace.aligned_operations > 1.2 * ours.pace.plain_operations > 0
    monkeypatch.setattr(paces.subprocess, "run", lambda *a, **k: pytest.fail("measured twice"))
    assert plan(student, tmp_path, teacher=teacher).seconds == found.seconds
    # What costs nothing is not measured anew; what costs is.
    same = chain("objective.weight=0.1", "objective.stop_step=3", "training.learning_rate=1e-5")[1]
    assert known_pace(same, shape) == found.stages[0].pace
    assert known_pace(load_config("demo/guided", (*TINY, HEAD, "training.batch=2")), shape) is None


@pytest.mark.slow
def test_why_it_cannot_be_measured(tmp_path):
    config = plain("training.precision=fp16")
    with pytest.raises(ValueError, match="could not be measured: training.precision fp16 needs a GPU"):
        measure_pace(config, encoded(config).shape)


@pytest.mark.slow
def test_a_chain_is_launched_and_finishes(tmp_path):
    student, teacher = chain()
    found = plan(student, tmp_path / "runs", teacher=teacher)
    sent = found.launch()
    assert [launched.run.fingerprint for launched in sent] == [run.fingerprint for run in find_runs(found.root)]
    assert [entry.job.after for entry in entries()] == [None, str(sent[0].run.folder)]
    again = plan(student, tmp_path / "runs", teacher=teacher)
    assert [stage.run.name for stage in again.stages] == [launched.run.name for launched in sent]
    assert again.beside == ()  # its own teacher is nobody else
    assert all(launched.attached for launched in again.launch())
    deadline = time.monotonic() + 90
    while any(one.run.status["state"] != "finished" or is_locked(one.run.folder / STARTER_LOCK) for one in sent):
        assert time.monotonic() < deadline, [one.run.status for one in sent]
        time.sleep(0.1)
    done = plan(student, tmp_path / "runs", teacher=teacher)
    assert [stage.state for stage in done.stages] == ["finished", "finished"]
    assert [launched.state for launched in done.launch()] == ["finished", "finished"]


def test_without_the_queue_a_chain_cannot_start(tmp_path):
    student, teacher = chain()
    prepare_run(teacher, tmp_path)
    with pytest.raises(ValueError, match="has to wait in the queue"):
        plan(student, tmp_path, teacher=teacher).launch(queue=False)


@pytest.mark.slow
def test_the_command_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    main(["train", "demo/plain", *TINY, "--dry-run"])
    said = capsys.readouterr().out
    for words in ("run (denoise)", "(measured)", "device: cpu", "16 images are encoded first", "FLOP"):
        assert words in said
    assert find_runs(tmp_path / "runs") == []


def test_numbers_are_readable():
    assert [size_text(size) for size in (5e2, 2.5e6, 3.21e9, 4e12)] == ["0 kB", "2.5 MB", "3.21 GB", "4 TB"]
    assert [duration_text(s) for s in (None, 9.4, 119, 600, 7200, 259200)] == [
        "not measured", "9 s", "2.0 min", "10 min", "2 h", "3 days",
    ]  # fmt: skip
    assert [operations_text(x) for x in (None, 2e9, 3e12, 4.5e15)] == [
        "not measured", "2 GFLOP", "3 TFLOP", "4.5 PFLOP",
    ]  # fmt: skip
