"""Published state dicts, written from the facts their code bases have in common, and the network they belong to."""

import math
import pathlib

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import gelu, layer_norm, silu

from workbench.backbones.lightningdit import Rotation
from workbench.config import plugin_class

WIDTH = 128  # with depth 12 and two heads: the size "nano"


def _shapes(depth, width, *, channels=4, patch=2, tokens=16, rows=1001, wide=False, heads=2, flags=()) -> dict:
    """Names and shapes of a published state dict, from the facts that their code bases have in common."""
    e, inner, found = width // heads, int(2 / 3 * 4 * width), {"pos_embed": (1, tokens, width)}
    found["x_embedder.proj.weight"] = (width, channels, patch, patch)
    found["y_embedder.embedding_table.weight"] = (rows, width)
    linears = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * channels * (2 if wide else 1), width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    if "rope" in flags:
        found |= {f"feat_rope.freqs_{part}": (tokens, e) for part in ("cos", "sin")}
    norms = ["final_layer.norm_final"]
    for i in range(depth):
        linears[f"blocks.{i}.attn.qkv"] = (3 * width, width)
        linears[f"blocks.{i}.attn.proj"] = (width, width)
        linears[f"blocks.{i}.adaLN_modulation.1"] = ((4 if "wo_shift" in flags else 6) * width, width)
        if "swiglu" in flags:
            linears |= {f"blocks.{i}.mlp.w12": (2 * inner, width), f"blocks.{i}.mlp.w3": (width, inner)}
        else:
            linears |= {f"blocks.{i}.mlp.fc1": (4 * width, width), f"blocks.{i}.mlp.fc2": (width, 4 * width)}
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
        if "qk_norm" in flags:
            parts = ("weight",) if "rmsnorm" in flags else ("weight", "bias")
            found |= {f"blocks.{i}.attn.{one}_norm.{part}": (e,) for one in "qk" for part in parts}
    if "rmsnorm" in flags:
        found |= {f"{name}.weight": (width,) for name in norms}
    found["x_embedder.proj.bias"] = (width,)
    for name, (outputs, inputs) in linears.items():
        found |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return found


def _published(seed: int = 0, **options) -> dict[str, torch.Tensor]:
    """Random weights in a published layout, with rotary tables that are what they claim to be."""
    generator = torch.Generator().manual_seed(seed)
    flags, tokens = options.get("flags", ()), options.get("tokens", 16)
    tensors = {}
    for name, shape in _shapes(12, WIDTH, **options).items():
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        tensors[name] = scale * torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            tensors[name] += 1
    if "rope" in flags:
        table = Rotation(math.isqrt(tokens), WIDTH // 2)
        tensors["feat_rope.freqs_cos"], tensors["feat_rope.freqs_sin"] = table.freqs_cos, table.freqs_sin
    return tensors


def linear(p: dict, name: str, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: dict, name: str, x, eps: float = 1e-6):
    weight, bias = p.get(f"{name}.weight"), p.get(f"{name}.bias")
    if weight is not None and bias is None:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return layer_norm(x, x.shape[-1:], weight, bias, eps)


def rotated(p: dict, x):
    if "feat_rope.freqs_cos" not in p:
        return x
    quarter = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * p["feat_rope.freqs_cos"] + quarter * p["feat_rope.freqs_sin"]


def block(p: dict, i: int, x, c, heads: int = 2):
    prefix, d = f"blocks.{i}.", x.shape[-1]
    m = list(linear(p, f"{prefix}adaLN_modulation.1", silu(c))[:, None].split(d, -1))
    if len(m) == 4:
        m = [0, m[0], m[1], 0, m[2], m[3]]
    qkv = linear(p, f"{prefix}attn.qkv", norm(p, f"{prefix}norm1", x) * (1 + m[1]) + m[0])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.split(d, -1))
    if f"{prefix}attn.q_norm.weight" in p:
        eps = 1e-5 if f"{prefix}attn.q_norm.bias" in p else 1e-6
        q, k = norm(p, f"{prefix}attn.q_norm", q, eps), norm(p, f"{prefix}attn.k_norm", k, eps)
    q, k = rotated(p, q), rotated(p, k)
    mixed = (q @ k.transpose(-1, -2) / math.sqrt(d // heads)).softmax(-1) @ v
    x = x + m[2] * linear(p, f"{prefix}attn.proj", mixed.transpose(1, 2).flatten(2))
    u = norm(p, f"{prefix}norm2", x) * (1 + m[4]) + m[3]
    if f"{prefix}mlp.w12.weight" in p:
        gate, value = linear(p, f"{prefix}mlp.w12", u).chunk(2, -1)
        return x + m[5] * linear(p, f"{prefix}mlp.w3", silu(gate) * value)
    return x + m[5] * linear(p, f"{prefix}mlp.fc2", gelu(linear(p, f"{prefix}mlp.fc1", u), approximate="tanh"))


def _original(tensors: dict, x, t, y):
    """What the code that wrote the file computes from it at its own time t: layers 0 .. 12, and its whole output."""
    p = {name: value.double() for name, value in tensors.items()}
    patch, channels = p["x_embedder.proj.weight"].shape[-1], p["x_embedder.proj.weight"].shape[1]
    side = x.shape[-1] // patch
    tiles = x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    weight = p["x_embedder.proj.weight"].flatten(1)
    layers = [tiles @ weight.T + p["x_embedder.proj.bias"] + p["pos_embed"]]
    angles = t[:, None] * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    c = linear(p, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear(p, "t_embedder.mlp.2", silu(c)) + p["y_embedder.embedding_table.weight"][y]
    for i in range(12):
        layers.append(block(p, i, layers[-1], c))
    shift, scale = linear(p, "final_layer.adaLN_modulation.1", silu(c))[:, None].chunk(2, -1)
    u = linear(p, "final_layer.linear", norm(p, "final_layer.norm_final", layers[-1]) * (1 + scale) + shift)
    outputs = u.shape[-1] // patch**2
    u = u.reshape(len(x), side, side, patch, patch, outputs).permute(0, 5, 1, 3, 2, 4)
    return layers, u.reshape(len(x), outputs, *x.shape[2:]), channels


def _build(found, dtype=torch.float64):
    model = plugin_class("backbone", found.backbone)(
        **found.options, channels=found.channels, height=found.height, classes=found.classes, null_row=found.null_row
    ).to(dtype)
    model.load_state_dict(found.tensors)
    return model.eval().requires_grad_(False)


def _batch(channels: int = 4, height: int = 8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, height, height, generator=generator, dtype=dtype)
    return x, torch.tensor([0.05, 0.5, 0.93], dtype=dtype), torch.tensor([0, 999, 1000])


def _save(folder: pathlib.Path, content, name: str = "file.pt") -> pathlib.Path:
    file = folder / name
    save_file(content, file) if name.endswith("safetensors") else torch.save(content, file)
    return file


@pytest.fixture(scope="session")
def shapes():
    return _shapes


@pytest.fixture(scope="session")
def published():
    return _published


@pytest.fixture(scope="session")
def original():
    return _original


@pytest.fixture(scope="session")
def save():
    return _save


@pytest.fixture(scope="session")
def build():
    return _build


@pytest.fixture(scope="session")
def batch():
    return _batch
