"""What every detector keeps; those whose weights lie in packages are asked here, the others in test_networks."""

from dataclasses import replace

import pytest
import torch

from workbench import plugins
from workbench.evaluation.detectors import base
from workbench.evaluation.detectors.base import Detected, Detector, joined, load_detector
from workbench.evaluation.metrics import metric_name

HERE = ("clf64", "effnet-lite0", "randomconv", "pixels-pca64")
WIDTHS = {"clf64": 64, "effnet-lite0": 1280, "randomconv": 64, "pixels-pca64": 1024}
REDUCTIONS = {"clf64": None, "effnet-lite0": 64, "randomconv": None, "pixels-pca64": 64}


@pytest.fixture(scope="module")
def loaded():
    return {name: load_detector(name) for name in HERE}


def pictures(count: int, channels: int = 1, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", HERE)
def test_a_detector_describes_itself_and_what_it_sees(loaded, name):
    detector = loaded[name]
    found = detector(pictures(3))
    assert isinstance(detector, Detector) and detector.name == name
    assert len(detector.hash) == 64 and int(detector.hash, 16)
    assert detector.resize and detector.reduction == REDUCTIONS[name]
    assert found.features.shape == (3, WIDTHS[name]) and detector.dimensions in (WIDTHS[name], None)
    assert found.features.dtype == torch.float32 and not found.features.requires_grad
    assert detector.encoder == ("effnet-lite0" if name == "effnet-lite0" else None)
    assert (found.spatial is None) == (name == "pixels-pca64")
    assert (found.logits is None) == (detector.classes is None) == (name != "clf64")


@pytest.mark.parametrize("name", HERE)
def test_an_image_has_its_features_in_any_company(loaded, name, monkeypatch):
    images, detector = pictures(11), loaded[name]
    together = detector(images)
    monkeypatch.setattr(base, "DETECTION_BATCH", 4)
    monkeypatch.setattr("workbench.evaluation.detectors.clf64.DETECTION_BATCH", 4)
    for parts in (detector(images), joined([detector(part) for part in images.split(5)])):
        torch.testing.assert_close(together.features, parts.features, atol=1e-4, rtol=1e-4)
        if together.spatial is not None:
            torch.testing.assert_close(together.spatial, parts.spatial, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["effnet-lite0", "randomconv"])
def test_grey_images_are_three_equal_channels(loaded, name):
    grey = pictures(2)
    one, three = loaded[name](grey), loaded[name](grey.repeat(1, 3, 1, 1))
    assert torch.allclose(one.features, three.features, atol=1e-5)
    assert torch.allclose(one.spatial, three.spatial, atol=1e-5)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(
    ("images", "came"), [(pictures(2).float(), "float32 with 1 channels"), (pictures(2, 4), "uint8 with 4 channels")]
)
def test_other_images_are_refused(loaded, name, images, came):
    with pytest.raises(ValueError, match=f"got images of torch.{came} of 32 x 32 pixels; {name} takes torch.uint8"):
        loaded[name](images)


def test_no_two_detectors_share_a_hash(loaded):
    assert len({detector.hash for detector in loaded.values()}) == len(HERE)


def test_an_unknown_detector_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"detector 'clf' is not known; did you mean 'clf64'\? Allowed: clf64, clf64-scenes, dinov2"
    ):
        load_detector("clf")


def test_metric_names():
    names = {
        kind: [metric_name(detector, kind) for detector in ("inception-2015", "clf64", "dinov2")]
        for kind in ("fd", "sfd", "kid", "is", "precision", "fd-inf", "memorisation", "class-agreement")
    }
    assert names == {
        "fd": ["fid", "fd-clf64", "fd-dinov2"],
        "sfd": ["sfid", "sfd-clf64", "sfd-dinov2"],
        "kid": ["kid", "kid-clf64", "kid-dinov2"],
        "is": ["is", "is-clf64", "is-dinov2"],
        "precision": ["precision", "precision-clf64", "precision-dinov2"],
        "fd-inf": ["fid-inf", "fd-inf-clf64", "fd-inf-dinov2"],
        "memorisation": ["memorisation", "memorisation-clf64", "memorisation-dinov2"],
        "class-agreement": ["class-agreement-inception-2015", "class-agreement", "class-agreement-dinov2"],
    }


def test_metric_names_tell_detectors_and_kinds_apart():
    kinds = ("fd", "sfd", "kid", "is", "precision", "recall", "density", "coverage", "fd-inf", "memorisation")
    names = {
        metric_name(detector, kind) for detector in plugins.names("detector") for kind in (*kinds, "class-agreement")
    }
    assert len(names) == 11 * len(plugins.names("detector"))
    for unknown in (("clf32", "fd"), ("clf64", "fid")):
        with pytest.raises(ValueError, match="is not known"):
            metric_name(*unknown)


@pytest.mark.parametrize("name", ["clf64", "randomconv", "effnet-lite0"])
def test_a_detector_in_bfloat16_is_close_and_another_one(loaded, name):
    single, half = loaded[name], load_detector(name, precision="bf16")
    images = pictures(1)
    first, second = single(images), half(images)
    assert isinstance(half, Detector) and half.hash != single.hash
    alike = ("name", "dimensions", "resize", "reduction", "classes", "encoder")
    assert all(getattr(half, of) == getattr(single, of) for of in alike)
    for of in ("features", "spatial", "logits"):
        exact, rounded = getattr(first, of), getattr(second, of)
        assert (exact is None) == (rounded is None)
        if exact is not None:
            assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
            assert (exact - rounded).norm() < 0.06 * exact.norm()


def test_batches_are_joined_in_order():
    first, second = (Detected(torch.full((n, 2), float(n)), torch.zeros(n, 7, 1, 1), None) for n in (1, 3))
    both = joined([first, second])
    assert both.features[:, 0].tolist() == [1, 3, 3, 3] and both.spatial.shape == (4, 7, 1, 1) and both.logits is None


@pytest.fixture(params=[True, False])
def tf32(request):
    """Whether a training has allowed products of lower precision on a GPU, in both places."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = request.param
    yield lambda: [place.allow_tf32 for place in places]
    for place, value in zip(places, kept, strict=True):
        place.allow_tf32 = value


def test_features_are_of_single_precision_whatever_training_allows(loaded, tf32):
    before, seen = tf32(), []
    hook = loaded["clf64"].model.stages.register_forward_hook(lambda *_: seen.append(tf32()))
    loaded["clf64"](pictures(1))
    hook.remove()
    assert seen == [[False, False]] and tf32() == before

    def broken(*_):
        seen.append(tf32())
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        replace(loaded["randomconv"], read=broken)(pictures(1))
    assert seen[1] == [False, False] and tf32() == before
