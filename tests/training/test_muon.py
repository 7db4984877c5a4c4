"""Muon on the matrices of the blocks and AdamW on the rest: the updates by hand, resuming, and checkpoints."""

import os
import signal

import pytest
import torch

from workbench.config import fingerprint, load_config
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import prepare_run
from workbench.training.loop import fit
from workbench.training.muon import MuonAdamW
from workbench.training.state import build_optimizer
from workbench.training.student import Shape, build_student

SMALL = (
    "data.name=digits",
    "data.limit=32",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "training.steps=6",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.optimizer=muon",
)


def config_of(*changes: str):
    return load_config("demo/plain", (*SMALL, *changes))


def parts_of(root) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = prepare_run(config_of(), root).checkpoint(6)
    return {part: checkpoint.load(part) for part in ("model", "ema", "optimizer")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("muon")
    for _ in fit(config_of(), folder):
        pass
    return folder


def test_both_updates_by_hand():
    matrix, bias = (torch.nn.Parameter(torch.ones(shape)) for shape in ((8, 2), (2,)))
    optimizer = MuonAdamW([matrix], [bias], lr=0.1, momentum=0.9, betas=(0.9, 0.99), weight_decay=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does; it replaces groups and state
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    orthogonal = torch.zeros(8, 2)
    orthogonal[0, 0] = orthogonal[3, 1] = 1.0
    matrix.grad, bias.grad = 5 * orthogonal, torch.tensor([3.0, -2.0])
    optimizer.step()
    # Decay by 1 - 0.01 * 0.5. AdamW's first step is the sign of the gradient. Muon's is the nearest orthogonal matrix,
    # times 0.2 sqrt(8), the root mean square of AdamW's updates; five Newton-Schulz steps give it within .7 to 1.2.
    torch.testing.assert_close(bias.detach(), 0.995 + torch.tensor([-0.01, 0.01]))
    update = (0.995 - matrix.detach()) / (0.01 * 0.2 * 8**0.5)
    assert (0.6 * orthogonal <= update + 1e-3).all() and (update - 1e-3 <= 1.3 * orthogonal).all()
    torch.testing.assert_close(optimizer.state[matrix]["momentum_buffer"], 0.1 * matrix.grad)
    assert set(optimizer.state[bias]) == {"step", "exp_avg", "exp_avg_sq"}


def test_muon_has_the_matrices_of_the_blocks_and_adamw_everything_else():
    config = load_config("demo/teacher", (*SMALL, "objective.head_width=16"))
    student = build_student(config, Shape(1, 32, tuple("0123456789")), None, {})
    matrices, others = (group["params"] for group in build_optimizer(student, config).param_groups)
    names = {parameter: name for name, parameter in student.named_parameters()}
    assert len(matrices) == 12 * 5 and all(p.ndim == 2 and ".blocks." in names[p] for p in matrices)
    assert {*matrices, *others} == {p for p in student.parameters() if p.requires_grad}
    assert any(names[p].startswith("objective.") and p.ndim == 2 for p in others)


def test_a_stopped_run_resumes_to_the_same_weights(root, tmp_path):
    for record in fit(config_of(), tmp_path):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    assert prepare_run(config_of(), tmp_path).status["state"] == "stopped"
    for _ in fit(config_of(), tmp_path):
        pass
    whole, resumed = parts_of(root), parts_of(tmp_path)
    assert whole["optimizer"]["backbone.blocks.0.attn.qkv.weight/momentum_buffer"].any()
    for part, tensors in whole.items():
        assert tensors.keys() == resumed[part].keys()
        assert [name for name, value in tensors.items() if not torch.equal(value, resumed[part][name])] == []


def test_the_state_of_another_optimizer_is_refused(root):
    run, parts = prepare_run(config_of(), root), parts_of(root)
    name = "backbone.blocks.0.attn.qkv.weight"
    moment = parts["optimizer"].pop(f"{name}/momentum_buffer")
    (run.folder / "checkpoints").rename(run.folder / "kept")
    for wrong, said in (
        ({f"{name}/exp_avg": moment}, f"{name}/exp_avg is .* must be absent"),
        ({f"{name}/momentum_buffer": moment[:1]}, f"{name}/momentum_buffer is .* must be "),
        ({"backbone.x_embedder.proj.bias/momentum_buffer": moment[0, :1]}, "must be absent"),
    ):
        save_checkpoint(
            run.checkpoint_folder,
            3,
            {**parts, "optimizer": {**parts["optimizer"], **wrong}},
            {"seconds": 1.0, "scaler": None},
        )
        with pytest.raises(ValueError, match=said):
            list(fit(config_of(), root))
    assert {"momentum_buffer"} <= {key.rpartition("/")[2] for key in parts["optimizer"]}


def test_the_optimizer_counts_for_the_fingerprint_and_its_momentum_only_with_muon():
    marks = [
        fingerprint(
            load_config("laptop/sit-nano-2-plain", [f"training.optimizer={name}", f"training.momentum={momentum}"])
        )
        for name in ("adamw", "muon")
        for momentum in (0.95, 0.9)
    ]
    assert marks[0] == marks[1] == fingerprint(load_config("laptop/sit-nano-2-plain")) and len(set(marks)) == 3
    with pytest.raises(ValueError, match="did you mean 'muon'"):
        config_of("training.optimizer=muno")
