"""Encoded sets: what is read is what was encoded, and damage is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.config import load_config
from workbench.data.codecs import load_codec, sample_posterior
from workbench.data.images import load_images, to_float
from workbench.data.latents import open_latents

CONFIG = load_config("demo/plain", ["data.name=digits", "data.limit=25", "codec.name=identity"])


def test_moments_are_those_of_the_images(tmp_path):
    latents = open_latents(CONFIG, "train", tmp_path)
    images = load_images(CONFIG.data, "train")
    moments = latents.moments(torch.tensor([24, 3, 10]).numpy())
    assert torch.equal(moments[:, :1], to_float(images.batch([24, 3, 10])))
    assert moments[:, 1:].abs().max() == 0
    assert latents.labels.tolist() == images.labels.tolist()
    assert open_latents(CONFIG, "train", tmp_path).content == latents.content
    other = replace(CONFIG, data=replace(CONFIG.data, limit=24))
    assert open_latents(other, "train", tmp_path).content != latents.content


def test_shipped_codec_reconstructs_and_has_unit_variance():
    images = load_images(load_config("demo/plain").data, "test").batch(range(200))
    codec = load_codec("kl-f4", 1)
    moments = codec.encode(images)
    z = sample_posterior(moments, torch.zeros(200, 4, 8, 8))
    assert z.shape == (200, 4, 8, 8) and 0.8 < z.std() < 1.2
    error = (codec.decode(z).float() - images.float()).div(255).square().mean()
    assert error < 0.0025  # the record says 0.0016 on 2,000 test images
    with pytest.raises(ValueError, match="is for images of 1 channels; these have 3"):
        load_codec("kl-f4", 3)
    with pytest.raises(ValueError, match="Allowed: kl-f4"):
        load_codec("kl-f8", 1)


def test_content_is_that_of_the_images_and_the_split(tmp_path):
    train, test = (open_latents(CONFIG, split, tmp_path) for split in ("train", "test"))
    assert train.content != test.content and train.shards.folder != test.shards.folder
    assert not torch.equal(train.moments(np.arange(25)), test.moments(np.arange(25)))
    assert (train.channels, train.height, len(train), len(train.classes)) == (1, 32, 25, 10)


def test_encoded_once(tmp_path):
    calls = []
    open_latents(CONFIG, "train", tmp_path, lambda *done: calls.append(done))
    open_latents(CONFIG, "train", tmp_path, lambda *done: calls.append(done))
    assert calls == [(25, 25)]
