"""Leakage controls, on features that are known: patches of x_t beside the name of the label."""

import pytest
import torch

from workbench.diffusion.randomness import normal
from workbench.evaluation.leakage import condition_share, leakage, version
from workbench.evaluation.probe import linear_probe
from workbench.features.cache import array_file, write_array
from workbench.features.grid import LABELS, FeatureGrid, wrong_labels

CLASSES, COUNT, SHAPE = 4, 240, (4, 8)


@pytest.fixture
def known(tmp_path):
    """A grid of one layer: 4 tokens (image_gain x part of x_t, label_gain x one-hot label); the null label is zeros.

    `turned` mixes the dimensions by a rotation, since in no network a dimension is constant within each class.
    """

    def grid(image_gain: float, label_gain: float, t: float, turned: bool = False) -> FeatureGrid:
        turn = torch.linalg.qr(normal(0, "turn", [0], (12, 12))[0])[0] if turned else torch.eye(12)
        true = torch.arange(COUNT) % CLASSES
        given = torch.from_numpy(wrong_labels(true.numpy(), seed=0))
        # The class is a strong pattern of the image; noise in its place has none.
        z = 2 * normal(0, "patterns", range(CLASSES), SHAPE)[true] + 0.5 * normal(0, "images", range(COUNT), SHAPE)
        eps, blank = (normal(0, stream, range(COUNT), SHAPE) for stream in ("noise", "noise-image"))
        names = {"null": torch.zeros(COUNT, CLASSES), "true": torch.eye(CLASSES)[true], "given": torch.eye(4)[given]}
        for label, (noise, told) in LABELS.items():
            x_t = (1 - t) * (blank if noise else z) + t * eps
            name = names[told][:, None].expand(-1, 4, -1)
            tokens = torch.cat([image_gain * x_t, label_gain * name], dim=2)
            write_array(array_file(tmp_path, label, t, 1), (tokens @ turn).numpy())
        return FeatureGrid(
            run="known",
            step=1,
            layers=(1,),
            times=(t,),
            labels=tuple(LABELS),
            pooling="tokens",
            rows=tuple(range(COUNT)),
            true=true,
            given=given,
            classes=tuple("abcd"),
            folder=tmp_path,
        )

    return grid


def test_versions_at_a_scale_are_linear_in_it(known):
    grid = known(1.0, 1.0, 0.5)
    names = ("null", "true", "wrong_by_true", "wrong_by_given", "label_only")
    at_zero, at_thirty = ({name: version(grid, name, 1, 0.5, scale) for name in names} for scale in (0.0, 30.0))
    for name, (_, labels) in at_zero.items():
        assert torch.equal(labels, grid.given if name == "wrong_by_given" else grid.true)
    assert torch.equal(at_zero["true"][0], at_zero["null"][0])
    assert torch.equal(at_zero["label_only"][0], grid.read(1, 0.5, "noise-null").mean(dim=1))
    assert torch.equal(at_thirty["null"][0], at_zero["null"][0])
    for name, told in (("true", grid.true), ("wrong_by_true", grid.given), ("label_only", grid.true)):
        torch.testing.assert_close(at_thirty[name][0][:, 8:], 30 * torch.eye(4)[told])
        torch.testing.assert_close(at_thirty[name][0][:, :8], at_zero[name][0][:, :8])


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


def test_features_of_the_image_alone_leak_nothing(known):
    found = leakage(known(1.0, 0.0, 0.4), 1, 0.4, 30.0, seed=0)
    assert found.true == found.null == found.wrong_by_true and found.true.knn.report.value > 0.95
    assert at_chance(found.wrong_by_given.knn.report) and at_chance(found.label_only.knn.report)
    assert found.wrong_by_given.silhouette < 0.02 and found.label_only.silhouette < 0.02
    assert found.condition.share < 0.02 < 0.4 < found.condition.by_image


def test_features_of_the_label_alone_are_all_leakage(known):
    found = leakage(known(1e-3, 1.0, 1.0, turned=True), 1, 1.0, 1.0, seed=0)
    for measured in (found.true, found.wrong_by_given, found.label_only):
        assert measured.knn.report.value == measured.lda.report.value == 1
        assert measured.silhouette == pytest.approx(1, abs=1e-4)
    assert at_chance(found.wrong_by_true.knn.report) and found.wrong_by_true.silhouette < 0
    assert found.condition.share > 0.98 and found.condition.by_condition > 0.999


def test_at_pure_noise_the_null_label_is_at_chance_and_the_true_label_reads_itself(known):
    found = leakage(known(1.0, 5.0, 1.0), 1, 1.0, 1.0, seed=0)
    assert at_chance(found.null.knn.report) and at_chance(found.null.lda.report)
    assert found.true.knn.report.value > 0.99 and found.label_only.knn.report.value > 0.99


def test_guidance_moves_the_share_from_the_image_to_the_condition_and_makes_the_label_s_clusters_points(known):
    grid = known(1.0, 0.3, 0.4)
    found = [leakage(grid, 1, 0.4, scale, seed=0) for scale in (0.0, 1.0, 5.0, 30.0, 1000.0)]
    shares = [at.condition.share for at in found]
    assert shares == sorted(shares) and shares[0] < 0.02 and shares[-1] > 0.95
    silhouettes = [at.label_only.silhouette for at in found]
    # Of an image that is noise: nothing at scale 0, and at a large one clusters that look perfect.
    assert silhouettes == sorted(silhouettes) and silhouettes[0] < 0.02 and silhouettes[-1] > 0.999


def test_shuffled_labels_are_at_chance_even_in_features_that_carry_the_label(known):
    features, true = version(known(1.0, 1.0, 0.4), "true", 1, 0.4, 30.0)
    assert linear_probe(features, true, seed=0).accuracy == 1
    shuffled = [torch.from_numpy(wrong_labels(true.numpy(), seed=seed)) for seed in range(5)]
    assert all(at_chance(linear_probe(features, labels, seed=0)) for labels in shuffled)
