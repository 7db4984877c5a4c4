"""Leakage controls, on a network whose features are known: patches of x_t beside the name of the label."""

import numpy as np
import pytest
import torch

from workbench.backbones.sit import Backbone
from workbench.data.latents import Latents
from workbench.data.shards import open_shards, write_shards
from workbench.diffusion.randomness import normal
from workbench.diffusion.tokens import patchify
from workbench.evaluation.leakage import condition_share, extract_controls, leakage, wrong_labels
from workbench.evaluation.probe import linear_probe
from workbench.features.extract import extract

CLASSES, COUNT, SHAPE = 4, 240, (2, 4, 4)
SETTINGS = dict(size="nano", patch=2, channels=2, height=4, classes=CLASSES, learn_sigma=False, checkpoint_blocks=False)


class Known(Backbone):
    """Every layer is (image_gain x patches of x_t, label_gain x one-hot label); the null label is all zeros."""

    image_gain = label_gain = 1.0

    def features(self, x_t, t, y, layers):
        patches = patchify(x_t, 2)
        names = torch.eye(CLASSES + 1)[:, :CLASSES][y][:, None].expand(-1, patches.shape[1], -1)
        return {n: torch.cat([self.image_gain * patches, self.label_gain * names], dim=2) for n in layers}


def known(image_gain: float, label_gain: float) -> Known:
    backbone = Known(**SETTINGS)
    backbone.image_gain, backbone.label_gain = image_gain, label_gain
    return backbone


def make_latents(folder, labels: np.ndarray) -> Latents:
    """Latents whose class is a strong pattern of the image; the images do not depend on `labels`."""
    patterns = 2 * normal(0, "patterns", range(CLASSES), SHAPE)

    def rows(indices):
        means = patterns[indices % CLASSES] + 0.5 * normal(0, "images", indices, SHAPE)
        moments = torch.cat([means, torch.full_like(means, 0.1)], dim=1)
        return {"moments": moments.numpy(), "labels": labels[indices]}

    described = {"shape": [4, 4, 4], "classes": [str(k) for k in range(CLASSES)], "content": "patterns"}
    write_shards(folder, COUNT, rows, described)
    return Latents(open_shards(folder))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return make_latents(tmp_path_factory.mktemp("latents"), np.arange(COUNT) % CLASSES)


def test_wrong_labels_are_the_same_labels_in_another_order():
    labels = np.arange(400) % 4
    wrong = wrong_labels(labels, seed=0)
    assert np.bincount(wrong).tolist() == [100] * 4
    assert np.array_equal(wrong, wrong_labels(labels, seed=0))
    assert not np.array_equal(wrong, wrong_labels(labels, seed=1))
    # Independent: each of the 16 pairs is expected 25 times, with a deviation of about 4.
    pairs = np.bincount(4 * labels + wrong, minlength=16)
    assert abs(pairs - 25).max() < 17


def test_each_version_is_what_extraction_gives_for_its_labels(latents, tmp_path):
    backbone = Backbone(**SETTINGS)
    backbone.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():  # a new model gates its label away
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    indices = range(COUNT)
    controls = extract_controls(backbone, latents, indices, [0, 2], 0.4, seed=3)
    plain = extract(backbone, latents, indices, [0, 2], 0.4, seed=3)
    relabelled = extract(backbone, make_latents(tmp_path, controls.given.numpy()), indices, [2], 0.4, seed=3)
    assert torch.equal(controls.image.f_c[2], plain.f_c[2]) and torch.equal(controls.wrong.f_u[2], plain.f_u[2])
    assert torch.equal(controls.wrong.f_c[2], relabelled.f_c[2])
    assert torch.equal(controls.true, torch.arange(COUNT) % CLASSES)
    changed = (controls.wrong.f_c[2] - plain.f_c[2]).abs().amax(dim=(1, 2)) > 1e-3
    assert torch.equal(changed, controls.given != controls.true)


def test_the_noise_image_is_noise_seen_at_the_same_time(latents):
    indices = [5, 17, 201]
    controls = extract_controls(known(1.0, 1.0), latents, indices, [1], 0.3, seed=2)
    x_t = 0.7 * normal(2, "feature-noise-image", indices, SHAPE) + 0.3 * normal(2, "feature-noise", indices, SHAPE)
    torch.testing.assert_close(controls.noise.f_u[1][:, :, :8], patchify(x_t, 2))
    names = controls.noise.f_c[1][:, 0, 8:]
    assert names.argmax(dim=1).tolist() == [1, 1, 1] and not controls.noise.f_u[1][:, :, 8:].any()


def test_versions_at_a_scale_are_linear_in_it(latents):
    controls = extract_controls(known(1.0, 1.0), latents, range(8), [1], 0.5)
    at_one, at_zero, at_thirty = (controls.versions(1, scale) for scale in (1.0, 0.0, 30.0))
    assert torch.equal(at_one.true, controls.image.f_c[1]) and torch.equal(at_one.wrong, controls.wrong.f_c[1])
    assert torch.equal(at_zero.true, at_zero.null) and torch.equal(at_zero.wrong, at_zero.null)
    assert torch.equal(at_zero.label_only, controls.noise.f_u[1])
    torch.testing.assert_close(at_thirty.wrong[:, 0, 8:], 30 * torch.eye(4)[controls.given])
    torch.testing.assert_close(at_thirty.wrong[:, :, :8], at_zero.null[:, :, :8])


@pytest.mark.parametrize(("condition", "image"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (3.0, 1.0)])
def test_condition_share_in_closed_form(condition, image):
    # All 16 pairs of labels ten times: the two parts are orthogonal. A one-hot of 4 classes has variance 3/4, so the
    # given label explains c^2 / (c^2 + i^2 + noise), where noise is two rows in ten at +- 1 in two more dimensions.
    given, true = (part.flatten() for part in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    given, true = given.repeat(10), true.repeat(10)
    noise = torch.tensor([1.0, -1.0] + 8 * [0.0]).repeat_interleave(16)[:, None]
    eye = torch.eye(4)
    found = condition_share(torch.cat([condition * eye[given], image * eye[true], noise], dim=1), true, given)

    def explained(part):
        eta2 = 0.75 * part**2 / (0.75 * condition**2 + 0.75 * image**2 + 0.2)
        return max(0.0, 1 - (1 - eta2) * 159 / 156)

    assert found.by_condition == pytest.approx(explained(condition), abs=1e-6)
    assert found.by_image == pytest.approx(explained(image), abs=1e-6)
    assert found.share == pytest.approx(explained(condition) / (explained(condition) + explained(image)), abs=1e-6)


def test_condition_share_of_features_without_classes_is_none():
    labels = torch.arange(16) % 4
    rows = (torch.arange(16) // 4).float()[:, None]  # each class has every value
    found = condition_share(rows, labels, labels.roll(1))
    assert (found.by_condition, found.by_image, found.share) == (0.0, 0.0, None)
    with pytest.raises(ValueError, match="all rows"):
        condition_share(torch.ones(16, 2), labels, labels)
    with pytest.raises(ValueError, match="16 classes for 16 rows"):
        condition_share(rows, torch.arange(16), labels)


def at_chance(share) -> bool:
    """A quarter lies in an interval widened to 99.9 %: 3.29 deviations for the 1.96 of the 95 % one."""
    half = (share.high - share.low) / 2 * 3.29 / 1.96
    return abs((share.high + share.low) / 2 - 0.25) < half


def test_features_of_the_image_alone_leak_nothing(latents):
    found = leakage(extract_controls(known(1.0, 0.0), latents, range(COUNT), [1], 0.4), 1, 30.0, seed=0)
    assert found.true == found.null == found.wrong_by_true and found.true.knn.report.value > 0.95
    assert at_chance(found.wrong_by_given.knn.report) and at_chance(found.label_only.knn.report)
    assert found.wrong_by_given.silhouette < 0.02 and found.label_only.silhouette < 0.02
    assert found.condition.share < 0.02 < 0.4 < found.condition.by_image


def test_features_of_the_label_alone_are_all_leakage(latents):
    found = leakage(extract_controls(known(1e-3, 1.0), latents, range(COUNT), [1], 1.0), 1, 1.0, seed=0)
    for version in (found.true, found.wrong_by_given, found.label_only):
        assert version.knn.report.value == version.lda.report.value == 1
        assert version.silhouette == pytest.approx(1, abs=1e-4)
    assert at_chance(found.wrong_by_true.knn.report) and found.wrong_by_true.silhouette < 0
    assert found.condition.share > 0.98 and found.condition.by_condition > 0.999


def test_at_pure_noise_the_null_label_is_at_chance_and_the_true_label_reads_itself(latents):
    found = leakage(extract_controls(known(1.0, 5.0), latents, range(COUNT), [1], 1.0), 1, 1.0, seed=0)
    assert at_chance(found.null.knn.report) and at_chance(found.null.lda.report)
    assert found.true.knn.report.value > 0.99 and found.label_only.knn.report.value > 0.99


def test_guidance_moves_the_share_from_the_image_to_the_condition(latents):
    controls = extract_controls(known(1.0, 0.3), latents, range(COUNT), [1], 0.4)
    shares = [leakage(controls, 1, scale, seed=0).condition.share for scale in (0.0, 1.0, 5.0, 30.0)]
    assert shares == sorted(shares) and shares[0] < 0.02 and shares[-1] > 0.95


def test_shuffled_labels_are_at_chance_even_in_features_that_carry_the_label(latents):
    controls = extract_controls(known(1.0, 1.0), latents, range(COUNT), [1], 0.4)
    features = controls.versions(1, 30.0).true.mean(dim=1)
    assert linear_probe(features, controls.true, seed=0).accuracy == 1
    shuffled = [torch.from_numpy(wrong_labels(controls.true.numpy(), seed=seed)) for seed in range(5)]
    assert all(at_chance(linear_probe(features, labels, seed=0)) for labels in shuffled)
