"""Half precision, compiled blocks and recomputed activations: the same training within rounding, resumed exactly."""

import os
import shutil
import signal

import jaxtyping
import pytest
import torch

from workbench.backbones.sit import Backbone
from workbench.config import load_config, plugin_class
from workbench.config.declared import Size
from workbench.runs.store import prepare_run
from workbench.training.loop import fit

SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=32",
    "vae.name=identity",
    "backbone.patch=16",
    "training.steps=6",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.milestone_every=6",
    # Bits and rounding are compared.
    "training.optimizer=adamw",
    "training.precision=no",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """The root and the changes of a guided run whose teacher is trained."""
    root = tmp_path_factory.mktemp("state")
    teacher = load_config("demo/teacher", (*SMALL, "objective.head_width=16"))
    for _ in fit(teacher, root):
        pass
    return root, (*SMALL, "objective.head_width=16", f"objective.teacher={prepare_run(teacher, root).folder}")


def losses(root, changes) -> list[float]:
    config = load_config("demo/guided", changes)
    for _ in fit(config, root):
        pass
    return [record["loss"] for record in prepare_run(config, root).metrics]


def final(root, changes) -> dict[str, torch.Tensor]:
    return prepare_run(load_config("demo/guided", changes), root).checkpoint(6).load("model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [("training.precision=bf16", 2e-2), ("training.compile=true", 1e-4), ("backbone.checkpoint_blocks=true", 1e-6)],
)
def test_the_same_losses(guided, change, tolerance, monkeypatch):
    root, changes = guided
    plain = losses(root, changes)
    compiled, autocast, recomputed = [], [], []
    block = type(Backbone(size="nano", patch=16, channels=1, height=32, classes=10).blocks[0])
    monkeypatch.setattr(block, "compile", lambda self: compiled.append(self) or torch.nn.Module.compile(self))
    run = Backbone._run_block
    monkeypatch.setattr(
        Backbone,
        "_run_block",
        lambda self, *rest: autocast.append(torch.is_autocast_enabled("cpu")) or run(self, *rest),
    )
    import workbench.backbones.base as base

    checkpoint = base.checkpoint
    monkeypatch.setattr(base, "checkpoint", lambda *a, **k: recomputed.append(1) or checkpoint(*a, **k))
    # What changes rounding alone makes no other run, so the first has to go to be trained again.
    shutil.rmtree(prepare_run(load_config("demo/guided", changes), root).folder)
    changed = losses(root, (*changes, change))
    assert changed == pytest.approx(plain, rel=tolerance)
    # Each option really did something, and only what it is for.
    assert len(compiled) == (24 if "compile" in change else 0)  # student's and teacher's blocks
    assert any(autocast) == ("bf16" in change)
    assert bool(recomputed) == ("checkpoint_blocks" in change)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "lightningdit"])
def test_bfloat16_in_compiled_blocks_is_right_on_this_processor(name, monkeypatch):
    """Whatever the processor's instructions are: the code generator has had faults that only some of them show."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of the tests do not compile
    kind = plugin_class("backbone", name)
    shallow = type("Shallow", (kind,), {"sizes": {"nano": Size(depth=2, width=128, heads=2)}})
    model = shallow(channels=4, height=8, patch=1, classes=10)
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():  # the modulations and the last layer start at zero
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    x, t = torch.randn(16, 4, 8, 8, generator=generator), torch.rand(16, generator=generator)
    y, target = torch.arange(16) % 11, torch.randn(16, 4, 8, 8, generator=generator)

    def velocity_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        v = model(x, t, y).float()
        (v - target).square().mean().backward()
        return [v.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    exact = velocity_and_gradients()
    for block in model.blocks:
        block.compile()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = velocity_and_gradients()
    named = ["v", *(name for name, p in model.named_parameters() if p.requires_grad)]
    errors = {name: ((a - b).norm() / b.norm()).item() for name, a, b in zip(named, rounded, exact, strict=True)}
    assert {name: error for name, error in errors.items() if not error < 0.03} == {}  # NaN is not below


def test_half_precision_resumes_exactly(guided, tmp_path):
    root, changes = guided
    changes = (*changes, "training.precision=bf16")
    losses(root, changes)
    for record in fit(load_config("demo/guided", changes), tmp_path):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    assert prepare_run(load_config("demo/guided", changes), tmp_path).status["state"] == "stopped"
    losses(tmp_path, changes)
    whole, resumed = final(root, changes), final(tmp_path, changes)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_teacher_in_half_precision_gives_nearly_the_same_target(guided):
    root, changes = guided
    changes = (*changes, "objective.guidance_scale=1", "objective.normalize=false")
    full = list(fit(load_config("demo/guided", changes), root / "full"))
    half = list(fit(load_config("demo/guided", (*changes, "objective.teacher_precision=bfloat16")), root / "half"))
    assert half[0]["norm_guided"] != full[0]["norm_guided"]
    assert half[0]["norm_guided"] == pytest.approx(full[0]["norm_guided"], rel=1e-2)
