"""Sweeps before anything starts: what a YAML file means, what it resolves to, and what a dry run tells."""

import json
import re

import pytest

from workbench.config import load_config
from workbench.reporting.sweep.progress import finished, row_states
from workbench.reporting.sweep.records import read_job, sweep_folder, write_job
from workbench.reporting.sweep.specification import RowSpec, load_sweep, plan, resolve, sweep_of
from workbench.runs.store import prepare_run, run_fingerprint

STUDENT, TEACHER = "laptop/sit-nano-2", "laptop/sit-nano-2-teacher"


def test_a_file_says_rows_seeds_and_how_to_score(tmp_path):
    file = tmp_path / "ablation.yaml"
    file.write_text(
        "overrides: {training.steps: 20}\n"
        "rows:\n- laptop/sit-nano-2-vae\n- {name: plain, base: demo/plain, overrides: [training.batch=8]}\n"
        "seeds: [0, 2]\nevaluate: {count: 50, detector: clf64}\n"
    )
    spec = load_sweep(file)
    assert spec.name == "ablation" and spec.seeds == (0, 2)
    assert spec.rows == (
        RowSpec("laptop-sit-nano-2-vae", "laptop/sit-nano-2-vae"),
        RowSpec("plain", "demo/plain", ("training.batch=8",)),
    )
    assert spec.overrides == ("training.steps=20",)
    assert spec.evaluate.overrides == ("sampling.count=50",)


def test_a_grid_is_crossed_and_its_values_arrive(tmp_path):
    grid = {"objective.guidance_scale": [1, 5.0], "objective.teacher": [TEACHER, "laptop/sit-nano-2-plain"]}
    spec = sweep_of({"base": STUDENT, "grid": grid})
    assert [row.name for row in spec.rows] == [
        "laptop-sit-nano-2,guidance_scale=1,teacher=laptop-sit-nano-2-teacher",
        "laptop-sit-nano-2,guidance_scale=1,teacher=laptop-sit-nano-2-plain",
        "laptop-sit-nano-2,guidance_scale=5.0,teacher=laptop-sit-nano-2-teacher",
        "laptop-sit-nano-2,guidance_scale=5.0,teacher=laptop-sit-nano-2-plain",
    ]
    options = [job.training.config.objective.options for job in plan(spec, tmp_path) if job.names]
    students = [(each["guidance_scale"], each["teacher"]) for each in options if "guidance_scale" in each]
    assert students == [(w, t) for w in (1.0, 5.0) for t in grid["objective.teacher"]]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"base": "demo/plain", "sedes": [0]}, "'sedes' is not known; did you mean 'seeds'"),
        ({"rows": [{"base": "demo/plain", "override": {}}]}, "did you mean 'overrides'"),
        ({"base": "demo/plain", "evaluate": {"cuont": 5}}, "did you mean 'count'"),
        ({"base": "demo/plain", "evaluate": {"count": "many"}}, "evaluate.count must be int; got 'many'"),
        ({"base": "demo/plain", "evaluate": {"detector": "clf46"}}, "did you mean 'clf64'"),
        ({"rows": []}, "needs rows"),
        ({"base": "demo/plain", "seeds": []}, "at least one row and one seed"),
        ({"base": "demo/plain", "seeds": [0, 1, 0]}, "has seed 0 twice"),
        ({"base": "demo/plain", "seeds": 3}, "seeds must be a list; got 3"),
        ({"rows": ["demo/plain", "demo/plain"]}, "has row demo-plain twice"),
        ({"rows": [{"name": "../up", "base": "demo/plain"}]}, "cannot be a name"),
        ({"base": "demo/plain", "grid": {"training.seed": [1]}}, "training.seed is set by seeds"),
        ({"base": "demo/plain", "grid": {"training.batch": 8}}, "grid training.batch must be a list"),
    ],
)
def test_what_cannot_be_meant_is_refused(tree, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        sweep_of(tree)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"base": "demo/plan"}, "row b: preset 'demo/plan' is not known; did you mean 'demo/plain'"),
        ({"base": "demo/plain", "overrides": {"training.stpes": 3}}, "row b: option training.stpes: 'stpes' is not"),
        ({"base": STUDENT, "overrides": {"objective.wieght": 3}}, "did you mean 'weight'"),
        ({"base": "demo/plain", "overrides": {"training.steps": "few"}}, "row b: training.steps must be int"),
        ({"base": STUDENT, "overrides": {"objective.teacher": "laptop/no"}}, "row b: 'laptop/no' is not a run folder"),
        ({"base": STUDENT, "overrides": {"objective.teacher_step": 70}}, "the teacher laptop/sit-nano-2-teacher keeps"),
        ({"base": "demo/plain", "overrides": {"sampling.steps": 0}}, "row b: "),
    ],
)
def test_a_wrong_row_is_named_before_anything_starts(row, words, tmp_path):
    spec = sweep_of({"rows": [{"name": "a", "base": "demo/plain"}, {"name": "b", **row}]})
    with pytest.raises(ValueError, match=re.escape(words)):
        plan(spec, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_runs_of_the_presets_are_the_ones_that_training_makes(tmp_path):
    """A planned fingerprint is that of the run, its teacher's preset or folder written out as one likes."""
    wanted = resolve(STUDENT, seed=3, root=tmp_path)
    teacher = prepare_run(load_config(TEACHER, ["training.seed=3"]), tmp_path)
    assert [each.fingerprint for each in wanted.line][:-1] == [teacher.fingerprint]
    changes = ["training.seed=3", f"objective.teacher={teacher.folder}"]
    assert wanted.fingerprint == run_fingerprint(load_config(STUDENT, changes), tmp_path)
    assert resolve(STUDENT, [f"objective.teacher={teacher.name}"], seed=3, root=tmp_path).fingerprint == (
        wanted.fingerprint
    )


def test_what_student_and_teacher_share_reaches_both(tmp_path):
    own = ["backbone.patch=1", "training.batch=16", "objective.weight=0.1"]
    wanted = resolve(STUDENT, own, ["training.steps=30", "objective.head_width=64"], 0, tmp_path)
    student, teacher = wanted.config, wanted.teacher.config
    assert student.backbone.options["patch"] == teacher.backbone.options["patch"] == 1
    assert student.training.steps == teacher.training.steps == 30
    assert (student.training.batch, teacher.training.batch) == (16, 32)
    assert (student.objective.options["head_width"], teacher.objective.options["head_width"]) == (64, 256)


def test_each_run_is_wanted_once_teachers_first(tmp_path):
    plain = {"objective.teacher": "laptop/sit-nano-2-plain", "objective.teacher_step": 200}
    again, by_plain = {"name": "again", "base": STUDENT}, {"name": "by-plain", "base": STUDENT, "overrides": plain}
    rows = [STUDENT, again, by_plain, "laptop/sit-nano-2-plain"]
    jobs = plan(sweep_of({"rows": rows, "seeds": [0, 1]}), tmp_path)
    teacher = next(job.id for job in jobs if job.training.source == TEACHER)
    assert [(job.id, job.names, job.after) for job in jobs[:4]] == [
        (teacher, (), ()),
        ("laptop-sit-nano-2-plain-0", ("laptop-sit-nano-2-plain",), ()),
        ("laptop-sit-nano-2-0", ("laptop-sit-nano-2", "again"), (teacher,)),
        ("by-plain-0", ("by-plain",), ("laptop-sit-nano-2-plain-0",)),
    ]
    assert [job.training.seed for job in jobs] == [0] * 4 + [1] * 4
    assert len({job.fingerprint for job in jobs}) == len({job.id for job in jobs}) == 8
    assert jobs[0].evaluation is None and all(job.evaluation for job in jobs[1:4])


def test_one_run_scored_in_two_ways_is_two_jobs(tmp_path):
    rows = ["demo/plain", {"name": "cfg", "base": "demo/plain", "overrides": {"sampling.guidance_scale": 2}}]
    first, second = plan(sweep_of({"rows": rows}), tmp_path)
    assert first.fingerprint == second.fingerprint and second.after == (first.id,)
    assert (first.protocol["guidance_scale"], second.protocol["guidance_scale"]) == (1.0, 2.0)


def test_only_some_rows_and_their_teachers(tmp_path):
    spec = sweep_of({"rows": [STUDENT, "demo/plain"]})
    assert [job.training.source for job in plan(spec, tmp_path, ["laptop-sit-nano-2"])] == [TEACHER, STUDENT]
    with pytest.raises(ValueError, match="did you mean 'demo-plain'"):
        plan(spec, tmp_path, ["demo-plane"])


@pytest.fixture
def job(tmp_path):
    return plan(sweep_of({"name": "s", "base": "demo/plain"}), tmp_path)[0]


def test_a_dry_run_counts_by_the_pace_of_runs_like_it(tmp_path):
    spec = sweep_of(
        {"rows": ["demo/plain", STUDENT, {"name": "big", "base": "demo/plain", "overrides": {"backbone.size": "s"}}]}
    )
    for seed, seconds in ((5, 30.0), (6, 50.0), (7, 400.0)):  # 0.3, 0.5 and 4 s a step: the median is 0.5
        prepare_run(load_config("demo/plain", [f"training.seed={seed}"]), tmp_path).write_status(
            "stopped", 100, seconds=seconds
        )
    known = prepare_run(load_config(TEACHER), tmp_path)
    known.write_status("finished", 200, seconds=20.0)  # 0.1 s a step, by another method than the student's
    found = row_states(plan(spec, tmp_path), sweep_folder(tmp_path, "sweep"), tmp_path)
    told = {each.job.training.source + each.job.id: each for each in found}
    plain, big = told["demo/plaindemo-plain-0"], told["demo/plainbig-0"]
    assert (plain.there, plain.seconds) == ("to train", 0.5 * 400) and (big.there, big.seconds) == ("to train", None)
    student = told[STUDENT + "laptop-sit-nano-2-0"]
    assert student.seconds == pytest.approx(0.1 * 400) and student.teaches == 0
    teacher = next(each for each in told.values() if each.teaches)
    assert (teacher.there, teacher.seconds, teacher.teaches) == ("trained, to show", 0.0, 1)


def test_a_row_is_finished_only_with_its_notebook_its_run_and_the_same_protocol(job, tmp_path):
    run = prepare_run(job.training.config, tmp_path)
    run.write_status("finished", 700)
    place, folder = sweep_folder(tmp_path, "s"), sweep_folder(tmp_path, "s").job(job.id)
    folder.mkdir(parents=True)
    runs, about = {job.fingerprint: run}, {"fingerprint": job.fingerprint, "protocol": job.protocol}
    write_job(folder, "finished", **about)
    assert finished(job, place, runs) is None
    (folder / "row.ipynb").touch()
    assert finished(job, place, runs)
    assert finished(job, place, {}) is None
    run.write_status("stopped", 600)
    assert finished(job, place, runs) is None
    run.write_status("finished", 700)
    for wrong in ({"fingerprint": "0"}, {"protocol": {**job.protocol, "count": 1}}, {"protocol": None}):
        write_job(folder, "finished", **{**about, **wrong})
        assert finished(job, place, runs) is None
    write_job(folder, "failed", **about)
    assert finished(job, place, runs) is None


def test_a_job_that_nobody_is_at_is_lost(tmp_path):
    write_job(tmp_path, "running")
    (tmp_path / ".lock").touch()
    assert read_job(tmp_path)["state"] == "lost"
    whole = {"state": "finished", "run": "r", "fingerprint": "f", "step": 3, "scores": {}}
    (tmp_path / "job.json").write_text(json.dumps(whole))
    assert read_job(tmp_path) == whole
    for text in ("{", "[]", "5", "{}", "[" * 50_000, *({**whole, key: {"a": None}} for key in whole),
                 {**whole, "state": "done"}, {**whole, "spent": 3}):  # fmt: skip
        (tmp_path / "job.json").write_text(text if isinstance(text, str) else json.dumps(text))
        with pytest.warns(UserWarning, match="job.json is damaged"):
            assert read_job(tmp_path) == {}
