"""Generated checkpoints of every kind: each is read whole or refused in a sentence, never by another error."""

import io
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.backbones.conversion import FAMILIES
from workbench.backbones.released import MOST_CLASSES, MOST_SIDE, read_released
from workbench.config import plugin_class

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

NUMBERS = st.one_of(st.integers(-3, 20), st.sampled_from([10**6, 2**31, 2**62, 2**64, -(2**63), 10**400]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=8), st.binary(max_size=8))
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.none(), st.tuples(st.text(max_size=3), st.integers()))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
SETTINGS = st.dictionaries(
    st.sampled_from(["num_classes", "model", "path_type", "prediction", "gt_encoder_depth", "other"]),
    st.one_of(VALUES, st.sampled_from(["SiT-XL/2", "DiT-B/4", "GVP", "velocity", 10, 1000])),
    max_size=3,
)
KINDS = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]
TENSORS = st.one_of(
    st.builds(torch.zeros, st.lists(st.integers(0, 4), max_size=5).map(tuple)),
    st.builds(lambda kind, n: torch.ones(n).to(kind), st.sampled_from(KINDS), st.integers(0, 4)),
    st.sampled_from([float("nan"), float("inf"), 1e300]).map(lambda x: torch.tensor([x], dtype=torch.float64)),
    st.builds(lambda n, m: torch.zeros(1).expand(2**n, 2**m), st.integers(0, 31), st.integers(0, 31)),
    st.sampled_from([torch.eye(3).to_sparse(), torch.eye(3, device="meta"), torch.nn.Parameter(torch.ones(2))]),
)


@pytest.fixture(scope="module")
def pico(shapes):
    """Weights of the smallest size, 11 rows of labels."""
    return {name: torch.zeros(shape) for name, shape in shapes(12, 48, heads=3, tokens=4, rows=11).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(file, content: bytes, **options) -> None:
    """Read a file of these bytes; what comes is whole, or a sentence that names the file."""
    file.unlink(missing_ok=True)  # another file: tensors of the one before may still lie in it
    file.write_bytes(content)
    try:
        found = read_released(file, **options)
    except ValueError as error:
        assert type(error).__name__ in ("ValueError", "_Refused"), error
        assert file.name in str(error) or "classes must be" in str(error)
        assert len(str(error)) < 2000
        return
    assert 1 <= found.classes <= MOST_CLASSES and 1 <= found.height // found.options["patch"] <= MOST_SIDE
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.tensors.values())
    model = plugin_class("backbone", found.backbone)(
        **found.options, channels=found.channels, height=found.height, classes=found.classes, null_row=found.null_row
    )
    model.load_state_dict(found.tensors)
    json.dumps([found.args, found.step, sorted(found.heads)])


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@given(data=st.data())
def test_generated_state_dicts(pico, folder, data):
    tensors, names = dict(pico), sorted(pico)
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(names))
        change = data.draw(st.sampled_from(["replace", "rename", "remove", "add", "table", "height"]))
        if change == "replace":
            tensors[name] = data.draw(st.one_of(TENSORS, VALUES))
        elif change == "rename" and name in tensors:
            tensors[data.draw(KEYS)] = tensors.pop(name)
        elif change == "remove":
            tensors.pop(name, None)
        elif change == "add":
            prefix = data.draw(
                st.sampled_from(["", "module.", "projectors.", "blocks.", "decoder_blocks.", "feat_rope."])
            )
            tensors[f"{prefix}{data.draw(st.text(max_size=5))}"] = data.draw(TENSORS)
        elif change == "table":
            tensors["y_embedder.embedding_table.weight"] = torch.zeros(data.draw(st.integers(0, 1002)), 48)
        else:
            tensors["pos_embed"] = torch.zeros(1, data.draw(st.integers(0, 40)) ** 2, 48)
    wrapped = data.draw(st.sampled_from([None, "ema", "model", "state_dict", 5]))
    content = tensors if wrapped is None else {wrapped: tensors, data.draw(KEYS): data.draw(VALUES)}
    if wrapped is not None:
        content |= {"args": data.draw(st.one_of(SETTINGS, VALUES)), "steps": data.draw(SCALARS)}
    read(
        folder / "generated.pt",
        saved(content, _use_new_zipfile_serialization=data.draw(st.booleans())),
        family=data.draw(st.sampled_from([None, *FAMILIES])),
        weights=data.draw(st.sampled_from(["ema", "raw"])),
        height=data.draw(st.one_of(st.none(), NUMBERS)),
        classes=data.draw(st.one_of(st.none(), st.just(10), NUMBERS)),
    )


@given(data=st.data())
def test_damaged_bytes(folder, data):
    """Bytes of small files changed, cut, or put in: what is then in them need not be a model to be read safely."""
    tensors = {"pos_embed": torch.ones(1, 4, 4), "x_embedder.proj.weight": torch.ones(2, 2)}
    form = data.draw(st.sampled_from(["zip", "old", "safetensors"]))
    if form == "safetensors":
        from safetensors.torch import save

        content = bytearray(save(tensors))
    else:
        content = bytearray(saved({"ema": tensors, "steps": 3}, _use_new_zipfile_serialization=form == "zip"))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        change = data.draw(st.sampled_from(["write", "insert", "cut", "end"]))
        if change == "write":
            content[start : start + 1] = data.draw(st.binary(min_size=1, max_size=4))
        elif change == "insert":
            content[start:start] = data.draw(st.binary(max_size=9))
        else:
            content[start : start + (5 if change == "cut" else len(content))] = b""
    read(folder / ("damaged.safetensors" if form == "safetensors" else "damaged.pt"), bytes(content), family="repa")


AXES = st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**32, 2**63, 10**30, 1.5, "2", None])), max_size=5)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U64", "BOOL", "F8_E4M3", "C64", "F4", "x", 5]),
        "shape": AXES,
        "data_offsets": st.one_of(st.tuples(st.integers(0, 8), st.integers(0, 64)), AXES),
    }
)


@given(
    header=st.one_of(
        VALUES.filter(lambda value: not isinstance(value, bytes)),
        st.dictionaries(
            st.one_of(st.sampled_from(["pos_embed", "__metadata__"]), st.text(max_size=4)), ENTRY, max_size=4
        ),
    ),
    data=st.binary(max_size=64),
    length=st.one_of(st.none(), st.integers(0, 200), st.sampled_from([2**32, 2**63, 2**64 - 1])),
)
def test_generated_safetensors_headers(folder, header, data, length):
    text = json.dumps(header, default=repr, skipkeys=True).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    read(folder / "header.safetensors", content, family="repa")


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".pt", ".pth", ".safetensors"]))
def test_any_bytes(folder, content, suffix):
    read(folder / f"any{suffix}", content)
