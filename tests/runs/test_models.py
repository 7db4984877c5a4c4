"""Models of runs: which teachers and which latents a run may go with."""

import re
from dataclasses import replace

import pytest
import torch

from workbench.backbones.base import Size
from workbench.backbones.lightningdit import rotary_angles
from workbench.config import Plugin, load_config, plugin_class, to_yaml
from workbench.data.latents import Latents, open_latents
from workbench.files import write_json
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import check_latents_of, load_backbone, load_teacher, stale_positions
from workbench.runs.store import Run, prepare_run
from workbench.training.launch import launch
from workbench.training.loop import fit

SMALL = ("data.name=digits", "data.source=auto", "data.limit=64", "vae.name=identity", "backbone.patch=8")
SHORT = ("training.steps=2", "training.batch=8", "training.log_every=1", "objective.head_width=16")


@pytest.fixture(scope="module", autouse=True)
def thin_nano():
    """The size nano with a fourth of its width: these tests are about runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plugin_class("backbone", "sit").sizes, "nano", Size(depth=12, width=32, heads=2))
        yield


def train(root, *overrides: str) -> Run:
    config = load_config("demo/teacher", (*SMALL, *SHORT, *overrides))
    for _ in fit(config, root):
        pass
    return prepare_run(config, root)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def latents(teacher):
    return open_latents(teacher.config, "train", teacher.folder.parent / ".latents")


def student(run: Run, *overrides: str):
    return load_config("demo/guided", (*SMALL, f"objective.teacher={run.folder}", *overrides))


def test_an_objective_needs_no_option_but_teacher(teacher, latents, tmp_path):
    config = replace(student(teacher), objective=Plugin("another", {"teacher": str(teacher.folder)}))
    found = load_teacher(config, latents, tmp_path).state_dict()
    expected = load_backbone(teacher, 2, "ema").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert load_teacher(replace(config, objective=Plugin("plain")), latents, tmp_path) is None


def test_steps_count_from_one(teacher, latents, tmp_path):
    assert load_teacher(student(teacher, "objective.teacher_step=2"), latents, tmp_path) is not None
    for step, said in ((0, "teacher_step must be at least 1.*; got 0"), (1, "has no checkpoint of step 1")):
        with pytest.raises(ValueError, match=said):
            load_teacher(student(teacher, f"objective.teacher_step={step}"), latents, tmp_path)


def test_teacher_and_student_share_the_path(teacher, latents, tmp_path):
    with pytest.raises(ValueError, match="was trained on the linear path, the student uses the cosine path"):
        load_teacher(student(teacher, "diffusion.path=cosine"), latents, tmp_path)
    turned = train(tmp_path, "diffusion.path=cosine")
    assert load_teacher(student(turned, "diffusion.path=cosine"), latents, tmp_path) is not None


def test_a_teacher_has_a_trained_null_class(latents, tmp_path):
    always = train(tmp_path, "diffusion.label_dropout=0")
    with pytest.raises(ValueError, match="label_dropout 0, so its null class is untrained; it cannot be a teacher"):
        load_teacher(student(always), latents, tmp_path)
    with pytest.raises(ValueError, match="cannot be a teacher"):
        list(fit(student(always, *SHORT), tmp_path))


def changed(latents: Latents, **changes) -> Latents:
    return Latents(replace(latents.shards, index={**latents.index, **changes}))


def test_latents_of_another_vae_or_shape_are_no_run_s(teacher, latents, tmp_path):
    check_latents_of(teacher, latents)
    check_latents_of(teacher, open_latents(teacher.config, "test", tmp_path))  # other images of the same VAE
    check_latents_of(teacher, changed(latents, classes=list("abc")))
    for other in (
        {"vae": {"name": "identity", "hash": "another"}},
        {"shape": [2, 16, 16]},
        {"classes": [*latents.classes, "one more"]},  # its label would be the null class
    ):
        with pytest.raises(ValueError, match="was trained on other latents: VAE 'identity', 1 x 32, 10 classes, not"):
            check_latents_of(teacher, changed(latents, **other))


def test_a_vae_known_by_its_name(teacher, latents, tmp_path):
    run = Run(tmp_path)
    trained = {**teacher.provenance["latents"], "vae": {"name": "sd-vae", "hash": None}}
    write_json(run.folder / "provenance.json", {**teacher.provenance, "latents": trained})
    check_latents_of(run, changed(latents, vae={"name": "sd-vae-ft-mse", "hash": "any"}))  # of the same encoder
    with pytest.raises(ValueError, match="VAE 'sd-vae', .* not VAE 'va-vae'"):
        check_latents_of(run, changed(latents, vae={"name": "va-vae", "hash": "any"}))


def as_before_the_correction(run: Run, side: int) -> None:
    """Give a LightningDiT run the rescaled positions that it had, in its weights and in its records."""
    checkpoint = run.checkpoint()
    parts = {part: checkpoint.load(part) for part in checkpoint.parts}
    for part, prefix in (("model", "backbone."), ("ema", "")):
        tables = parts[part][f"{prefix}feat_rope.freqs_cos"], parts[part][f"{prefix}feat_rope.freqs_sin"]
        angles = rotary_angles(side, tables[0].shape[1]) * 16 / side
        tables[0].copy_(angles.cos())
        tables[1].copy_(angles.sin())
    save_checkpoint(run.folder / "checkpoints", checkpoint.step, parts, checkpoint.state)
    write_json(run.folder / "provenance.json", {k: v for k, v in run.provenance.items() if k != "rotary"})


def test_a_lightningdit_of_rescaled_positions_is_out_of_date(tmp_path):
    lightning = ("backbone.name=lightningdit", "backbone.size=pico", "training.steps=2")
    run = train(tmp_path, *lightning)
    assert run.provenance["rotary"] == "0..side-1" and stale_positions(run) is None
    assert len(list(fit(run.config, tmp_path))) == 0  # finished
    as_before_the_correction(run, side=4)
    out_of_date = (
        f"run {run.name} was trained with rotary positions rescaled to a 16 x 16 grid, .* 0..3: it is out of date"
    )
    assert re.match(out_of_date, stale_positions(run))
    with pytest.raises(
        ValueError, match=f"{out_of_date} until it is trained again, after `workbench trash {run.name}`"
    ):
        list(fit(run.config, tmp_path))
    with pytest.raises(ValueError, match=out_of_date):  # not "finished, nothing was started"
        launch(run.config, root=tmp_path)
    assert run.status["state"] == "finished"
    for weights in ("ema", "raw"):  # sampled, looked into, or a teacher
        with pytest.raises(
            ValueError, match=f"run {run.name} cannot be used: its rotary positions .* unscaled positions 0..3 of its 4"
        ):
            load_backbone(run, weights=weights)
    bare = train(tmp_path, *lightning, "backbone.rope=false")
    assert "rotary" not in bare.provenance and stale_positions(bare) is None


def test_nothing_changed_for_other_backbones_and_on_sixteen_by_sixteen(teacher, tmp_path):
    assert "rotary" not in teacher.provenance and stale_positions(teacher) is None
    config = load_config("paper/lightningdit-b-1-256-plain")
    record = {"fingerprint": "0" * 16, "created": 0.0}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    for height, stale in ((16, False), (32, True)):
        latents = {**teacher.provenance["latents"], "channels": 32, "height": height}
        write_json(tmp_path / "provenance.json", {**record, "latents": latents})
        assert (stale_positions(Run(tmp_path)) is not None) == stale
