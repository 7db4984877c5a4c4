"""The shared layers against numbers worked by hand and plain loops; initialising a model; checking labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.backbones.layers import (
    Attention,
    Linear,
    PatchEmbed,
    TimestepEmbedder,
    draw_normal_,
    draw_xavier_,
    modulate,
    sincos_positions,
    tanh_gelu,
    timestep_features,
)
from workbench.backbones.sit import Backbone


def test_positions_of_a_two_by_two_grid_by_hand():
    # Width 8 has two frequencies, 10000^0 = 1 and 10000^(-1/2) = 0.01; a coordinate c gives
    # [sin c, sin 0.01c, cos c, cos 0.01c], the column's first. Token 1 is row 0, column 1.
    zero = [0.0, 0.0, 1.0, 1.0]
    one = [0.8414709848, 0.0099998333, 0.5403023059, 0.9999500004]
    by_hand = torch.tensor([zero + zero, one + zero, zero + one, one + one], dtype=torch.float64)
    positions = sincos_positions(2, 8)
    assert positions.dtype == torch.float64
    torch.testing.assert_close(positions, by_hand, atol=1e-9, rtol=0)


def test_first_half_of_the_positions_is_the_column_and_second_half_the_row():
    grid = sincos_positions(5, 16).reshape(5, 5, 16)
    column, row = grid[..., :8], grid[..., 8:]
    assert torch.equal(column, column[:1].expand_as(column))
    assert torch.equal(row, row[:, :1].expand_as(row))
    assert torch.equal(column[0], row[:, 0])
    assert len(column[0].unique(dim=0)) == 5


def test_position_sines_and_cosines_of_one_frequency_lie_on_the_unit_circle():
    half = sincos_positions(6, 32)[:, :16]
    torch.testing.assert_close(half[:, :8] ** 2 + half[:, 8:] ** 2, torch.ones(36, 8, dtype=torch.float64))


def test_timestep_features_by_hand():
    features = timestep_features(torch.tensor([0.0, 0.5, 1.0]))
    # t = 0: 128 cosines of 0, then 128 sines of 0.
    assert torch.equal(features[0], torch.tensor([1.0] * 128 + [0.0] * 128))
    # Frequency 0 is 1, frequency 64 is 10000^(-1/2) = 0.01; t enters as it is, not times 1000.
    by_hand = [math.cos(0.5), math.cos(0.005), math.sin(0.5), math.sin(0.005)]
    torch.testing.assert_close(features[1, [0, 64, 128, 192]], torch.tensor(by_hand))
    # The last frequency is 10000^(-127/128), not 10000^(-1).
    torch.testing.assert_close(features[2, 255], torch.tensor(math.sin(10000 ** (-127 / 128))))


def test_time_is_embedded_in_float32_whatever_the_weights_are():
    embedder = TimestepEmbedder(8).to(torch.bfloat16)
    t = torch.tensor([0.7003, 0.0101])
    assert not torch.equal(t, t.to(torch.bfloat16).float())
    torch.testing.assert_close(timestep_features(t)[:, 128], torch.sin(t), atol=1e-7, rtol=0)
    seen = []
    embedder.mlp[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    assert embedder(t).dtype == torch.bfloat16
    assert torch.equal(seen[0][:, 0], torch.cos(t).to(torch.bfloat16))
    assert torch.equal(seen[0][:, 128], torch.sin(t).to(torch.bfloat16))


def test_patches_are_taken_row_by_row_with_the_channel_slowest():
    embed = PatchEmbed(channels=3, patch=2, width=12)
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(12).reshape(12, 3, 2, 2))
    tokens = embed(x)
    assert tokens.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            tile = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(tokens[:, 3 * row + column], tile.reshape(2, 12))


def test_tokens_are_contiguous_in_every_layer():
    model = Backbone(channels=3, height=4, classes=5)
    model.initialize(torch.Generator().manual_seed(0))
    x, t, y = torch.randn(2, 3, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 5])
    tokens = model.features(x, t, y, (0, 1, 12))
    assert [f.is_contiguous() for f in tokens.values()] == [True] * 3


def test_gelu_by_hand_and_in_a_compiled_graph():
    # u = sqrt(2/pi) (1 + 0.044715) = 0.8335617; (1 + tanh(u)) / 2 = 0.8411920.
    torch.testing.assert_close(tanh_gelu(torch.tensor([1.0, 0.0])), torch.tensor([0.8411920, 0.0]))
    x = torch.linspace(-12, 12, 97, dtype=torch.float64).requires_grad_()
    exact, compiled = F.gelu(x, approximate="tanh"), torch.compile(tanh_gelu, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, exact, rtol=1e-9, atol=1e-14)
    slope, again = (torch.autograd.grad(y.sum(), x)[0] for y in (exact, compiled))
    torch.testing.assert_close(again, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, tokens, fused",
    [(torch.float32, 64, True), (torch.bfloat16, 64, False), (torch.bfloat16, 256, False), (torch.bfloat16, 257, True)],
)
def test_attention_is_computed_in_the_faster_way_with_the_same_result(dtype, tokens, fused, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    attention = Attention(32, 2, nn.Identity)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(2, tokens, 32, generator=generator)
    calls, kernel = [], F.scaled_dot_product_attention
    q, k, v = attention.double().qkv(x.double()).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) / 4).softmax(dim=3)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention.weights(x.double()), weights)
    attention = attention.float().to(dtype)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given: calls.append(1) or kernel(*given))
    found = attention(x.to(dtype)).double()
    assert bool(calls) == fused
    assert (found - expected).norm() < (1e-6 if dtype == torch.float32 else 0.02) * expected.norm()


def test_modulate_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    shift, scale = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[1.0, -1.0]]])
    assert torch.equal(modulate(tokens, shift, scale), torch.tensor([[[12.0, 20.0], [16.0, 20.0]]]))


@pytest.mark.parametrize("shape, fans", [((300, 100), 400), ((90, 10, 3, 3), 180)])
def test_xavier_fills_its_range_for_linear_and_patch_weights(shape, fans):
    weight = torch.empty(shape)
    draw_xavier_(weight, torch.Generator().manual_seed(0))
    bound = math.sqrt(6 / fans)
    assert 0.99 * bound < weight.abs().max() <= bound
    # A uniform distribution on [-a, a] has standard deviation a / sqrt(3).
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_normal_has_its_standard_deviation():
    weight = torch.empty(200, 200)
    draw_normal_(weight, 0.02, torch.Generator().manual_seed(0))
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weight.mean().item()) < 0.0005


def test_drawn_weights_do_not_depend_on_the_dtype_they_fill():
    single, half = torch.empty(8, 4), torch.empty(8, 4, dtype=torch.bfloat16)
    draw_xavier_(single, torch.Generator().manual_seed(3))
    draw_xavier_(half, torch.Generator().manual_seed(3))
    assert torch.equal(single.to(torch.bfloat16), half)


def test_a_layer_is_built_blank_without_touching_the_ambient_generator():
    before = torch.get_rng_state()
    layer = Linear(5, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.weight.any() and not layer.bias.any()


def test_initialise_draws_from_its_generator_alone():
    ambient = torch.get_rng_state()
    models = [Backbone(channels=3, height=4, classes=5) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.initialize(torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), ambient)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.7.mlp.fc2.weight"):
        assert not torch.equal(first[name], other[name])


def test_initialise_sets_every_parameter_to_its_distribution():
    model = Backbone(channels=3, height=4, classes=200, qk_norm=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.initialize(torch.Generator().manual_seed(0))
    for name, value in model.state_dict().items():
        if name == "pos_embed":
            assert value[0, 0].tolist() == [0.0] * 32 + [1.0] * 32 + [0.0] * 32 + [1.0] * 32
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            assert (value == 1).all(), name
        elif name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight":
            assert (value == 0).all(), name
        elif name.startswith(("t_embedder", "y_embedder")):
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            bound = (6 / (value.shape[0] + value[0].numel())) ** 0.5
            assert 0.98 * bound < value.abs().max() <= bound, name


def test_a_model_built_on_meta_initialises_and_loads():
    options = {"channels": 3, "height": 4, "classes": 5}
    plain = Backbone(**options)
    plain.initialize(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        emptied, assigned = Backbone(**options), Backbone(**options)
    emptied.to_empty(device="cpu").initialize(torch.Generator().manual_seed(0))
    assigned.load_state_dict(plain.state_dict(), assign=True)
    for model in (emptied, assigned):
        assert not model.pos_embed.requires_grad
        for name, value in plain.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
