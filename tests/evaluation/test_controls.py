"""The detectors that learned nothing, against numbers worked by hand and layers built anew."""

import pytest
import torch
from torch import nn

from workbench.diffusion.randomness import normal
from workbench.evaluation.detectors import randomconv
from workbench.evaluation.detectors.base import load_detector


def pictures(count: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [8, 20, 33])
def test_the_random_network_is_three_convolutions_and_two_moments(size):
    layers = []
    for index, (inputs, outputs, stride) in enumerate([(3, 16, 1), (16, 32, 2), (32, 32, 2)]):
        layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layer.weight.data = normal(0, "randomconv", [index], layer.weight.shape)[0] * (2 / (9 * inputs)) ** 0.5
        layers += [layer, nn.GELU()]
    images = pictures(3, 3, size)
    maps = nn.Sequential(*layers).double()(images.double() / 127.5 - 1).detach()
    places = maps.flatten(2)
    centred = places - places.mean(dim=2, keepdim=True)
    expected = torch.cat([places.mean(dim=2), centred.square().mean(dim=2).sqrt()], dim=1)
    found = load_detector("randomconv")(images)
    assert found.features.shape == (3, 64)
    torch.testing.assert_close(found.features.double(), expected, atol=1e-5, rtol=0)
    side = min(4, maps.shape[-1])
    assert found.spatial.shape == (3, 7, side, side)
    if maps.shape[-1] <= 4:
        torch.testing.assert_close(found.spatial.double(), maps[:, :7], atol=1e-5, rtol=0)


def test_the_random_network_is_the_same_everywhere():
    state = torch.random.get_rng_state()
    # Should this change, numbers measured before and after are not to be compared.
    known = "269c3b8f49c4"
    assert load_detector("randomconv").hash.startswith(known)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert load_detector("randomconv").hash.startswith(known)


def test_other_weights_have_another_hash(monkeypatch):
    before, images = load_detector("randomconv"), pictures(1, 1, 16)
    monkeypatch.setattr(randomconv, "_SEED", 1)
    after = load_detector("randomconv")
    assert before.hash != after.hash and not torch.equal(before(images).features, after(images).features)


def test_images_too_small_for_the_random_network_are_refused():
    with pytest.raises(ValueError, match="1 channels of 7 x 7 pixels; randomconv takes .* at least 8 x 8"):
        load_detector("randomconv")(pictures(2, 1, 7))


def test_pixels_are_scaled_and_in_order():
    # v / 127.5 - 1; 51 = 255 / 5
    image = torch.tensor([[[0, 255], [51, 102]], [[204, 153], [0, 0]], [[255, 255], [255, 255]]], dtype=torch.uint8)
    found = load_detector("pixels-pca64")(image[None]).features
    expected = torch.tensor([[-1, 1, -0.6, -0.2, 0.6, 0.2, -1, -1, 1, 1, 1, 1]])
    torch.testing.assert_close(found, expected)


def test_larger_pixels_are_averaged_over_areas():
    small = pictures(2, 1, 32)
    large = small.repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    large[..., 1] = 0  # half of each pixel of the first column
    expected = small.double() / 127.5 - 1
    expected[..., 0] = (expected[..., 0] - 1) / 2
    found = load_detector("pixels-pca64")(large).features
    torch.testing.assert_close(found.double(), expected.flatten(1), atol=1e-6, rtol=0)


def test_colour_is_three_times_grey_for_pixels():
    grey, detector = pictures(2, 1, 12), load_detector("pixels-pca64")
    assert torch.equal(detector(grey.repeat(1, 3, 1, 1)).features, detector(grey).features.repeat(1, 3))
