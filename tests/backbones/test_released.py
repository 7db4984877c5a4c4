"""Published files: layouts written by hand, read, told apart, checked name by name, refused."""

import argparse
import math
import os
import pathlib
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from workbench.backbones import released as module
from workbench.backbones.lightningdit import rotary_angles
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
def test_full_sizes_fit_name_by_name(family, depth, width, options, count, shapes):
    layout = shapes(depth, width, **options)
    assert sum(math.prod(shape) for name, shape in layout.items() if "rope" not in name) == count
    blank = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
    found = module._understand(blank, True, {}, family, None, None)  # gigabytes, of which only the shapes count here
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
        with pytest.raises(ValueError, match=f"needs {asked}.*, which could execute code; it is not loaded"):
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
    with pytest.raises(ValueError, match="has a list"):
        read_released(save(tmp_path, [1, 2]))
    with pytest.raises(ValueError, match="file.pt: it has no weights .*; it has 'epoch', 'vae'"):
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
    with pytest.raises(ValueError, match="it has no 'ema' weights, only 'raw' weights; request those"):
        read_released(save(tmp_path, {"model": published()}), family="sra")
    with pytest.raises(ValueError, match="it has no 'raw' weights"):
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
    with pytest.raises(
        ValueError, match=r"file.pt: its time direction .* cannot be inferred; give its family: sit, repa, .*, dit$"
    ):
        read_released(file)
    assert read_released(file, family="dit").family == "dit"
    with pytest.raises(ValueError, match="family 'dis' is not known; did you mean 'dit'"):
        read_released(file, family="dis")


@pytest.mark.parametrize(
    "rows, args, stated, read",
    [
        (1001, {}, None, "1001 rows read as 1000 classes and a null row"),
        (1001, {"num_classes": 1000}, None, "1001 rows read as 1000 classes and a null row"),
        (11, {"num_classes": 10}, None, "11 rows read as 10 classes and a null row"),
        (11, {}, 10, "11 rows read as 10 classes and a null row"),
        (10, {}, 9, "10 rows read as 9 classes and a null row"),
        (1000, {}, 999, "1000 rows read as 999 classes and a null row"),
        (10, {}, 10, "10 rows read as 10 classes and no null row: it cannot be guided"),
        (10, {"num_classes": 10}, None, "10 rows read as 10 classes and no null row: it cannot be guided"),
        (1000, {}, 1000, "1000 rows read as 1000 classes and no null row: it cannot be guided"),
        (1001, {}, 1001, "1001 rows read as 1001 classes and no null row: it cannot be guided"),
        (11, {"num_classes": True}, 10, "11 rows read as 10 classes and a null row"),  # not a number
    ],
)
def test_the_label_table_is_read_as_told(tmp_path, rows, args, stated, read, published, save, build, batch):
    content = {"ema": published(rows=rows), "args": argparse.Namespace(**args)}
    found = read_released(save(tmp_path, content), family="repa", classes=stated)
    assert found.label_table == read
    model = build(found)
    assert len(model.y_embedder.embedding_table.weight) == rows
    if found.null_row:
        assert model.null_label == found.classes == rows - 1
    else:
        with pytest.raises(ValueError, match=f"label table of {rows} classes and no null row: .* no guidance"):
            _ = model.null_label
    x, t, _ = batch()
    assert model(x, t, torch.tensor([0, 1, found.classes - 1])).isfinite().all()


@pytest.mark.parametrize(
    "rows, args, stated, said",
    [
        (
            10,
            {},
            None,
            r"has 10 rows, .* 9 classes and a null row or 10 classes without one; .* \(--classes 9 or --classes 10\)",
        ),
        (1000, {}, None, "has 1000 rows, which may be 999 classes and a null row or 1000 classes without one"),
        (11, {}, None, "has 11 rows, .*--classes 10 or --classes 11"),
        (11, {}, 5, "has 11 rows; 5 classes have 5, or 6 with a null row"),
        (11, {"num_classes": 1000}, None, "has 11 rows; 1000 classes have 1000, or 1001 with a null row"),
        (11, {"num_classes": 10}, 11, "was trained on 10 classes according to its settings, not on 11"),
        (11, {}, 0, "classes must be 1 to 1,000,000; got 0"),
        (11, {}, 10**9, "classes must be 1 to 1,000,000; got 1,000,000,000"),
    ],
)
def test_a_label_table_that_is_not_told_is_asked_for(tmp_path, rows, args, stated, said, published, save):
    file = save(tmp_path, {"ema": published(rows=rows), "args": argparse.Namespace(**args)})
    with pytest.raises(ValueError, match=said):
        read_released(file, family="repa", classes=stated)


def test_noise_paths_and_predictions(tmp_path, published, save):
    def path(**args):
        content = {"ema": published(wide=True), "args": argparse.Namespace(**args)}
        return read_released(save(tmp_path, content), family="sit").path

    assert path() == path(path_type="Linear", prediction="velocity") == "linear"
    assert path(path_type="GVP") == path(path_type="cosine") == "cosine"
    with pytest.raises(ValueError, match="its noise path 'vp' is not known"):
        path(path_type="VP")
    with pytest.raises(ValueError, match="it predicts 'score'; only velocity models"):
        path(prediction="score")


NAN, INF = float("nan"), float("inf")
FC1 = "blocks.3.mlp.fc1.weight"


def damaged(tensor: torch.Tensor, *values: float) -> torch.Tensor:
    """A copy whose first numbers are these."""
    tensor = tensor.clone()
    tensor.view(-1)[: len(values)] = torch.tensor(values, dtype=tensor.dtype)
    return tensor


UNUSUAL = {
    "NaN": (lambda w: damaged(w, NAN, NAN), f"2 of the 65,536 numbers of {FC1} are NaN or infinite"),
    "infinite": (lambda w: damaged(w, INF, -INF, 1.0), f"2 of the 65,536 numbers of {FC1} are NaN or infinite"),
    "beyond float32": (lambda w: damaged(w.double(), 1e300), f"1 of the 65,536 numbers of {FC1} are NaN or infinite"),
    "complex": (lambda w: w.to(torch.complex64), rf"{FC1} has complex numbers \(torch.complex64\); weights are dense"),
    "integers": (
        lambda w: w.to(torch.int8),
        f"{FC1} has numbers of torch.int8; .* float16, bfloat16, float32, float64",
    ),
    "sparse": (lambda w: w.to_sparse(), rf"{FC1} is sparse \(torch.sparse_coo\)"),
    "compressed rows": (lambda w: w.to_sparse_csr(), rf"{FC1} is sparse \(torch.sparse_csr\)"),
    "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), rf"{FC1} is quantised \(torch.qint8\)"),
    "meta": (lambda w: w.to("meta"), f"{FC1} has a shape but no numbers"),
    "one number everywhere": (
        lambda w: torch.zeros(1).expand(1 << 40, 1 << 20),
        f"up to {FC1} its tensors take [0-9,]* bytes, and the whole file has [0-9,]*$",
    ),
    "another shape": (lambda w: w[:, :1].clone(), r"has with another shape 1 tensors: blocks.\*.mlp.fc1 \(1\)"),
    "no axes": (lambda w: w.sum(), r"has with another shape 1 tensors: blocks.\*.mlp.fc1 \(1\)"),
}


@pytest.mark.filterwarnings("ignore:Sparse|.*quantiz|.*TypedStorage|.*quantize_per_tensor")
@pytest.mark.parametrize("change, said", UNUSUAL.values(), ids=UNUSUAL)
def test_weights_that_are_no_plain_finite_numbers(tmp_path, change, said, published, save):
    tensors = published()
    tensors[FC1] = change(tensors[FC1])
    with pytest.raises(ValueError, match=f"^file.pt: .*{said}"):
        read_released(save(tmp_path, {"ema": tensors}), family="repa")


def test_every_broken_tensor_counts_and_heads_too(tmp_path, published, save):
    tensors = {name: damaged(value, NAN) for name, value in published().items()}
    with pytest.raises(
        ValueError,
        match=f": 1 of the [0-9,]* numbers of .* infinite in float32, and some of {len(tensors) - 1} more tensors",
    ):
        read_released(save(tmp_path, tensors, "file.safetensors"), family="repa")
    head = {"projectors.0.0.weight": torch.tensor([[1.0, INF]])}
    with pytest.raises(ValueError, match="1 of the 2 numbers of projectors.0.0.weight are NaN or infinite"):
        read_released(save(tmp_path, published() | head), family="repa")
    content = {"ema": published(), "model": tensors}  # not what is asked for
    assert read_released(save(tmp_path, content), family="repa").tensors.keys() == tensors.keys()


def test_shared_and_foreign_views_become_tensors_of_their_own(tmp_path, published, save):
    tensors = published()
    tensors["blocks.1.mlp.fc1.weight"] = tensors["blocks.0.mlp.fc1.weight"]
    tensors["blocks.2.mlp.fc1.weight"] = torch.nn.Parameter(tensors["blocks.2.mlp.fc1.weight"].T.clone().T)
    file = save(tmp_path, {"ema": tensors, "opt": torch.zeros(10**5)})  # room for the one that is there once
    found = read_released(file, family="repa").tensors
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert all(type(value) is torch.Tensor and value.is_contiguous() for value in found.values())
    places = [value.untyped_storage().data_ptr() for value in found.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            lambda w: {i: value for i, value in enumerate(w.values())},
            "its weights are not named: it has a key of type int",
        ),
        (lambda w: {("a", name): value for name, value in w.items()}, "it has a key of type tuple"),
        (
            lambda w: {name + "\n" * 300: value for name, value in w.items()},
            "its weights are not named: it has 'pos_embed",
        ),
        (
            lambda w: {"state_dict": w},
            "it has no weights under 'ema', 'model' or at the top level; it has 'state_dict'$",
        ),
        (lambda w: {"model": {"state_dict": w}}, "it has no weights .*; it has 'model'$"),
        (lambda w: {"ema": {}}, "it has no weights"),
        (lambda w: {}, "it has no weights .*; it has nothing"),
        (lambda w: {f"k{i}": i for i in range(10**4)}, "it has 'k0', .*'k5', and 9,994 more$"),
        (lambda w: {"ema": {**w, "extra": 1}}, "it has no weights"),
        (lambda w: w | {"module.pos_embed": w["pos_embed"]}, "1 of its weights have the same name as another one"),
        (lambda w: w | {"blocks.x.mlp": torch.ones(1)}, "also has 1 tensors: blocks.x"),
        (lambda w: w | {f"blocks.{'9' * 50}.mlp": torch.ones(1)}, "also has 1 tensors"),
        (lambda w: w | {"blocks.999999.mlp": torch.ones(1)}, "1000000 blocks of width 128 are not a size of sit"),
        (lambda w: w | {"pos_embed": torch.ones(3)}, r"pos_embed has the shape \(3,\); it must have 3 axes"),
        (lambda w: w | {"pos_embed": torch.ones(1, 0, 128)}, r"pos_embed has the shape \(1, 0, 128\); .* none empty"),
        (lambda w: w | {"pos_embed": torch.ones(1, 5, 128)}, "has with another shape 1 tensors: pos_embed"),
        (lambda w: w | {"x_embedder.proj.weight": torch.ones(128)}, "x_embedder.proj.weight has the shape"),
        (
            lambda w: w | {"y_embedder.embedding_table.weight": torch.tensor(1.0)},
            "embedding_table.weight has the shape",
        ),
        (lambda w: {"ema": w, "steps": -5}, "its step is -5; allowed are 0 to"),
        (lambda w: {"ema": w, "steps": 10**30}, "its step is 1000000"),
    ],
)
def test_state_dicts_of_odd_shapes(tmp_path, content, said, published, save):
    with pytest.raises(ValueError, match=f"^file.pt: .*{said}"):
        read_released(save(tmp_path, content(published())), family="repa")


def test_objects_with_attributes_of_their_own_are_no_weights(tmp_path, published, save):
    odd = OrderedDict(published())
    odd.values = odd.keys = "no method"
    with pytest.raises(ValueError, match=r"file.pt is damaged or not a checkpoint \(\w+Error\)"):
        read_released(save(tmp_path, odd), family="repa")
    with pytest.raises(ValueError, match="file.pt: its content is not usable as weights"):
        read_released(save(tmp_path, {"ema": odd}), family="repa")
    tensors = published()
    tensors["pos_embed"].numel = 5
    with pytest.raises(ValueError, match="file.pt: its content is not usable as weights"):
        read_released(save(tmp_path, tensors), family="repa")


def test_settings_that_are_kept_are_short_and_plain(tmp_path, published, save):
    args = {
        "a": 1,
        "long": "x" * 10**6,
        "nan": NAN,
        5: "five",
        ("t",): 1,
        "inner": {"b": 1},
        "huge": 10**5000 // 10**4999,
    }
    found = read_released(save(tmp_path, {"ema": published(), "args": args, "steps": True}), family="repa")
    assert found.args == {"a": 1, "huge": 10} and found.step == 0


def zipped(file: pathlib.Path, kind: int, content: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


class Hungry:
    """Pickled, a bytearray of a terabyte."""

    def __reduce__(self):
        return bytearray, (10**12,)


def test_a_file_never_unpacks_to_more_than_its_size(tmp_path, published, save):
    whole = save(tmp_path, {"ema": published()})
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with pytest.raises(ValueError, match="packed.pt has compressed members; torch.save stores them"):
        read_released(zipped(tmp_path / "packed.pt", zipfile.ZIP_DEFLATED, members))
    assert read_released(zipped(tmp_path / "stored.pt", zipfile.ZIP_STORED, members), family="repa").classes == 1000
    torch.save({"ema": published(), "args": Hungry()}, tmp_path / "hungry.pt")
    torch.save({"ema": published(), "args": Hungry()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("hungry.pt", "old.pt"):
        with pytest.raises(ValueError, match=f"{name} allocates memory beside its tensors"):
            read_released(tmp_path / name)
    large = {name: data if not name.endswith("data.pkl") else b"0" * 40_000_000 for name, data in members.items()}
    with pytest.raises(
        ValueError, match="large.pt has 40,000,000 bytes beside its tensor data; the limit is 32,000,000"
    ):
        read_released(zipped(tmp_path / "large.pt", zipfile.ZIP_STORED, large))
    lying = whole.read_bytes().replace((65_536 * 4).to_bytes(4, "little"), (2**31).to_bytes(4, "little"))
    (tmp_path / "lying.pt").write_bytes(lying)
    with pytest.raises(ValueError, match="lying.pt would unpack to [0-9,]* bytes and has"):
        read_released(tmp_path / "lying.pt")


def safetensors_bytes(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


ONE = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}'
HEADERS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header of exabytes": safetensors_bytes(b"{}", size=2**62),
    "a header beyond the file": safetensors_bytes(b"{}", size=1000),
    "no JSON": safetensors_bytes(b"nonsense"),
    "no UTF-8": safetensors_bytes(b'{"\xff\xfe":1}'),
    "a list": safetensors_bytes(b"[]"),
    "deep": safetensors_bytes(b"[" * 100_000),
    "offsets beyond the file": safetensors_bytes(ONE % (b"[1000]", 4000), b"1234"),
    "a product that overflows": safetensors_bytes(ONE % (b"[4294967296,4294967296,4294967296]", 4), b"1234"),
    "a negative axis": safetensors_bytes(ONE % (b"[-1]", 4), b"1234"),
    "a shape of another size": safetensors_bytes(ONE % (b"[7]", 4), b"1234"),
    "an unknown kind": safetensors_bytes(ONE.replace(b"F32", b"F33") % (b"[1]", 4), b"1234"),
    "twice the same bytes": safetensors_bytes(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_safetensors_headers_that_lie(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.safetensors is damaged or not a checkpoint \(\w+\)"):
        read_released(tmp_path / "a.safetensors")


def test_heights_are_bounded_before_positions_are_computed(tmp_path, published, save):
    file = save(tmp_path, published())
    for height in (100_000, 514, 10**18):
        with pytest.raises(
            ValueError, match="latents of height .* tokens with patch size 2; at most 256 x 256 are supported"
        ):
            read_released(file, family="repa", height=height)
    assert read_released(file, family="repa", height=512).tensors["pos_embed"].shape == (1, 65_536, 128)
    assert read_released(file, family="repa", height=8).height == 8


def test_rotary_tables_of_other_positions_are_refused(tmp_path, published, save):
    tensors = published(flags=LIGHTNING, channels=32, patch=1)
    read_released(save(tmp_path, {name: value.half() for name, value in tensors.items()}))
    angles = rotary_angles(4, 64) * 16 / 4  # stretched over 16 x 16, as they once were here
    tensors |= {"feat_rope.freqs_cos": angles.cos().float(), "feat_rope.freqs_sin": angles.sin().float()}
    for height in (None, 8):
        with pytest.raises(
            ValueError,
            match=r"file.pt: its rotary positions \(feat_rope.freqs_cos\) are not the unscaled positions 0..3 of its 4",
        ):
            read_released(save(tmp_path, tensors), height=height)


def test_misfits_are_counted_by_kind(tmp_path, published, save):
    tensors = published()
    del tensors["blocks.3.mlp.fc1.bias"], tensors["blocks.4.mlp.fc1.bias"]
    tensors |= {"bn.running_mean": torch.ones(4), "blocks.5.attn.qkv.weight": torch.ones(3, 3)}
    with pytest.raises(ValueError) as refused:
        read_released(save(tmp_path, tensors), family="repa")
    report = str(refused.value)
    assert "file.pt: it does not match the sit of size 'nano'" in report
    assert "lacks 2 tensors: blocks.*.mlp.fc1 (2), such as blocks.3.mlp.fc1.bias, blocks.4.mlp.fc1.bias" in report
    assert "also has 1 tensors: bn (1), such as bn.running_mean" in report
    assert "has with another shape 1 tensors: blocks.*.attn.qkv (1)" in report


def test_an_unknown_size(tmp_path, published, save):
    short = {name: value for name, value in published().items() if not name.startswith("blocks.11.")}
    sizes = r"pico \(12 x 48\), nano \(12 x 128\), s"
    with pytest.raises(ValueError, match=f"11 blocks of width 128 are not a size of sit; it has {sizes}"):
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
    with pytest.raises(ValueError, match="latents of height 0 cannot be divided into patches"):
        read_released(file, family=family, height=0)
