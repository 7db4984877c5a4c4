"""Arrays of other people's files: what NumPy wrote is read, and no file takes more memory or time than it should."""

import io
import os
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from workbench.arrays import is_npy, map_npy, npy_header, open_npz
from workbench.evaluation.archives import read_reference, read_samples

NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def npy(shape, dtype="<f4", body=b"", version=b"\x01\x00", width=2) -> bytes:
    """A .npy file of whatever its header claims."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text + body


def npz(file: Path, members, method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file


@pytest.fixture(scope="module", autouse=True)
def compiled_checks(tmp_path_factory):
    """The checks of shapes are compiled in the first call of a function, which takes memory that is not the file's."""
    folder = tmp_path_factory.mktemp("first")
    images = np.zeros((3, 4, 4, 3), np.uint8)
    for by in (np.savez, np.savez_compressed):
        by(folder / "a.npz", arr_0=images, arr_1=np.arange(3), mu=np.zeros(2), sigma=np.eye(2))
        read_samples(folder / "a.npz")
        read_reference(folder / "a.npz")
    np.save(folder / "a.npy", images)
    read_samples(folder / "a.npy")


@pytest.mark.parametrize("by", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path, by):
    values = {
        "a": NUMBERS,
        "turned": np.asfortranarray(NUMBERS),
        "one": np.array(3),
        "none": np.zeros((0, 4)),
        "big": NUMBERS.astype(">f8"),
    }
    by(tmp_path / "a.npz", **values)
    with open_npz(tmp_path / "a.npz") as arrays:
        for name, wanted in values.items():
            for found in (arrays.read(name), arrays.map(name)):
                assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name
            assert arrays.header(name).shape == wanted.shape
        assert "b" not in arrays and arrays.listed == "a, turned, one, none, big"
        with pytest.raises(ValueError, match=r"a.npz: a is float32; allowed are whole numbers$"):
            arrays.read("a", kinds="iu")


def test_a_plain_array_is_mapped(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, NUMBERS)
    assert is_npy(file) and npy_header(file).shape == NUMBERS.shape
    found = map_npy(file)
    assert isinstance(found, np.memmap) and np.array_equal(found, NUMBERS)
    file.write_bytes(file.read_bytes() + b"1234")
    with pytest.raises(
        ValueError, match=r"a.npy is damaged: x cannot be read \(its header claims 96 bytes .* has 100\)"
    ):
        map_npy(file, name="x")
    assert np.array_equal(map_npy(file, trailer=4), NUMBERS)


HUGE = "(1000000000, 32, 32, 3)"
CLAIMS = {
    "more than the file": (npy(HUGE, "|u1", bytes(1000)), "its header claims 3,072,000,000,000 bytes"),
    "fewer": (npy("(2, 2)", "<f4", bytes(17)), "its header claims 16 bytes .* has 17"),
    "negative": (npy("(-2, -2)", "<f4", bytes(16)), r"its shape is \(-2, -2\)"),
    "endless": (npy("(0, 1" + 40 * "0" + ")"), "cannot be read"),
    "objects": (npy("(2,)", "|O", bytes(16)), "holds Python objects, which are not loaded"),
    "fields": (npy("(2,)", [("a", "<f4")], bytes(8)), "allowed are real numbers or whole numbers"),
    "complex": (npy("(2,)", "<c8", bytes(16)), "is complex64; allowed are real numbers or whole numbers"),
    "text": (npy("(2,)", "<U2", bytes(16)), "is <U2; allowed are real numbers or whole numbers"),
    "an unknown type": (npy("(2,)", "<q9", bytes(16)), "cannot be read"),
    "nested": (npy("(" * 5000 + ")" * 5000), "cannot be read"),
    "a long header": (
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 100,
        "its header has 2,147,483,648 bytes; all",
    ),
    "another version": (npy("(2,)", version=b"\x09\x00"), r"its format version is \(9, 0\)"),
    "no array": (b"hello", "it does not begin like a .npy file"),
    "nothing": (b"", "it does not begin like a .npy file"),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_header_claims_is_held_against_the_file(tmp_path, claim, method):
    content, said = CLAIMS[claim]
    file = npz(tmp_path / "a.npz", [("mu.npy", content)], method)
    with open_npz(file) as arrays:
        for read in (arrays.read, arrays.map):
            with pytest.raises(ValueError, match=f"^{file}.*mu .*{said}"):
                read("mu")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.npy.*its array .*{said}"):
        map_npy(tmp_path / "a.npy")


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_ARRAYS_GB", "0.01")
    shape, size = (20_000, 32, 32, 1), 20_000 * 32 * 32
    file = npz(tmp_path / "a.npz", [("arr_0.npy", npy(shape, "|u1", bytes(size)))], zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 30_000
    tracemalloc.start()
    said = "arr_0 takes 0.0205 GB of memory, more than the 0.01 GB that WORKBENCH_ARRAYS_GB allows: raise it, or save"
    for read in (read_samples, read_reference):
        with pytest.raises(ValueError, match=said):
            read(file)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    monkeypatch.setenv("WORKBENCH_ARRAYS_GB", "0.03")
    assert len(read_samples(file)) == 20_000
    for wrong in ("", "nan", "-1", "inf", "many"):
        monkeypatch.setenv("WORKBENCH_ARRAYS_GB", wrong)
        with pytest.raises(ValueError, match=f"WORKBENCH_ARRAYS_GB is '{wrong}'; allowed are"):
            read_samples(file)


def test_an_archive_that_lies_about_its_sizes(tmp_path):
    file = npz(tmp_path / "a.npz", [("arr_0.npy", npy("(100, 4, 4, 1)", "|u1", bytes(1600)))], zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # unpacked
    file.write_bytes(content)
    with pytest.raises(ValueError, match="arr_0 cannot be read .it claims 2,147,483,648 bytes, which cannot be in"):
        read_samples(file)


def test_members_that_are_doubled_or_cannot_be_unpacked(tmp_path):
    member = npy("(2, 4, 4, 1)", "|u1", bytes(32))
    with pytest.warns(UserWarning, match="Duplicate name"):
        npz(tmp_path / "a.npz", [("arr_0.npy", member), ("arr_0.npy", member)])
    with pytest.raises(ValueError, match="a.npz is damaged: it has 'arr_0.npy' more than once"):
        read_samples(tmp_path / "a.npz")
    npz(tmp_path / "lzma.npz", [("arr_0.npy", member)], zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match=r"arr_0 cannot be read \(it uses compression method 14; allowed are none"):
        read_samples(tmp_path / "lzma.npz")
    inner = io.BytesIO()
    np.savez(inner, arr_0=NUMBERS)
    npz(tmp_path / "nested.npz", [("arr_0.npz", inner.getvalue()), *((f"\x1b[31m{i}", b"") for i in range(9))])
    with pytest.raises(ValueError, match=r"nested.npz has 'arr_0.npz', '\\x1b\[31m0', .*, 4 more; it must have arr_0"):
        read_samples(tmp_path / "nested.npz")
    npz(tmp_path / "many.npz", [(f"{i:060d}", b"") for i in range(10_000)])
    with pytest.raises(ValueError, match="many.npz is damaged or truncated: its list of members has 1,060,000 bytes"):
        read_samples(tmp_path / "many.npz")


@pytest.mark.parametrize("read", [read_samples, read_reference])
def test_what_is_no_regular_file(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "link.npz").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe.npz", tmp_path / "link.npz", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"^{file} is not a regular file; allowed are .npz and .npy files$"):
            read(file)


def checked(file: Path) -> None:
    """Reads of a file give arrays or a ValueError of one line that names it, soon and in little memory."""
    for read in (read_samples, read_reference):
        tracemalloc.start()
        began = time.monotonic()
        try:
            read(file)
        except ValueError as error:
            assert str(file) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.monotonic() - began < 5 and peak < 20_000_000


SHAPES = st.lists(st.one_of(st.integers(-3, 5), st.integers(-(2**70), 2**70)), max_size=6).map(
    lambda s: f"({''.join(f'{i}, ' for i in s)})"
)
TYPES = st.one_of(
    st.sampled_from(
        ["|u1", "<f4", ">f8", "<f2", "|O", "<c16", "<U4", "|S3", "|V8", "<M8[s]", "|b1", "<i8", "f4, f4", "|u0"]
    ),
    st.text(max_size=6),
    st.integers(),
    st.none(),
)
HEADERS = st.builds(
    npy,
    SHAPES,
    TYPES,
    st.binary(max_size=200),
    st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x07"]),
    st.sampled_from([2, 4]),
)
RAW = st.builds(
    lambda text, body: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body,
    st.binary(max_size=300),
    st.binary(max_size=50),
)
WHOLE = arrays_of.arrays(
    st.sampled_from(["u1", "f4", "f8", "i8", "c8", "U3", "?"]),
    arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
).map(lambda values: (buffer := io.BytesIO(), np.lib.format.write_array(buffer, values), buffer.getvalue())[2])
MEMBERS = st.one_of(HEADERS, RAW, WHOLE, st.binary(max_size=100))
NAMES = st.sampled_from(["arr_0", "arr_1", "labels", "mu", "sigma", "mu_s", "sigma_s", "about"])


@pytest.mark.fuzz
@given(members=st.dictionaries(NAMES, MEMBERS, max_size=5), packed=st.booleans())
def test_members_of_any_kind(tmp_path_factory, members, packed):
    file = tmp_path_factory.getbasetemp() / "fuzz.npz"
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    checked(npz(file, [(f"{name}.npy", content) for name, content in members.items()], method))
    for content in members.values():
        file.write_bytes(content)
        checked(file)


@pytest.mark.fuzz
@given(data=st.data(), packed=st.booleans())
def test_archives_with_changed_bytes(tmp_path_factory, data, packed):
    buffer = io.BytesIO()
    images = np.zeros((3, 4, 4, 3), np.uint8)
    (np.savez_compressed if packed else np.savez)(
        buffer, arr_0=images, mu=np.zeros(2), sigma=np.eye(2), labels=np.arange(3)
    )
    content = bytearray(buffer.getvalue())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[place] = value
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    file = tmp_path_factory.getbasetemp() / "changed.npz"
    file.write_bytes(content[:cut])
    checked(file)
