"""LightningDiT against published counts and names, its formula written out, and the identities of its rotation."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, silu

from workbench.backbones.base import Size
from workbench.backbones.lightningdit import Backbone, Rotation, rotary_angles
from workbench.backbones.sit import Backbone as SiT

FLAGS = (
    {},
    {"qk_norm": True},
    {"wo_shift": True},
    {"rope": False},
    {"rmsnorm": False, "qk_norm": True},
    {"swiglu": False},
    {"learn_sigma": True},
)
BARE = {"rope": False, "rmsnorm": False, "swiglu": False}  # what is left is SiT


class Tiny(Backbone):
    sizes = {"nano": Size(depth=3, width=32, heads=2)}  # SwiGLU width int(2/3 * 128) = 85


def disturb(model, seed: int = 0):
    """`model` with every trainable parameter, the zero-initialised ones too, random."""
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny(**options) -> Tiny:
    return disturb(Tiny(**{"patch": 2, "channels": 3, "height": 8, "classes": 5, **options}))


def batch(b: int = 3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(b, 3, 8, 8, generator=generator, dtype=dtype)
    return x_t, torch.rand(b, generator=generator, dtype=dtype), torch.arange(b) % 6


@pytest.mark.parametrize(
    "size, patch, parameters",
    [
        ("b", 1, 130_556_192),
        ("l", 2, 458_153_056),
        ("xl", 1, 675_256_736),
        ("1p0b", 1, 1_029_401_120),
        ("1p6b", 1, 1_631_767_120),
    ],
)
def test_parameter_counts_are_the_published_ones(size, patch, parameters):
    with torch.device("meta"):
        model = Backbone(size=size, patch=patch, channels=32, height=16, classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def published_shapes(inner: int | None = 2048, chunks: int = 6) -> dict[str, tuple[int, ...]]:
    """Names and shapes of B/1 on a 16 x 16 latent of 32 channels; `inner` None for SiT's MLP."""
    shapes = {
        "pos_embed": (1, 256, 768),
        "feat_rope.freqs_cos": (256, 64),
        "feat_rope.freqs_sin": (256, 64),
        "x_embedder.proj.weight": (768, 32, 1, 1),
        "y_embedder.embedding_table.weight": (1001, 768),
        "final_layer.norm_final.weight": (768,),
    }
    linears = {"x_embedder.proj": (768, None), "t_embedder.mlp.0": (768, 256), "t_embedder.mlp.2": (768, 768)}
    linears |= {"final_layer.linear": (32, 768), "final_layer.adaLN_modulation.1": (1536, 768)}
    for i in range(12):
        block = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "adaLN_modulation.1": (chunks * 768, 768)}
        if inner:
            block |= {"mlp.w12": (2 * inner, 768), "mlp.w3": (768, inner)}
        else:
            block |= {"mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
        linears |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        shapes |= {f"blocks.{i}.norm{k}.weight": (768,) for k in (1, 2)}
    for name, (rows, columns) in linears.items():
        shapes[f"{name}.bias"] = (rows,)
        shapes.setdefault(f"{name}.weight", (rows, columns))
    return shapes


def without(shapes: dict, part: str) -> dict:
    return {name: shape for name, shape in shapes.items() if part not in name}


def head_norms(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"blocks.{i}.attn.{name}": (64,) for i in range(12) for name in names}


@pytest.mark.parametrize(
    "flags, shapes",
    [
        ({}, published_shapes()),
        ({"qk_norm": True}, published_shapes() | head_norms("q_norm.weight", "k_norm.weight")),
        ({"wo_shift": True}, published_shapes(chunks=4)),
        ({"rope": False}, without(published_shapes(), "feat_rope")),
        ({"rmsnorm": False}, without(published_shapes(), ".norm")),
        ({"swiglu": False}, published_shapes(inner=None)),
        (
            {"rmsnorm": False, "qk_norm": True},
            without(published_shapes(), ".norm")
            | head_norms("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"),
        ),
    ],
    ids=lambda value: " ".join(value) if len(value) < 9 else "",
)
def test_state_dict_has_the_published_names_and_shapes(flags, shapes):
    with torch.device("meta"):
        model = Backbone(size="b", channels=32, height=16, classes=1000, **flags)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes


def linear(p: dict, name: str, x):
    return torch.einsum("...d,kd->...k", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def norm(p: dict, name: str, x, eps: float = 1e-6):
    """RMS norm where the state dict has a scale alone, layer norm otherwise."""
    weight, bias = p.get(f"{name}.weight"), p.get(f"{name}.bias")
    if weight is None or bias is not None:
        return layer_norm(x, x.shape[-1:], weight, bias, eps)
    return weight * x / ((x**2).sum(dim=-1, keepdim=True) / x.shape[-1] + eps) ** 0.5


def turned(x, side: int):
    """Each pair (x_0, x_1) as x_0 + i x_1, times exp(i angle); x is "b n heads e", token n at (n // side, n % side)."""
    pairs = x.shape[-1] // 4
    angles = torch.zeros(side * side, 2 * pairs, dtype=x.dtype)
    for token in range(side * side):
        for j in range(pairs):
            frequency = 10_000 ** (-2 * j / (2 * pairs))
            angles[token, j] = (token // side) * frequency
            angles[token, pairs + j] = (token % side) * frequency
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angles)[:, None]
    return torch.view_as_real(z).flatten(-2)


def written_out_block(p: dict, prefix: str, x, c, heads: int, side: int):
    b, n, d = x.shape
    e = d // heads
    m = linear(p, f"{prefix}adaLN_modulation.1", silu(c))[:, None, :].split(d, dim=-1)
    scale_a, gate_a, scale_m, gate_m = m if len(m) == 4 else (m[1], m[2], m[4], m[5])
    shift_a, shift_m = (0, 0) if len(m) == 4 else (m[0], m[3])
    qkv = linear(p, f"{prefix}attn.qkv", norm(p, f"{prefix}norm1", x) * (1 + scale_a) + shift_a)
    q, k, v = (part.reshape(b, n, heads, e) for part in qkv.split(d, dim=-1))
    if f"{prefix}attn.q_norm.weight" in p:
        eps = 1e-5 if f"{prefix}attn.q_norm.bias" in p else 1e-6
        q, k = norm(p, f"{prefix}attn.q_norm", q, eps), norm(p, f"{prefix}attn.k_norm", k, eps)
    if "feat_rope.freqs_cos" in p:
        q, k = turned(q, side), turned(k, side)
    weights = torch.exp(torch.einsum("bihe,bjhe->bhij", q, k) / e**0.5)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    mixed = torch.einsum("bhij,bjhe->bihe", weights, v).reshape(b, n, d)
    x = x + gate_a * linear(p, f"{prefix}attn.proj", mixed)
    u = norm(p, f"{prefix}norm2", x) * (1 + scale_m) + shift_m
    if f"{prefix}mlp.w3.weight" in p:
        w12 = linear(p, f"{prefix}mlp.w12", u)
        half = w12.shape[-1] // 2
        gate, value = w12[..., :half], w12[..., half:]
        return x + gate_m * linear(p, f"{prefix}mlp.w3", gate / (1 + torch.exp(-gate)) * value)
    return x + gate_m * linear(p, f"{prefix}mlp.fc2", gelu(linear(p, f"{prefix}mlp.fc1", u), approximate="tanh"))


def written_out_forward(model: Backbone, x_t, t, y, channels_out: int):
    """The whole network from its state dict, without its rotary tables: layers 0 .. depth, and the velocity."""
    p = model.state_dict()
    patch, side, d = model.patch, model.height // model.patch, model.width
    tiles = x_t.unfold(2, patch, patch).unfold(3, patch, patch)
    x = torch.einsum("bchwpq,dcpq->bhwd", tiles, p["x_embedder.proj.weight"]) + p["x_embedder.proj.bias"]
    layers = [x.reshape(len(x_t), side * side, d) + p["pos_embed"]]
    angles = torch.einsum("b,i->bi", t, 10_000.0 ** (-torch.arange(128, dtype=t.dtype) / 128))
    c = linear(p, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    c = linear(p, "t_embedder.mlp.2", silu(c)) + p["y_embedder.embedding_table.weight"][y]
    for i in range(model.depth):
        layers.append(written_out_block(p, f"blocks.{i}.", layers[-1], c, model.heads, side))
    shift, scale = linear(p, "final_layer.adaLN_modulation.1", silu(c))[:, None, :].split(d, dim=-1)
    u = linear(p, "final_layer.linear", norm(p, "final_layer.norm_final", layers[-1]) * (1 + scale) + shift)
    v = torch.einsum("bhwpqc->bchpwq", u.reshape(len(x_t), side, side, patch, patch, channels_out))
    return layers, v.reshape(len(x_t), channels_out, model.height, model.height)[:, : model.channels]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_forward_is_the_formula_written_out(flags):
    model = tiny(**flags).double()
    inputs = batch(dtype=torch.float64)
    tapped = model.forward_tapped(*inputs, (0, 1, 2, 3))
    layers, v = written_out_forward(model, *inputs, channels_out=6 if "learn_sigma" in flags else 3)
    for k, tokens in enumerate(layers):
        torch.testing.assert_close(tapped.features[k], tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tapped.v, v, atol=1e-5, rtol=1e-5)
    assert v.std() > 0.1


def test_without_its_changes_it_is_sit():
    options = {"channels": 3, "height": 4, "classes": 5, "qk_norm": True}
    sit, bare = disturb(SiT(**options)), Backbone(**options, **BARE)
    bare.load_state_dict(sit.state_dict())
    inputs = batch()[0][..., :4, :4], *batch()[1:]
    assert torch.equal(bare(*inputs), sit(*inputs))


def test_rotary_angles_by_hand():
    # Heads of 8 have two frequencies, 10000^0 = 1 and 10000^(-2/4) = 0.01; token 18 of 16 x 16 is row 1, column 2.
    by_hand = torch.tensor([1, 1, 0.01, 0.01, 2, 2, 0.02, 0.02], dtype=torch.float64)
    torch.testing.assert_close(rotary_angles(16, 8)[18], by_hand)
    # A pair (1, 0) at row 1 turns to (cos 1, sin 1), the pair (0, 1) at column 2 to (-sin 2, cos 2).
    x = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0]).expand(1, 1, 256, 8)
    expected = torch.tensor([0.5403023, 0.8414710, 0, 0, -0.9092974, -0.4161468, 0, 0])
    torch.testing.assert_close(Rotation(16, 8)(x)[0, 0, 18], expected)


@pytest.mark.parametrize("side", [4, 8, 32])
def test_every_grid_counts_its_own_places(side):
    # Row 1, column 2 turns by 1 and 2 on any grid, as on 16 x 16 above; the last token by side - 1 both ways.
    by_hand = torch.tensor([1, 1, 0.01, 0.01, 2, 2, 0.02, 0.02], dtype=torch.float64)
    angles = rotary_angles(side, 8)
    torch.testing.assert_close(angles[side + 2], by_hand)
    last = torch.tensor([1, 1, 0.01, 0.01] * 2, dtype=torch.float64) * (side - 1)
    torch.testing.assert_close(angles[-1], last)
    corner = rotary_angles(32, 72).reshape(32, 32, 72)[:side, :side]
    torch.testing.assert_close(rotary_angles(side, 72).reshape(side, side, 72), corner, rtol=0, atol=0)


def test_tables_of_other_positions_are_not_loaded():
    model = tiny()  # 8 x 8 latents, patches of 2
    own, stretched = model.state_dict(), rotary_angles(4, model.width // model.heads) * 16 / 4
    model.load_state_dict({name: value.bfloat16() for name, value in own.items()})
    for part, table in (("cos", stretched.cos()), ("sin", stretched.sin())):
        with pytest.raises(
            ValueError,
            match=rf"rotary positions \(freqs_{part}\) are not the unscaled positions 0..3 of its 4 x 4 grid",
        ):
            model.load_state_dict({**own, f"feat_rope.freqs_{part}": table.float()})
    assert torch.equal(model.feat_rope.freqs_cos, own["feat_rope.freqs_cos"].bfloat16().float())


def test_rotated_scores_depend_on_offsets_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 1, 16, generator=generator).expand(1, 2, 25, 16) for _ in range(2))
    rotation = Rotation(5, 16)
    scores = torch.einsum("bhie,bhje->hij", rotation(q), rotation(k)).reshape(2, 5, 5, 5, 5)
    # Query at (r, c), key at (r + 1, c - 2): the same for all such pairs, unlike (r - 1, c + 2).
    ahead = torch.stack([scores[:, r, c, r + 1, c - 2] for r in range(4) for c in range(2, 5)])
    behind = torch.stack([scores[:, r + 1, c - 2, r, c] for r in range(4) for c in range(2, 5)])
    torch.testing.assert_close(ahead, ahead[:1].expand_as(ahead))
    torch.testing.assert_close(behind, behind[:1].expand_as(behind))
    assert ((ahead - behind).abs() > 0.1).all()
    torch.testing.assert_close(rotation(q).norm(dim=-1), q.norm(dim=-1))
