"""Distance of reconstructions: zero without loss, and larger for a worse autoencoder."""

from dataclasses import replace

import pytest

from workbench.config import DataConfig
from workbench.data.images import load_images
from workbench.data.vae import Identity, load_vae
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.reconstruction import reconstruction_distance


class Blocks(Identity):
    """Every fourth pixel, repeated."""

    def decode(self, z):
        return super().decode(z)[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_reconstruction_is_measured():
    images, detector = load_images(DataConfig(source="embedded"), "test"), load_detector("clf64")
    lossless, blocks = (reconstruction_distance(vae, images, detector, 300) for vae in (Identity(1), Blocks(1)))
    shipped = reconstruction_distance(load_vae("kl-f4", 1), images, detector, 300)
    assert abs(lossless["fd_clf64"]) < 1e-6 < shipped["fd_clf64"] < blocks["fd_clf64"]
    assert lossless["fd_count"] == 300 and 0 < lossless["fd_real"] == shipped["fd_real"] < blocks["fd_clf64"]


def test_few_images():
    images, detector = load_images(DataConfig(source="embedded", limit=150), "test"), load_detector("pixels-pca64")
    assert reconstruction_distance(Identity(1), images, detector)["fd_count"] == 75
    with pytest.raises(ValueError, match="a reference of 10 images has fewer than 64 principal directions"):
        reconstruction_distance(Identity(1), load_images(DataConfig(source="embedded", limit=20), "test"), detector)
    few = replace(images, labels=images.labels[:3])
    with pytest.raises(ValueError, match="needs at least 4 images; there are 3"):
        reconstruction_distance(Identity(1), few, detector)
