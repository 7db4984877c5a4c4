import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from workbench.config import DataConfig, load_config, to_yaml
from workbench.evaluation import reference as module
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.frechet import frechet_distance, statistics
from workbench.evaluation.reference import principal, published_reference, reference_of_data, see
from workbench.runs.store import Run

DIGITS = DataConfig(name="digits")


def rows(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 2


def images(n):
    return torch.randint(0, 256, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_basis_is_that_of_principal_components():
    x = rows(300, 12, 0)
    basis = principal(statistics(x), 4)
    pca = PCA(4, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(np.abs((basis.directions * pca.components_.T).sum(axis=0)), 1, rtol=1e-9)
    assert basis.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    assert (np.take_along_axis(basis.directions, np.abs(basis.directions).argmax(0)[None], 0) > 0).all()
    with pytest.raises(ValueError, match="300 images has fewer than 300"):
        principal(statistics(x), 300)


def test_moments_in_a_basis_are_those_of_the_rows_in_it():
    x, y = rows(300, 12, 0), rows(200, 12, 1)
    basis = principal(statistics(x), 4)
    moved, direct = basis.statistics(statistics(y)), statistics(basis.rows(y))
    np.testing.assert_allclose(moved.mean, direct.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved.covariance, direct.covariance, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [7, 60])
def test_what_is_seen_does_not_depend_on_the_batches(size):
    detector, pixels = load_detector("randomconv"), images(60)
    found = see(pixels.split(size), detector, keep=25)
    whole = detector(pixels)
    torch.testing.assert_close(found.features, whole.features[:25], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.statistics.covariance, statistics(whole.features).covariance, atol=1e-6)
    assert found.statistics.count == 60
    with pytest.raises(ValueError, match="no images"):
        see([], detector)


def test_images_that_a_gpu_cannot_take_at_once_are_seen_in_parts():
    detector, pixels, sizes = load_detector("randomconv"), images(60), []

    def small_gpu(part):
        sizes.append(len(part))
        if sizes[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return detector.read(part)

    counts = []
    found = see(pixels.split(40), replace(detector, read=small_gpu), progress=counts.append)
    assert sizes == [40, 20, 20, 20] and counts == [20, 40, 60]
    torch.testing.assert_close(found.features, see([pixels], detector).features, rtol=1e-5, atol=1e-6)


def test_a_data_set_is_seen_once(tmp_path, monkeypatch):
    detector, counts = load_detector("pixels-pca64"), []
    first = reference_of_data(DIGITS, detector, tmp_path, lambda done, total: counts.append((done, total)))
    assert counts[-1] == (1797, 1797)
    assert first.train.features.shape == (1438, 64) and first.test.features.shape == (359, 64)
    assert first.basis.explained > 0.9 and first.train.labels.shape == (1438,)
    monkeypatch.setattr(module, "see", lambda *_, **__: pytest.fail("seen again"))
    second = reference_of_data(DIGITS, detector, tmp_path)
    assert torch.equal(first.train.features, second.train.features)
    assert frechet_distance(first.train.statistics, second.train.statistics).identical
    file = next(tmp_path.glob("pixels-pca64-train-*.npz"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        reference_of_data(DIGITS, detector, tmp_path)
    rows, d = 1438, len(first.basis.mean)
    whole = {"count": rows, "features": np.zeros((rows, d), np.float32), "mean": np.zeros(d), "covariance": np.eye(d)}
    for changed, said in (
        ({"mean": np.full(d, np.nan)}, "its mean is not finite"),
        ({"features": np.zeros((5, d), np.float32)}, r"its arrays have shapes .*, for 1438 images"),
        ({"covariance": np.zeros(d, object)}, "covariance holds Python objects"),
    ):
        np.savez(file, **{**whole, **changed})
        with pytest.raises(ValueError, match=f"{file.name}.*{said}.*; delete it to compute it again"):
            reference_of_data(DIGITS, detector, tmp_path)


def test_rows_beyond_those_kept_still_count(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 500)
    detector = load_detector("randomconv")
    found = reference_of_data(DIGITS, detector, tmp_path)
    assert found.train.features.shape[0] == len(found.train.labels) == 500
    assert found.train.statistics.count == 1438
    assert len(found.manifold) == 500


def run_of(tmp_path, classes, origin=False, **data):
    """A run of which only the classes, their origin and the images are known."""
    latents = {"content": None, "channels": 4, "height": 32, "vae": {"name": "a", "hash": None}, "pixel_channels": 3}
    provenance = {"latents": {**latents, "classes": classes}} | ({"origin": {"family": "sit"}} if origin else {})
    config = replace(load_config("demo/plain"), data=DataConfig(name="image-folder", **data))
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "provenance.json").write_text(json.dumps({"fingerprint": "0" * 16, "created": 0.0, **provenance}))
    return Run(folder)


def test_adm_s_reference_file_is_preferred_for_imagenet(tmp_path, monkeypatch, recwarn):
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(weights))
    wnids, numbers = [f"n{number:08d}" for number in range(1000)], [str(number) for number in range(1000)]
    others = [
        run_of(tmp_path, wnids[:100]),  # a part of ImageNet
        run_of(tmp_path, numbers),  # any images of 1,000 classes
        run_of(tmp_path, wnids, size=96),
        run_of(tmp_path, wnids, crop="none"),
    ]
    assert [published_reference(run, "inception-2015") for run in others] == [None] * 4 and not recwarn.list
    imagenet = [run_of(tmp_path, wnids), run_of(tmp_path, numbers, origin=True), run_of(tmp_path, wnids, size=512)]
    for run in imagenet:
        with pytest.warns(UserWarning, match="download https://.*VIRTUAL_imagenet.*npz into .*/weights"):
            assert published_reference(run, "inception-2015") is None
    for name in ("VIRTUAL_imagenet256_labeled.npz", "VIRTUAL_imagenet512.npz"):
        (weights / name).touch()
    found = [published_reference(run, "inception-2015").name for run in imagenet]
    assert found == ["VIRTUAL_imagenet256_labeled.npz"] * 2 + ["VIRTUAL_imagenet512.npz"]
    assert published_reference(imagenet[0], "dinov2") is None  # the file has the moments of Inception
