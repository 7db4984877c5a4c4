"""Detectors with published weights against the code they were published with, and with random weights in its place."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from workbench.evaluation.detectors import dinov2 as dinov2_file
from workbench.evaluation.detectors import effnet_lite0, inception_2015
from workbench.evaluation.detectors.base import load_detector

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
FEATURES = ["2048", "logits_unbiased"]


def photographs(count: int, size: int, channels: int = 3) -> Tensor:
    """Smooth random images: noise would be averaged away by the resizing."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    return (F.interpolate(coarse, size=size, mode="bilinear") * 255).round().to(torch.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of weights, no hub, and no demand that Inception's weights be the published ones."""

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(inception_2015, "_SHA256", "")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    return tmp_path


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    """A file of random weights in torch-fidelity's layout, of a scale that every layer passes on."""
    file = tmp_path_factory.mktemp("weights") / INCEPTION
    torch.save({}, file)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("empty", FEATURES, file)
        for name, value in network.state_dict().items():
            if name.endswith(("conv.weight", "fc.weight")):
                value.normal_(std=(2 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.8, 1.2)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(std=0.1)
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def inception(folder, inception_weights):
    (folder / INCEPTION).symlink_to(inception_weights)
    return load_detector("inception-2015")


def test_lite0_features_and_map_are_timms_of_the_resized_pixels():
    images = photographs(3, 40)
    detector = load_detector("effnet-lite0")
    network = effnet_lite0.load_encoder("effnet-lite0").network
    pixels = F.interpolate(images / 255, size=96, mode="bicubic", antialias=True) * 2 - 1
    expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    found = detector(images)
    assert found.features.shape == (3, 1280) and expected.std(dim=0).max() > 0.1
    torch.testing.assert_close(found.features, expected, atol=1e-4, rtol=1e-4)
    maps = network.forward_intermediates(pixels, indices=[3], intermediates_only=True)[0]
    assert found.spatial.shape == (3, 7, 6, 6)
    torch.testing.assert_close(found.spatial, maps[:, :7], atol=1e-4, rtol=1e-4)
    assert "96 x 96" in detector.resize and "bicubic, antialiased" in detector.resize


@pytest.mark.parametrize("size", [32, 310])
def test_inception_agrees_with_torch_fidelity(inception, inception_weights, size):
    images = photographs(3, size)
    theirs = FeatureExtractorInceptionV3("theirs", FEATURES, inception_weights)
    features, logits = theirs(images)
    found = inception(images)
    assert found.features.shape == (3, 2048) and found.logits.shape == (3, 1008)
    assert features.std(dim=0).max() > 0.01 and logits.std() > 0.01
    torch.testing.assert_close(found.features, features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, found.features @ theirs.fc.weight.T, atol=1e-4, rtol=1e-4)


def test_inceptions_spatial_features_are_the_branch_of_mixed_6d(inception, inception_weights):
    network = FeatureExtractorInceptionV3("theirs", FEATURES, inception_weights)
    images = photographs(2, 48)
    maps = (interpolate_bilinear_2d_like_tensorflow1x(images.float(), (299, 299), align_corners=False) - 128) / 128
    for name, layer in network.named_children():
        if name == "Mixed_6d":
            break
        maps = layer(maps)
    branch = network.Mixed_6d.branch1x1
    maps = branch.conv(maps)
    centred = (maps - branch.bn.running_mean[:, None, None]) / (branch.bn.running_var[:, None, None] + 1e-3).sqrt()
    expected = (centred * branch.bn.weight[:, None, None] + branch.bn.bias[:, None, None]).clamp(min=0)[:, :7]
    found = inception(images).spatial
    assert found.shape == (2, 7, 17, 17) and (expected.amax(dim=(0, 2, 3)) > 0).sum() > 3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_inception_tells_itself_and_takes_grey_images(inception):
    grey = photographs(1, 32, channels=1)
    one, three = inception(grey), inception(grey.repeat(1, 3, 1, 1))
    assert torch.allclose(one.features, three.features, atol=1e-5)
    described = (inception.dimensions, inception.reduction, inception.classes, inception.encoder)
    assert described == (2048, None, None, None)
    assert "TensorFlow 1's bilinear to 299 x 299" in inception.resize


def test_inception_of_other_weights_has_another_hash(inception, folder, inception_weights):
    weights = torch.load(inception_weights, weights_only=True)
    weights["fc.bias"][0] += 1
    (folder / INCEPTION).unlink()
    torch.save(weights, folder / INCEPTION)
    assert load_detector("inception-2015").hash != inception.hash


def test_missing_weights_of_inception_are_named_with_their_place(folder):
    with pytest.raises(ValueError, match=rf"download https://.*/{INCEPTION} into the folder {folder}, or set"):
        load_detector("inception-2015")


def test_other_files_are_not_taken_for_inceptions(folder, inception_weights, monkeypatch):
    file = folder / INCEPTION
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=f"{INCEPTION} does not have the weights of Inception"):
        load_detector("inception-2015")
    torch.save({"state": SimpleNamespace()}, file)
    with pytest.raises(ValueError, match=f"{INCEPTION} is damaged, or has more than plain tensors"):
        load_detector("inception-2015")
    monkeypatch.setattr(inception_2015, "_SHA256", "6726825d")
    file.unlink()
    file.symlink_to(inception_weights)
    with pytest.raises(ValueError, match=rf"{INCEPTION} is damaged or from another release: .* begins with 6726825d"):
        load_detector("inception-2015")


def test_inception_without_torch_fidelity_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        load_detector("inception-2015")


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """Random weights of DINOv2-S, large enough for every block and position to count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
        for name, value in weights.items():
            if name.endswith(("gamma", "bias", "pos_embed", "cls_token")):
                value.normal_(std=0.3)
    return weights


@pytest.fixture
def dinov2(folder, small, monkeypatch):
    save_file(small, folder / "dinov2-s.safetensors")
    monkeypatch.setattr(dinov2_file, "_ENCODER", "dinov2-s")
    return load_detector("dinov2")


def facebooks_positions() -> Tensor:
    """16 x 37: each row holds the weights of a bicubic kernel (a = -.75) at the place that Facebook's code looks at."""
    matrix = torch.zeros(16, 37, dtype=torch.float64)
    for row in range(16):
        place = (row + 0.5) * 37 / 16.1 - 0.5
        for cell in range(int(place) - 1, int(place) + 3):
            x, a = abs(place - cell), -0.75
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            matrix[row, min(max(cell, 0), 36)] += near if x <= 1 else far
    return matrix


def test_positions_are_resampled_as_facebooks_code_does():
    grid = torch.randn(37, 37, 5, generator=torch.Generator().manual_seed(0))
    first = torch.arange(5.0).expand(1, 1, 5)
    found = dinov2_file._resampled(torch.cat([first, grid.reshape(1, 1369, 5)], dim=1), 16)
    matrix = facebooks_positions()
    expected = torch.einsum("xi,yj,ijd->xyd", matrix, matrix, grid.double()).reshape(1, 256, 5)
    assert torch.equal(found[:, :1], first)
    torch.testing.assert_close(found[:, 1:].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 300])
def test_dinov2_is_the_class_token_of_pils_pixels(dinov2, small, size):
    images = photographs(2, size)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224).eval()
    positions = dinov2_file._resampled(small["pos_embed"], 16)
    network.load_state_dict(small | {"pos_embed": positions})
    resized = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in images]
    pixels = ((torch.from_numpy(np.stack(resized)) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.forward_features(pixels)[:, 0]
    found = dinov2(images)
    assert found.features.shape == (2, 384) and (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(found.features, expected, atol=1e-3, rtol=1e-3)
    assert found.spatial is None and found.logits is None


def test_dinov2_tells_itself_and_takes_grey_images(dinov2, small, folder):
    grey = photographs(1, 32, channels=1)
    assert torch.allclose(dinov2(grey).features, dinov2(grey.repeat(1, 3, 1, 1)).features, atol=1e-5)
    described = (dinov2.dimensions, dinov2.reduction, dinov2.classes, dinov2.encoder)
    assert described == (384, None, None, "dinov2")
    assert "PIL's bicubic to 224 x 224" in dinov2.resize
    save_file(small | {"norm.bias": small["norm.bias"] + 1}, folder / "dinov2-s.safetensors")
    assert load_detector("dinov2").hash != dinov2.hash


def test_missing_weights_of_dinov2_are_told(folder):
    with pytest.raises(ValueError, match=rf"'dinov2-l' has no weights here .* {folder}/dinov2-l.safetensors"):
        load_detector("dinov2")
