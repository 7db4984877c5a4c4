"""Files in the layout of ADM's evaluator: round trips, every way of being wrong, images left on disk."""

import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
import torch

from workbench.evaluation.archives import read_reference, read_samples, write_reference, write_samples
from workbench.evaluation.frechet import Statistics

RANDOM = np.random.default_rng(0)
NHWC = RANDOM.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
NCHW = torch.from_numpy(np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2)))
SYMMETRIC = np.cov(RANDOM.standard_normal((9, 3)), rowvar=False)
ADM = {
    "arr_0": NHWC,
    "mu": np.arange(3.0),
    "sigma": SYMMETRIC,
    "mu_s": np.arange(2.0),
    "sigma_s": np.diag([1.0, 2.0]),
}


def saved(path, *, by=np.savez, **arrays):
    by(path, **arrays)
    return path


def read_all(found, size=2):
    return torch.cat(list(found.batches(size)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_labels", [True, False])
def test_samples_come_back(tmp_path, channels, with_labels):
    labels = torch.tensor([3, 1, 4, 1, 5]) if with_labels else None
    write_samples(tmp_path / "a.npz", NCHW[:, :channels], labels)
    found = read_samples(tmp_path / "a.npz")
    assert len(found) == 5 and [len(batch) for batch in found.batches(2)] == [2, 2, 1]
    for images in (found.images, read_all(found)):
        assert torch.equal(images, NCHW[:, :channels])
        assert images.stride() == (24 * channels, 24, 6, 1)  # as of images that were just generated
    assert found.labels is None if labels is None else torch.equal(found.labels, labels)
    assert (found.statistics, found.spatial) == (None, None)
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_layout_is_adms(tmp_path):
    pooled, spatial = Statistics(100, ADM["mu"], ADM["sigma"]), Statistics(100, ADM["mu_s"], ADM["sigma_s"])
    write_reference(tmp_path / "r.npz", NCHW, pooled, spatial, {"detector": "inception-2015"})
    with np.load(tmp_path / "r.npz") as arrays:
        assert arrays.files == ["arr_0", "mu", "sigma", "mu_s", "sigma_s", "about"]
        for name, values in ADM.items():
            assert arrays[name].dtype == values.dtype and np.array_equal(arrays[name], values)
    # ADM's evaluator streams the first version of the format, in C order.
    with zipfile.ZipFile(tmp_path / "r.npz") as archive, archive.open("arr_0.npy") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream) == ((5, 4, 6, 3), False, np.dtype("uint8"))
    write_samples(tmp_path / "s.npz", NCHW, torch.arange(5, dtype=torch.int32))
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays.files == ["arr_0", "labels"] and arrays["labels"].dtype == np.int64
        assert np.array_equal(arrays["arr_0"], NHWC)


def test_a_reference_comes_back(tmp_path):
    pooled, spatial = Statistics(100, ADM["mu"], ADM["sigma"]), Statistics(100, ADM["mu_s"], ADM["sigma_s"])
    write_reference(tmp_path / "r.npz", NCHW, pooled, spatial, {"detector": "x", "resize": "none"})
    found = read_reference(tmp_path / "r.npz")
    assert found.about == {"detector": "x", "resize": "none", "count": 100}
    assert torch.equal(read_all(found.images), NCHW) and len(found.images) == 5
    for moments, wanted in ((found.statistics, pooled), (found.spatial, spatial)):
        assert moments.count == 100
        assert np.array_equal(moments.mean, wanted.mean) and np.array_equal(moments.covariance, wanted.covariance)
    write_reference(tmp_path / "again.npz", NCHW, pooled, spatial, {"detector": "x", "resize": "none"})
    assert read_reference(tmp_path / "again.npz").content == found.content
    write_reference(tmp_path / "plain.npz", NCHW, pooled, None, {})
    plain = read_reference(tmp_path / "plain.npz")
    assert plain.spatial is None and plain.content != found.content
    with pytest.raises(ValueError, match="moments are of 100 and 7 images"):
        write_reference(tmp_path / "r.npz", NCHW, pooled, Statistics(7, ADM["mu_s"], ADM["sigma_s"]), {})


def test_a_file_of_adm_does_not_tell_its_count(tmp_path):
    found = read_reference(saved(tmp_path / "adm.npz", **ADM))
    assert found.about is None and found.statistics.count is None and found.spatial.count is None
    images = read_reference(saved(tmp_path / "images.npz", arr_0=NHWC))
    assert images.statistics is None and images.spatial is None and len(images.images) == 5
    moments = read_reference(saved(tmp_path / "m.npz", mu=ADM["mu"].astype(np.float32), sigma=ADM["sigma"]))
    assert moments.images is None and moments.statistics.mean.dtype == np.float64


def test_samples_that_hold_moments_say_so(tmp_path):
    found = read_samples(saved(tmp_path / "a.npz", **ADM))
    assert np.array_equal(found.statistics.mean, ADM["mu"]) and np.array_equal(found.spatial.mean, ADM["mu_s"])
    with pytest.raises(ValueError, match=r"m\.npz has mu, sigma; it must have arr_0"):
        read_samples(saved(tmp_path / "m.npz", mu=ADM["mu"], sigma=ADM["sigma"]))


def test_uncompressed_images_stay_on_disk(tmp_path):
    write_samples(tmp_path / "ours.npz", NCHW)
    np.save(tmp_path / "plain.npy", NHWC)
    turned = np.asfortranarray(NHWC)
    stored = [
        tmp_path / "ours.npz",
        tmp_path / "plain.npy",
        saved(tmp_path / "numpy.npz", arr_0=NHWC, arr_1=np.arange(5)),
        saved(tmp_path / "turned.npz", other=np.zeros(3), arr_0=turned),
    ]
    for file in stored:
        found = read_samples(file)
        assert isinstance(found.rows, np.memmap), file
        assert torch.equal(read_all(found), NCHW), file
    packed = read_samples(saved(tmp_path / "packed.npz", by=np.savez_compressed, arr_0=NHWC, arr_1=np.arange(5)))
    assert not isinstance(packed.rows, np.memmap) and torch.equal(read_all(packed), NCHW)
    assert packed.labels.tolist() == read_samples(stored[2]).labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arr_0", "said"),
    [
        (NHWC.astype(np.float32) / 255, r"arr_0 is float32; allowed is uint8, 0..255; convert floats .* \(255 \* x\)"),
        (NHWC.transpose(0, 3, 1, 2), r"arr_0 is 5 x 3 x 4 x 6; .* convert it by arr.transpose\(0, 2, 3, 1\)"),
        (NHWC[..., :2], "arr_0 is 5 x 4 x 6 x 2; allowed is n x height x width x 1 or 3 channels$"),
        (NHWC[..., 0], "arr_0 is 5 x 4 x 6; allowed is n x height x width x 1 or 3 channels$"),
        (NHWC[:0], "arr_0 is 0 x 4 x 6 x 3, which has no images"),
        (np.array([{}, 1], dtype=object), "(arr_0|its array) holds Python objects, which are not loaded"),
    ],
)
@pytest.mark.parametrize("kind", ["stored", "packed", "plain", "reference"])
def test_images_that_are_none(tmp_path, kind, arr_0, said):
    file = tmp_path / ("a.npy" if kind == "plain" else "a.npz")
    if kind == "plain":
        np.save(file, arr_0, allow_pickle=True)
    else:
        saved(file, by=np.savez_compressed if kind == "packed" else np.savez, arr_0=arr_0)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {said}"):
        (read_reference if kind == "reference" else read_samples)(file)


@pytest.mark.parametrize("labels", [np.arange(4), np.zeros(5), np.zeros((5, 1), dtype=int)])
def test_labels_that_do_not_fit(tmp_path, labels):
    file = saved(tmp_path / "a.npz", arr_0=NHWC, arr_1=labels)
    with pytest.raises(ValueError, match="arr_1 is .* of shape .*; it must be 5 integers"):
        read_samples(file)


def changed(**entries):
    return {name: values for name, values in {**ADM, **entries}.items() if values is not None}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(2)}, " has x; it must have arr_0, or mu and sigma"),
        ({}, " has nothing; it must have arr_0, or mu and sigma"),
        (changed(sigma=None), " has only mu of mu and sigma; it must have both or neither"),
        (changed(mu_s=None), " has only sigma_s of mu_s and sigma_s"),
        (changed(mu=np.zeros(4)), r": mu has shape \(4,\), sigma has \(3, 3\); they must be d and d x d"),
        (changed(sigma_s=np.zeros(2)), r": mu_s has shape \(2,\), sigma_s has \(2,\)"),
        (changed(mu=np.array([0, np.nan, 1])), r": mu\[1\] is nan; moments must be finite"),
        (changed(sigma_s=np.array([[1, 0], [np.inf, 1]])), r": sigma_s\[1, 0\] is inf"),
        (changed(mu=np.array(["a", "b", "c"])), ": mu is <U1; allowed are real numbers"),
        (
            changed(sigma_s=np.array([[1.0, 0.5], [0.25, 1.0]])),
            r": sigma_s is not symmetric: sigma_s\[0, 1\] is 0.5, \[1, 0\] 0.25",
        ),
        (changed(about=np.array("[1")), ": about is not a JSON object"),
        (changed(about=np.array("3")), ": about is not a JSON object"),
        (changed(mu=np.array([{}, 1, 2], dtype=object)), ": mu holds Python objects"),
    ],
)
def test_moments_that_are_none(tmp_path, arrays, said):
    file = saved(tmp_path / "r.npz", **arrays)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}{said}"):
        read_reference(file)


def test_rounding_is_no_asymmetry(tmp_path):
    sigma = ADM["sigma"].copy()
    sigma[0, 1] *= 1 + 1e-8
    assert read_reference(saved(tmp_path / "r.npz", **changed(sigma=sigma))).statistics is not None


@pytest.mark.parametrize("by", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("read", [read_samples, read_reference])
def test_damage_is_told(tmp_path, by, read):
    whole = io.BytesIO()
    by(whole, arr_0=NHWC, mu=ADM["mu"], sigma=ADM["sigma"])
    content = whole.getvalue()
    with zipfile.ZipFile(whole) as archive:
        entry = archive.getinfo("arr_0.npy")
        # In the last images, so that the archive looks whole and only the checksum, or the unpacker, can tell.
        place = entry.header_offset + entry.compress_size
    file = tmp_path / "a.npz"
    file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    with pytest.raises(ValueError, match="a.npz is damaged: arr_0 cannot be read"):
        read(file)
    for damaged, said in (
        (content[:-30], "a.npz is damaged or truncated"),
        (content[: len(content) // 2], "a.npz is damaged or truncated"),
        (b"", "a.npz is empty"),
        (b"\x80\x04K\x01.", "a.npz is not an .npz file"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=said):
            read(file)


def test_a_plain_array_cut_short_is_told(tmp_path):
    np.save(tmp_path / "a.npy", NHWC)
    file = tmp_path / "a.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="a.npy is damaged: its array cannot be read"):
        read_samples(file)


def test_an_entry_shorter_than_it_says_is_told(tmp_path):
    """A header that promises more rows than the entry has must not reach into what follows it."""
    header, file = io.BytesIO(), tmp_path / "a.npz"
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (6, 4, 6, 3)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + NHWC.tobytes())
        archive.writestr("other.npy", bytes(1000))
    with pytest.raises(ValueError, match="a.npz is damaged: arr_0 cannot be read"):
        read_samples(file)


@pytest.mark.parametrize("read", [read_samples, read_reference])
def test_places_without_a_file(tmp_path, read):
    with pytest.raises(ValueError, match="none.npz cannot be read: No such file"):
        read(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="is a folder; allowed are .npz and .npy files"):
        read(tmp_path)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    write_samples(file, NCHW)
    before = file.read_bytes()
    for wrong in (NCHW[:0], NCHW[:, :2]):
        with pytest.raises(ValueError, match="allowed are 1 or more of 1 or 3 channels"):
            write_samples(file, wrong)
    monkeypatch.setattr(np.lib.format, "write_array", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_samples(file, NCHW, torch.arange(5))
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["a.npz"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".a.npz-killed").write_bytes(b"half" * 10_000)
    write_samples(tmp_path / "a.npz", NCHW)
    assert os.listdir(tmp_path) == ["a.npz"] and torch.equal(read_samples(tmp_path / "a.npz").images, NCHW)


def test_about_is_plain_json(tmp_path):
    write_reference(tmp_path / "r.npz", NCHW, Statistics(9, ADM["mu"], ADM["sigma"]), None, {"hash": "é"})
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        assert json.loads(arrays["about"].item()) == {"hash": "é", "count": 9}
