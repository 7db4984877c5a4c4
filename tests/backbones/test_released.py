"""Published files: layouts written by hand, read, told apart, checked name by name, refused."""

import argparse
import math
import os
import pathlib

import pytest
import torch

from workbench.backbones import released as module
from workbench.backbones.released import read_released
from workbench.config import plugin_class

LIGHTNING = {"rmsnorm", "swiglu", "rope"}


@pytest.mark.parametrize(
    "family, depth, width, options, count",
    [
        ("sit", 28, 1152, {"wide": True, "tokens": 256, "heads": 16}, 675_129_632),
        ("dit", 28, 1152, {"wide": True, "tokens": 256, "heads": 16}, 675_129_632),
        ("layersync", 12, 768, {"wide": True, "tokens": 256, "heads": 12}, 130_512_416),
        ("repa", 24, 1024, {"tokens": 256, "heads": 16}, 458_086_416),
        ("sra", 12, 768, {"tokens": 1024, "heads": 12}, 130_500_112 + 768 * 768),
        ("self-transcendence", 12, 768, {"tokens": 256, "heads": 12, "flags": {"qk_norm"}}, 130_500_112 + 3072),
        (
            "lightningdit",
            28,
            1152,
            {"flags": LIGHTNING, "channels": 32, "patch": 1, "tokens": 256, "heads": 16},
            675_256_736,
        ),
    ],
)
def test_full_sizes_fit_name_by_name(tmp_path, monkeypatch, family, depth, width, options, count, shapes):
    layout = shapes(depth, width, **options)
    assert sum(math.prod(shape) for name, shape in layout.items() if "rope" not in name) == count
    blank = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
    monkeypatch.setattr(module, "load_file", lambda path: {"ema": blank})
    found = read_released("full.pt", family=family)
    size = {12: "b", 24: "l", 28: "xl"}[depth]
    assert (found.options["size"], found.classes, found.options["learn_sigma"]) == (size, 1000, "wide" in options)
    assert found.height == options.get("patch", 2) * math.isqrt(options["tokens"])
    assert found.channels == options.get("channels", 4)
    expected = {"swiglu": True, "rope": True, "rmsnorm": True, "wo_shift": False} if family == "lightningdit" else {}
    assert {key: found.options[key] for key in expected} == expected
    assert found.options["qk_norm"] == ("flags" in options and "qk_norm" in options["flags"])


def test_a_namespace_loads_and_its_step_and_settings_are_kept(tmp_path, published, save):
    args = argparse.Namespace(model="SiT-B/2", num_classes=1000, qk_norm=False, betas=[0.9], path_type="Linear")
    content = {"model": published(1), "ema": published(0), "opt": {"state": {}}, "args": args, "steps": 400_000}
    found = read_released(save(tmp_path, content), family="repa")
    assert found.step == 400_000 and found.wrapped
    assert found.args == {"model": "SiT-B/2", "num_classes": 1000, "qk_norm": False, "path_type": "Linear"}
    assert torch.equal(found.tensors["pos_embed"], published(0)["pos_embed"])
    raw = read_released(save(tmp_path, content), family="repa", weights="raw")
    assert torch.equal(raw.tensors["pos_embed"], published(1)["pos_embed"])


class Maker:
    """Pickled, it makes a folder when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_any_other_class_is_refused(tmp_path, published, save):
    for thing, asked in ((pathlib.PurePosixPath("a"), "pathlib"), (Maker(tmp_path / "ran"), "posix.mkdir")):
        file = save(tmp_path, {"ema": published(), "args": thing})
        with pytest.raises(ValueError, match=f"asks for {asked}.*, which could run code; it is not loaded"):
            read_released(file, family="repa")
    assert not (tmp_path / "ran").exists()


def test_damaged_missing_and_foreign_files(tmp_path, published, save):
    for name, content in (("a.pt", b"nothing"), ("b.safetensors", b"nothing"), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged or .*"):
            read_released(tmp_path / name)
    cut = save(tmp_path, published())
    cut.write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(ValueError, match="file.pt is damaged"):
        read_released(cut)
    with pytest.raises(ValueError, match="there is no file .*gone.pt"):
        read_released(tmp_path / "gone.pt")
    with pytest.raises(ValueError, match="'.ckpt' is not known.*Allowed: .pt, .pth, .safetensors"):
        read_released(tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match="holds a list"):
        read_released(save(tmp_path, [1, 2]))
    with pytest.raises(ValueError, match="file.pt: it holds no weights .*; it holds 'epoch', 'vae'"):
        read_released(save(tmp_path, {"epoch": 1, "vae": {"a": torch.ones(1)}}))
    with pytest.raises(ValueError, match="it lacks x_embedder.proj.weight, t_embedder"):
        read_released(save(tmp_path, {"pos_embed": torch.ones(1, 4, 4)}))


def test_old_file_format_and_half_precision(tmp_path, published):
    tensors = {name: value.half() for name, value in published().items()}
    file = tmp_path / "old.pth"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    found = read_released(file, family="sra")
    assert {value.dtype for value in found.tensors.values()} == {torch.float32}
    assert torch.equal(found.tensors["pos_embed"], tensors["pos_embed"].float())


def test_absent_weights_are_not_replaced_by_others(tmp_path, published, save):
    with pytest.raises(ValueError, match="it has no 'ema' weights, only 'raw' ones"):
        read_released(save(tmp_path, {"model": published()}), family="sra")
    with pytest.raises(ValueError, match="it has no 'raw' ones"):
        read_released(save(tmp_path, published()), family="sra", weights="raw")
    with pytest.raises(ValueError, match="weights 'best' is not known"):
        read_released(save(tmp_path, published()), family="sra", weights="best")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_stripped(tmp_path, prefix, published, save):
    tensors = published()
    found = read_released(save(tmp_path, {f"{prefix}{name}": value for name, value in tensors.items()}), family="repa")
    assert found.tensors.keys() == tensors.keys()


def test_legacy_decoder_blocks_follow_the_blocks(tmp_path, published, save):
    tensors = published()
    old = {}
    for name, value in tensors.items():
        i = int(name.split(".")[1]) if name.startswith("blocks.") else 0
        old[name.replace(f"blocks.{i}.", f"decoder_blocks.{i - 8}.", 1) if i >= 8 else name] = value
    assert "decoder_blocks.3.mlp.fc1.weight" in old and "blocks.8.mlp.fc1.weight" not in old
    found = read_released(save(tmp_path, old), family="repa")
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())


HEADS = {
    "repa": {f"projectors.0.{k}.{part}": torch.ones(2) for k in (0, 2, 4) for part in ("weight", "bias")},
    "self-transcendence": {f"projectors.{k}.weight": torch.ones(2) for k in (0, 2, 4)}
    | {"projectors_final.linear.weight": torch.ones(2)},
    "sra": {"ap_head.linear1.weight": torch.ones(2), "ap_head.linear2.bias": torch.ones(2)},
}


@pytest.mark.parametrize("family", HEADS)
def test_heads_tell_the_family_and_are_kept_apart(tmp_path, family, published, save):
    tensors = published(flags={"qk_norm"})
    found = read_released(save(tmp_path, {"ema": tensors | HEADS[family]}))
    assert found.family == family
    assert found.heads.keys() == HEADS[family].keys() and found.tensors.keys() == tensors.keys()


@pytest.mark.parametrize(
    "family, options, args",
    [
        ("sit", {"wide": True}, {"model": "SiT-XL/2"}),
        ("layersync", {"wide": True}, {"model": "SiT-XL/2", "gt_encoder_depth": 16}),
        ("dit", {"wide": True}, {"model": "DiT-XL/2"}),
        ("lightningdit", {"channels": 32, "patch": 1, "flags": LIGHTNING}, {}),
        ("lightningdit", {"channels": 32, "patch": 1, "flags": {"rmsnorm"}}, {}),
    ],
)
def test_arguments_and_names_tell_the_family(tmp_path, family, options, args, published, save):
    content = {"ema": published(**options), "args": argparse.Namespace(**args)}
    assert read_released(save(tmp_path, content)).family == family


SIT = {"wide": True}
CONTRADICTIONS = [
    ({}, HEADS["repa"], {}, "sit", "a repa file (it has projectors.0.0.weight)"),
    ({}, HEADS["sra"], {}, "layersync", "a sra file (it has ap_head.linear1.weight)"),
    (SIT, {}, {"model": "SiT-XL/2"}, "repa", "a sit file (its model is SiT-XL/2, with twice the channels)"),
    (SIT, {}, {"model": "DiT-XL/2"}, "sit", "a dit file (its model is DiT-XL/2)"),
    (SIT, {}, {"model": "SiT-XL/2"}, "dit", "a sit file (its model is SiT-XL/2, with twice the channels)"),
    ({"flags": {"rmsnorm"}}, {}, {}, "sit", "a lightningdit file (it has blocks.0.norm1.weight)"),
]


@pytest.mark.parametrize("options, heads, args, stated, said", CONTRADICTIONS)
def test_a_family_that_the_file_contradicts_is_refused(tmp_path, options, heads, args, stated, said, published, save):
    file = save(tmp_path, {"ema": published(**options) | heads, "args": argparse.Namespace(**args)})
    with pytest.raises(ValueError) as refused:
        read_released(file, family=stated)
    assert str(refused.value) == f"file.pt: it is {said}, not {stated}"


def test_a_family_of_the_same_use_may_be_stated(tmp_path, published, save):
    assert read_released(save(tmp_path, {"ema": published() | HEADS["repa"]}), family="sra").family == "sra"
    content = {"ema": published(wide=True), "args": argparse.Namespace(model="SiT-XL/2")}
    assert read_released(save(tmp_path, content), family="layersync").family == "layersync"


@pytest.mark.parametrize(
    "options, heads", [({"wide": True}, {}), ({}, {}), ({"wide": True}, HEADS["sra"])], ids=["wide", "narrow", "both"]
)
def test_without_evidence_the_family_must_be_stated(tmp_path, options, heads, published, save):
    file = save(tmp_path, published(**options) | heads)
    with pytest.raises(ValueError, match=r"file.pt: nothing in it tells .*; state its family: sit, repa, .*, dit$"):
        read_released(file)
    assert read_released(file, family="dit").family == "dit"
    with pytest.raises(ValueError, match="family 'dis' is not known; did you mean 'dit'"):
        read_released(file, family="dis")


@pytest.mark.parametrize("rows, args", [(1000, {}), (10, {"num_classes": 10})])
def test_a_label_table_without_a_null_row_is_refused(tmp_path, rows, args, published, save):
    content = {"ema": published(rows=rows), "args": argparse.Namespace(**args)}
    with pytest.raises(ValueError, match=f"its label table has {rows} rows for {rows} classes: no null class"):
        read_released(save(tmp_path, content), family="repa")
    assert read_released(save(tmp_path, published(rows=11)), family="repa").classes == 10


def test_noise_paths_and_predictions(tmp_path, published, save):
    def path(**args):
        content = {"ema": published(wide=True), "args": argparse.Namespace(**args)}
        return read_released(save(tmp_path, content), family="sit").path

    assert path() == path(path_type="Linear", prediction="velocity") == "linear"
    assert path(path_type="GVP") == path(path_type="cosine") == "cosine"
    with pytest.raises(ValueError, match="its noise path 'vp' is not known"):
        path(path_type="VP")
    with pytest.raises(ValueError, match="it predicts 'score'; only velocities"):
        path(prediction="score")


def test_misfits_are_counted_by_kind(tmp_path, published, save):
    tensors = published()
    del tensors["blocks.3.mlp.fc1.bias"], tensors["blocks.4.mlp.fc1.bias"]
    tensors |= {"bn.running_mean": torch.ones(4), "blocks.5.attn.qkv.weight": torch.ones(3, 3)}
    with pytest.raises(ValueError) as refused:
        read_released(save(tmp_path, tensors), family="repa")
    report = str(refused.value)
    assert "file.pt: it is not the sit of size 'nano'" in report
    assert "lacks 2 tensors: blocks.*.mlp.fc1 (2), such as blocks.3.mlp.fc1.bias, blocks.4.mlp.fc1.bias" in report
    assert "has besides 1 tensors: bn (1), such as bn.running_mean" in report
    assert "has in another shape 1 tensors: blocks.*.attn.qkv (1)" in report


def test_an_unknown_size(tmp_path, published, save):
    short = {name: value for name, value in published().items() if not name.startswith("blocks.11.")}
    sizes = r"pico \(12 x 48\), nano \(12 x 128\), s"
    with pytest.raises(ValueError, match=f"11 blocks of width 128 are no size of sit; it has {sizes}"):
        read_released(save(tmp_path, short), family="repa")


@pytest.mark.parametrize("family", ["repa", "lightningdit"])
def test_another_height_has_its_own_positions(tmp_path, family, published, save, build, batch):
    options = {"flags": LIGHTNING, "channels": 32, "patch": 1, "tokens": 64} if family == "lightningdit" else {}
    file = save(tmp_path, {"ema": published(**options)})
    moved, found = read_released(file, family=family, height=16), read_released(file, family=family)
    assert (found.height, moved.height) == (8, 16)
    fresh = plugin_class("backbone", found.backbone)(
        **found.options, channels=found.channels, height=16, classes=found.classes
    )
    fresh.initialize(torch.Generator().manual_seed(0))
    fixed = [name for name in fresh.state_dict() if name == "pos_embed" or "rope" in name]
    assert len(fixed) == (3 if family == "lightningdit" else 1)
    for name in fixed:
        assert torch.equal(moved.tensors[name], fresh.state_dict()[name])
    assert all(torch.equal(moved.tensors[name], value) for name, value in found.tensors.items() if name not in fixed)
    assert build(moved)(*batch(found.channels, 16)).isfinite().all()
    with pytest.raises(ValueError, match="latents of height 0 cannot be cut into patches"):
        read_released(file, family=family, height=0)
