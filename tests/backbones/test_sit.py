"""SiT against published counts and names, its own formula written out, and the identities it must keep."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, silu

from workbench.backbones.base import TransformerBackbone
from workbench.backbones.sit import Backbone


def randomised(seed: int = 0, **options) -> Backbone:
    """A small SiT whose every trainable parameter, the zero-initialised ones too, is random."""
    model = Backbone(**{"channels": 3, "height": 4, "classes": 5, **options})
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(seed: int = 1, b: int = 3, channels: int = 3, height: int = 4):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(b, channels, height, height, generator=generator)
    return x_t, torch.rand(b, generator=generator), torch.arange(b) % 6


def counted_blocks(model: Backbone) -> list[int]:
    """A list that grows by a block's index each time that block runs."""
    calls = []
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    return calls


@pytest.mark.parametrize(
    "size, eight, four, qk_norm",
    [
        ("s", 32_963_360, 32_957_200, 3_072),
        ("b", 130_512_416, 130_500_112, 3_072),
        ("l", 458_102_816, 458_086_416, 6_144),
        ("xl", 675_129_632, 675_111_184, 8_064),
    ],
)
def test_parameter_counts_are_the_published_ones(size, eight, four, qk_norm):
    def count(**options):
        with torch.device("meta"):
            model = Backbone(size=size, patch=2, channels=4, height=32, classes=1000, **options)
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(learn_sigma=True) == eight
    assert count() == four
    assert count(qk_norm=True) - four == qk_norm


@pytest.mark.parametrize("qk_norm", [False, True])
def test_state_dict_has_the_published_names_and_shapes(qk_norm):
    with torch.device("meta"):
        model = Backbone(size="s", patch=2, qk_norm=qk_norm, channels=4, height=32, classes=1000)
    shapes = {
        "pos_embed": (1, 256, 384),
        "x_embedder.proj.weight": (384, 4, 2, 2),
        "x_embedder.proj.bias": (384,),
        "t_embedder.mlp.0.weight": (384, 256),
        "t_embedder.mlp.0.bias": (384,),
        "t_embedder.mlp.2.weight": (384, 384),
        "t_embedder.mlp.2.bias": (384,),
        "y_embedder.embedding_table.weight": (1001, 384),
        "final_layer.linear.weight": (16, 384),
        "final_layer.linear.bias": (16,),
        "final_layer.adaLN_modulation.1.weight": (768, 384),
        "final_layer.adaLN_modulation.1.bias": (768,),
    }
    for i in range(12):
        outputs = {
            "attn.qkv": 1152,
            "attn.proj": 384,
            "mlp.fc1": 1536,
            "mlp.fc2": 384,
            "adaLN_modulation.1": 2304,
        }
        for name, rows in outputs.items():
            shapes[f"blocks.{i}.{name}.weight"] = (rows, 1536 if name == "mlp.fc2" else 384)
            shapes[f"blocks.{i}.{name}.bias"] = (rows,)
        if qk_norm:
            for name in ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"):
                shapes[f"blocks.{i}.attn.{name}"] = (64,)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes


def test_attributes_describe_the_model():
    model = Backbone(patch=2, channels=4, height=8, classes=10)
    assert isinstance(model, TransformerBackbone)
    assert (model.depth, model.width, model.heads) == (12, 128, 2)
    assert (model.patch, model.channels, model.height, model.tokens) == (2, 4, 8, 16)
    assert (model.classes, model.null_label) == (10, 10)
    assert len(model.y_embedder.embedding_table.weight) == 11


def test_a_fresh_model_outputs_exactly_zero():
    model = Backbone(channels=3, height=4, classes=5)
    model.initialize(torch.Generator().manual_seed(0))
    v = model(*batch())
    assert v.shape == (3, 3, 4, 4)
    assert not v.any()
    # ... because the blocks are closed, not because the tokens are blank.
    features = model.features(*batch(), (0, 12))
    assert features[0].std() > 0.1
    assert torch.equal(features[0], features[12])


def linear(p: dict, name: str, x):
    return torch.einsum("...d,kd->...k", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def written_out_block(p: dict, prefix: str, x, c, heads: int, qk_norm: bool):
    """One adaLN-zero block, from its parameters and einsum alone."""
    b, n, d = x.shape
    e = d // heads
    m = linear(p, f"{prefix}adaLN_modulation.1", silu(c))[:, None, :]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (m[..., k * d : (k + 1) * d] for k in range(6))
    qkv = linear(p, f"{prefix}attn.qkv", layer_norm(x, (d,), eps=1e-6) * (1 + scale_a) + shift_a)
    q, k, v = (qkv[..., j * d : (j + 1) * d].reshape(b, n, heads, e) for j in range(3))
    if qk_norm:
        q = layer_norm(q, (e,), p[f"{prefix}attn.q_norm.weight"], p[f"{prefix}attn.q_norm.bias"], eps=1e-5)
        k = layer_norm(k, (e,), p[f"{prefix}attn.k_norm.weight"], p[f"{prefix}attn.k_norm.bias"], eps=1e-5)
    weights = (torch.einsum("bihe,bjhe->bhij", q, k) * e**-0.5).softmax(dim=-1)
    mixed = torch.einsum("bhij,bjhe->bihe", weights, v).reshape(b, n, d)
    x = x + gate_a * linear(p, f"{prefix}attn.proj", mixed)
    inner = linear(p, f"{prefix}mlp.fc1", layer_norm(x, (d,), eps=1e-6) * (1 + scale_m) + shift_m)
    return x + gate_m * linear(p, f"{prefix}mlp.fc2", gelu(inner, approximate="tanh"))


def written_out_forward(model: Backbone, x_t, t, y, qk_norm: bool, channels_out: int):
    """The whole network from its state dict: the list of layers 0 .. depth, and the velocity."""
    p = model.state_dict()
    patch, side, d = model.patch, model.height // model.patch, model.width
    tiles = x_t.unfold(2, patch, patch).unfold(3, patch, patch)
    x = torch.einsum("bchwpq,dcpq->bhwd", tiles, p["x_embedder.proj.weight"]) + p["x_embedder.proj.bias"]
    x = x.reshape(len(x_t), side * side, d) + p["pos_embed"]
    angles = torch.einsum("b,i->bi", t, 10_000.0 ** (-torch.arange(128, dtype=t.dtype) / 128))
    c = torch.cat([angles.cos(), angles.sin()], dim=1)
    c = linear(p, "t_embedder.mlp.2", silu(linear(p, "t_embedder.mlp.0", c)))
    c = c + p["y_embedder.embedding_table.weight"][y]
    layers = [x]
    for i in range(model.depth):
        layers.append(written_out_block(p, f"blocks.{i}.", layers[-1], c, model.heads, qk_norm))
    m = linear(p, "final_layer.adaLN_modulation.1", silu(c))[:, None, :]
    u = layer_norm(layers[-1], (d,), eps=1e-6) * (1 + m[..., d:]) + m[..., :d]
    u = linear(p, "final_layer.linear", u)
    u = u.reshape(len(x_t), side, side, patch, patch, channels_out)
    v = torch.einsum("bhwpqc->bchpwq", u).reshape(len(x_t), channels_out, model.height, model.height)
    return layers, v[:, : model.channels]


@pytest.mark.parametrize("qk_norm, learn_sigma", [(False, False), (True, False), (False, True)])
def test_forward_is_the_formula_written_out(qk_norm, learn_sigma):
    model = randomised(patch=2, height=8, qk_norm=qk_norm, learn_sigma=learn_sigma).double()
    x_t, t, y = batch(height=8)
    x_t, t = x_t.double(), t.double()
    tapped = model.forward_tapped(x_t, t, y, tuple(range(13)))
    layers, v = written_out_forward(model, x_t, t, y, qk_norm, channels_out=6 if learn_sigma else 3)
    for k, tokens in enumerate(layers):
        torch.testing.assert_close(tapped.features[k], tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tapped.v, v, atol=1e-5, rtol=1e-5)
    assert v.std() > 0.1


@pytest.mark.parametrize("qk_norm", [False, True])
def test_one_block_is_the_formula_written_out(qk_norm):
    model = randomised(qk_norm=qk_norm).double()
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 7, 128, generator=generator, dtype=torch.float64)
    condition = torch.randn(2, 128, generator=generator, dtype=torch.float64)
    written = written_out_block(model.state_dict(), "blocks.3.", tokens, condition, 2, qk_norm)
    torch.testing.assert_close(model.blocks[3](tokens, condition), written, atol=1e-10, rtol=1e-10)


def test_layer_zero_is_the_patch_embedding_with_positions():
    model = randomised()
    x_t, t, y = batch()
    patches = model.x_embedder.proj(x_t).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.features(x_t, t, y, (0,))[0], patches + model.pos_embed)


def test_features_are_those_of_forward_tapped_and_the_velocity_that_of_forward():
    model = randomised()
    tapped = model.forward_tapped(*batch(), (9, 0, 4))
    alone = model.features(*batch(), (9, 0, 4))
    assert set(tapped.features) == set(alone) == {0, 4, 9}
    for layer, tokens in alone.items():
        assert torch.equal(tokens, tapped.features[layer])
        assert torch.equal(tokens, model.features(*batch(), (layer,))[layer])
    assert not torch.equal(alone[4], alone[9])
    assert torch.equal(tapped.v, model(*batch()))
    assert model.forward_tapped(*batch(), ()).features == {}


@pytest.mark.parametrize("layers, ran", [((8,), 8), ((3, 1), 3), ((0,), 0), ((12,), 12)])
def test_features_stop_after_the_deepest_layer(layers, ran):
    model = randomised()
    calls = counted_blocks(model)
    model.features(*batch(), layers)
    assert calls == list(range(ran))
    calls.clear()
    model.forward_tapped(*batch(), layers)
    assert calls == list(range(12))


def test_learn_sigma_keeps_the_first_half_of_the_channels():
    wide = randomised(patch=2, height=8, learn_sigma=True)
    narrow = Backbone(patch=2, channels=3, height=8, classes=5)
    weights = wide.state_dict()
    # Of each pixel's 6 outputs (channel fastest) the first 3 are the velocity.
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        weights[name] = weights[name].unflatten(0, (4, 6))[:, :3].flatten(0, 1)
    narrow.load_state_dict(weights)
    torch.testing.assert_close(wide(*batch(height=8)), narrow(*batch(height=8)))


def test_a_row_does_not_depend_on_the_rest_of_the_batch():
    model = randomised()
    x_t, t, y = batch()
    whole = model(x_t, t, y)
    x_t[1:], t[1:], y[1:] = 7.0, 0.9, 5
    torch.testing.assert_close(model(x_t, t, y)[0], whole[0])
    torch.testing.assert_close(model(x_t[:1], t[:1], y[:1])[0], whole[0])


def test_a_bfloat16_copy_follows_the_float32_model():
    model = randomised(qk_norm=True)
    x_t, t, y = batch()
    tapped = model.forward_tapped(x_t, t, y, (8,))
    half = model.to(torch.bfloat16).requires_grad_(False).forward_tapped(x_t, t, y, (8,))
    assert half.v.dtype == half.features[8].dtype == torch.bfloat16
    for exact, rounded in ((tapped.v, half.v), (tapped.features[8], half.features[8])):
        assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_it_runs_under_autocast():
    model = randomised(qk_norm=True)
    exact = model(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        v = model(*batch())
    assert (v.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_gradients_reach_every_trainable_parameter(checkpoint_blocks):
    model = randomised(qk_norm=True, checkpoint_blocks=checkpoint_blocks)
    x_t, t, y = batch(b=6)
    model(x_t, t, y).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "pos_embed":
            assert parameter.grad is None
        elif name == "y_embedder.embedding_table.weight":
            assert (parameter.grad.abs().sum(dim=1) > 0).all()
        else:
            assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_memory_not_numbers(monkeypatch):
    kept, recomputed = randomised(), randomised(checkpoint_blocks=True)
    calls = counted_blocks(recomputed)
    for model in (kept, recomputed):
        tapped = model.forward_tapped(*batch(), (4,))
        (tapped.v.square().sum() + tapped.features[4].sum()).backward()
    assert len(calls) == 24
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    # Without gradients there is nothing to recompute for: checkpoint must not be entered at all.
    monkeypatch.setattr("workbench.backbones.base.checkpoint", None)
    with torch.no_grad():
        recomputed(*batch())


def test_errors_say_what_came_and_what_is_allowed():
    with pytest.raises(ValueError, match="'xxl' is unknown; allowed are pico, nano, s, b, l, xl"):
        Backbone(size="xxl", channels=3, height=4, classes=5)
    for patch in (3, 0):
        with pytest.raises(ValueError, match=f"patch {patch} does not divide the latent height 4"):
            Backbone(patch=patch, channels=3, height=4, classes=5)
    model = Backbone(channels=3, height=4, classes=5)
    for call in (model.features, model.forward_tapped):
        for layer in (13, -1):
            with pytest.raises(ValueError, match=rf"layer {layer} is outside 0\.\.12"):
                call(*batch(), (2, layer))
    with pytest.raises(AssertionError, match="this model takes"):
        model(*batch(height=8))


def test_no_module_of_the_network_draws_at_run_time():
    model = randomised().train()
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    ambient = torch.get_rng_state()
    v = model(*batch())
    assert torch.equal(v, model(*batch())) and torch.equal(v, model.eval()(*batch()))
    assert torch.equal(torch.get_rng_state(), ambient)
