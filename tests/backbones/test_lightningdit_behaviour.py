"""LightningDiT at work: its start, early stops, recomputation, precisions, copies, compilation, a resumed training."""

import copy
import os
import signal

import pytest
import torch

from workbench.backbones.base import Size
from workbench.backbones.lightningdit import Backbone, RMSNorm, Rotation
from workbench.config import load_config
from workbench.runs.store import find_runs, open_run, prepare_run
from workbench.training.loop import fit

SHAPE = {"channels": 3, "height": 4, "classes": 5}
TRAINING = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=64",
    "vae.name=identity",
    "backbone.name=lightningdit",
    "backbone.patch=8",
    "diffusion.cosine_weight=1",
    "diffusion.time=lognormal",
    "training.steps=12",
    "training.batch=8",
    "training.log_every=2",
    "training.checkpoint_every=3",
    "training.milestone_every=6",
)


class Shallow(Backbone):
    sizes = {"nano": Size(depth=1, width=32, heads=2)}


def randomised(kind: type[Backbone] = Backbone, **options) -> Backbone:
    """A small model whose every trainable parameter, the zero-initialised ones too, is random."""
    model = kind(**{**SHAPE, **options})
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(b: int = 3):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(b, 3, 4, 4, generator=generator)
    return x_t, torch.rand(b, generator=generator), torch.arange(b) % 6


def gradients(model: Backbone, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def counted_blocks(model: Backbone) -> list[int]:
    """A list that grows by a block's index each time that block runs."""
    calls = []
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    return calls


@pytest.mark.parametrize("wo_shift", [False, True])
def test_a_fresh_model_outputs_exactly_zero(wo_shift):
    model = Backbone(**SHAPE, wo_shift=wo_shift)
    model.initialize(torch.Generator().manual_seed(0))
    assert not model(*batch()).any()
    features = model.features(*batch(), (0, 12))
    assert features[0].std() > 0.1
    assert torch.equal(features[0], features[12])


@pytest.mark.parametrize("layers, ran", [((8,), 8), ((3, 1), 3), ((0,), 0)])
def test_features_stop_after_the_deepest_layer(layers, ran):
    model = randomised()
    calls = counted_blocks(model)
    features = model.features(*batch(), layers)
    assert calls == list(range(ran))
    tapped = model.forward_tapped(*batch(), layers)
    assert all(torch.equal(features[layer], tapped.features[layer]) for layer in layers)


def test_checkpointing_changes_memory_not_numbers():
    kept, recomputed = randomised(qk_norm=True), randomised(qk_norm=True, checkpoint_blocks=True)
    calls = counted_blocks(recomputed)
    tapped = {model: model.forward_tapped(*batch(6), (2,)) for model in (kept, recomputed)}
    one, other = (gradients(model, t.v.square().sum() + t.features[2].sum()) for model, t in tapped.items())
    assert len(calls) == 24
    assert one.keys() == {name for name, p in kept.named_parameters() if p.requires_grad}
    for name, gradient in one.items():
        assert gradient.any() and torch.equal(gradient, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_one_compiled_graph_gives_the_same_numbers(checkpoint_blocks):
    model = randomised(Shallow, checkpoint_blocks=checkpoint_blocks)
    compiled = torch.compile(model.features, backend="aot_eager", fullgraph=True)
    graph, eager = (features(*batch(), (1,))[1] for features in (compiled, model.features))
    torch.testing.assert_close(graph, eager)
    expected = gradients(model, eager.square().sum())
    assert expected["blocks.0.attn.qkv.weight"].any()
    torch.testing.assert_close(gradients(model, graph.square().sum()), expected)


def test_a_bfloat16_copy_follows_the_float32_model():
    model = randomised(qk_norm=True)
    exact = model.forward_tapped(*batch(), (8,))
    half = copy.deepcopy(model).to(torch.bfloat16).forward_tapped(*batch(), (8,))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.forward_tapped(*batch(), (8,))
    assert half.v.dtype == half.features[8].dtype == torch.bfloat16
    for rounded in (half, mixed):
        assert (rounded.v.float() - exact.v).norm() < 0.05 * exact.v.norm()
        assert (rounded.features[8].float() - exact.features[8]).norm() < 0.05 * exact.features[8].norm()


def test_rotation_is_exact_whatever_the_weights_are():
    plain, cast = Rotation(4, 8), Rotation(4, 8).to(torch.bfloat16)
    assert torch.equal(cast.freqs_cos, plain.freqs_cos) and torch.equal(cast.freqs_sin, plain.freqs_sin)
    x = torch.randn(2, 1, 16, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(cast(x), plain(x.float()).to(torch.bfloat16))
    assert Rotation(4, 8).double().freqs_cos.dtype == torch.float64


def test_rms_norm_by_hand_and_in_float32():
    norm = RMSNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 10.0]))
    # The root mean square of (3, -4) is 5 / sqrt(2).
    torch.testing.assert_close(norm(torch.tensor([3.0, -4.0])), torch.tensor([6.0, -40.0]) / 12.5**0.5)
    # A millionth is under the square root: (1e-3, 1e-3) has mean square 1e-6, so it shrinks by sqrt(2).
    torch.testing.assert_close(norm(torch.full((2,), 1e-3)), torch.tensor([2.0, 10.0]) / 2**0.5)
    # In float16 the square of 300 would be infinite.
    assert norm.half()(torch.tensor([300.0, 300.0]).half()).tolist() == [2, 10]


def test_initialise_sets_every_number_and_draws_from_its_generator_alone():
    ambient = torch.get_rng_state()
    with torch.device("meta"):
        emptied = Backbone(**SHAPE, qk_norm=True).to_empty(device="cpu")
    models = [emptied, Backbone(**SHAPE, qk_norm=True), Backbone(**SHAPE, qk_norm=True)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.fill_(float("nan"))
        model.initialize(torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), ambient)
    first, again, other = (model.state_dict() for model in models)
    for name, value in first.items():
        assert value.isfinite().all() and torch.equal(value, again[name]), name
        if "norm" in name:
            assert (value == 1).all(), name
        if name.endswith(("w12.weight", "w3.weight", "qkv.weight")):
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.98 * bound < value.abs().max() <= bound and not torch.equal(value, other[name]), name
    assert torch.equal(first["feat_rope.freqs_sin"], Rotation(4, 64).freqs_sin)


def test_a_copy_owns_its_weights_and_tables():
    model = randomised()
    v = model(*batch())
    copied = copy.deepcopy(model)
    assert torch.equal(copied(*batch()), v)
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    assert torch.equal(model(*batch()), v)


def test_errors_say_what_came_and_what_is_allowed():
    with pytest.raises(ValueError, match="'s' is unknown; allowed are pico, nano, b, l, xl, 1p0b, 1p6b"):
        Backbone(size="s", **SHAPE)
    with pytest.raises(ValueError, match=r"layer 13 is outside 0\.\.12"):
        randomised().features(*batch(), (13,))


@pytest.mark.slow
def test_stopped_training_resumes_to_the_same_weights(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = load_config("demo/plain", TRAINING)
    assert config.backbone.name == "lightningdit" and config.backbone.options["swiglu"]
    records = list(fit(config, tmp_path / "whole"))
    for record in fit(config, tmp_path / "cut"):
        if record["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
    stopped = open_run(find_runs(tmp_path / "cut")[0].folder)
    assert stopped.status["state"] == "stopped" and stopped.status["step"] < 12
    resumed = list(fit(config, tmp_path / "cut"))
    torch.set_num_threads(threads)
    assert resumed[-1]["loss"] == records[-1]["loss"] < records[0]["loss"]
    checkpoints = [prepare_run(config, tmp_path / root).checkpoint(12) for root in ("whole", "cut")]
    for part in ("model", "ema", "optimizer"):
        whole, cut = (checkpoint.load(part) for checkpoint in checkpoints)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[name], cut[name]) for name in whole), part
