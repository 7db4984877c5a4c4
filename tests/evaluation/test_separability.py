import math

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from workbench.evaluation import separability as module
from workbench.evaluation.probe import stratified_splits
from workbench.evaluation.separability import class_scatter, cosine_silhouette, nearest_votes, separability, unit_rows
from workbench.evaluation.statistics import wilson


def clusters(n=300, d=12, classes=3, spread=0.7, seed=0):
    """Balanced labels in random order and Gaussian features round class centres of that spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % classes
    centres = spread * torch.randn(classes, d, generator=generator)
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def test_classes_that_are_orthogonal_points_separate_perfectly():
    labels = torch.arange(200) % 4
    found = separability(torch.nn.functional.one_hot(labels).float(), labels, seed=0)
    for held_out in (found.knn, found.lda):
        for share, count in ((held_out.choose, 40), (held_out.report, 60)):
            interval = wilson(count, count)
            assert (share.value, share.low, share.high, share.count) == (1.0, interval.low, interval.high, count)
    assert found.silhouette == pytest.approx(1)
    assert (found.davies_bouldin, found.fisher) == (0.0, math.inf)
    assert (found.neighbours, found.classes, found.count) == (20, 4, 200)


def test_two_classes_on_a_line_by_hand():
    # Rows at 3 +- 1/2 and -3 +- 1/2: means +-3, so between 9 and within 1/4; mean distance to the own mean 1/2,
    # between the means 6: Davies-Bouldin (1/2 + 1/2) / 6. Cosines are 1 inside and -1 across: silhouette 1.
    labels = torch.arange(80) % 2
    offsets = torch.tensor([0.5, 0.5, -0.5, -0.5]).repeat(20)
    found = separability(((3 - 6.0 * labels) + offsets)[:, None], labels, seed=0)
    assert found.fisher == pytest.approx(36)
    assert found.davies_bouldin == pytest.approx(1 / 6)
    assert found.silhouette == pytest.approx(1)
    assert found.knn.report.value == found.lda.report.value == 1


def test_orthogonal_pairs_have_the_silhouette_of_their_angles():
    # Each class holds two directions at 60 degrees (distance 1/2), half its rows each; the classes are orthogonal
    # (distance 1). Of 40 rows of a class, a row has 20 at distance 1/2 and 19 at 0: a = 10/39, silhouette 1 - a.
    near, far = (1.0, 0.0), (0.5, math.sqrt(3) / 2)
    pairs = torch.tensor([(*near, 0, 0), (*far, 0, 0), (0, 0, *near), (0, 0, *far)])
    found = separability(pairs.repeat(20, 1), torch.tensor([0, 0, 1, 1]).repeat(20), seed=0)
    assert found.silhouette == pytest.approx(29 / 39)


def test_scatter_adds_up_and_agrees_with_calinski_harabasz():
    features, labels = clusters()
    rows = features.double().numpy()
    scatter = class_scatter(rows, labels.numpy())
    assert scatter.between + scatter.within == pytest.approx(rows.var(axis=0).sum())
    # Calinski-Harabasz is the same ratio over its degrees of freedom, (k - 1) and (n - k).
    expected = calinski_harabasz_score(rows, labels.numpy()) * 2 / 297
    assert scatter.between / scatter.within == pytest.approx(expected)


def test_rotation_scale_and_names_of_classes_do_not_matter():
    features, labels = clusters()
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    first = separability(features, labels, seed=0)
    second = separability(100 * features @ rotation, 5 * labels + 2, seed=0)
    assert 0.4 < first.knn.report.value < 0.99
    assert second.knn == first.knn
    for name in ("silhouette", "davies_bouldin", "fisher"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-4)


def test_neighbours_vote_by_cosine_within_the_first_split():
    features, labels = clusters(classes=2, spread=0.3)
    splits, rows = stratified_splits(labels, seed=4), unit_rows(features.double().numpy())
    for part in ("choose", "report"):
        own = getattr(splits, part)
        nearest = np.argsort(-rows[own] @ rows[splits.fit].T, axis=1)[:, :5]
        votes = labels.numpy()[splits.fit][nearest].mean(axis=1) > 0.5
        share = getattr(separability(features, labels, seed=4, neighbours=5).knn, part)
        assert share.value == pytest.approx((votes == labels.numpy()[own]).mean())


def test_cosine_measures_ignore_the_lengths_of_rows():
    features, labels = clusters()
    lengths = torch.rand(300, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    first, second = separability(features, labels, seed=0), separability(lengths * features, labels, seed=0)
    assert first.knn == second.knn
    assert first.silhouette == pytest.approx(second.silhouette, abs=1e-6)
    assert first.fisher != pytest.approx(second.fisher, rel=0.01)


def test_discriminant_uses_what_variance_hides_from_neighbours():
    # A class difference of 4 deviations in one dimension among nineteen that are far noisier.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    features = 50 * torch.randn(600, 20, generator=generator)
    features[:, 0] = 4.0 * labels + torch.randn(600, generator=generator)
    found = separability(features, labels, seed=0)
    # The best possible accuracy is that of two normals 4 deviations apart: Phi(2) = .977.
    assert found.lda.report.low > 0.9
    assert found.knn.report.value < 0.65


def test_shuffled_labels_are_at_chance():
    features, labels = clusters(400, 16, classes=4, spread=5.0)
    covered = {"knn": 0, "lda": 0}
    for seed in range(20):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        found = separability(features, labels[order], seed=seed)
        assert found.silhouette < 0 and found.fisher < 0.03  # by chance (k - 1) / (n - k) = .008
        for name in covered:
            share = getattr(found, name).report
            covered[name] += share.low <= 0.25 <= share.high
    # 95 % intervals: fewer than 16 of 20 would happen about once in 400 times.
    assert min(covered.values()) >= 16


@pytest.mark.parametrize(("classes", "spread"), [(2, 0.0), (3, 0.7), (7, 5.0)])
def test_silhouette_is_scikit_learn_s(classes, spread):
    features, labels = clusters(classes=classes, spread=spread)
    unit = unit_rows(features.double().numpy())
    alone = labels.numpy().copy()
    alone[5] = 99  # a row alone in its class counts as 0
    for values in (labels.numpy(), 3 * labels.numpy() - 1, alone):
        expected = silhouette_score(unit, values, metric="cosine")
        assert cosine_silhouette(unit, values) == pytest.approx(expected, abs=1e-12)


def test_silhouette_of_one_direction_is_zero():
    unit = unit_rows(np.linspace(1, 2, 40)[:, None] * np.array([[1.0, 2.0, 3.0]]))
    assert cosine_silhouette(unit, np.arange(40) % 2) == 0


def halves(n=300):
    return np.arange(n // 2), np.arange(n // 2, n)


@pytest.mark.parametrize("neighbours", [1, 2, 20, 150])
def test_votes_are_scikit_learn_s(neighbours, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 40)
    features, labels = clusters(spread=0.3)
    unit, values, (fit, asked) = unit_rows(features.double().numpy()), labels.numpy(), halves()
    expected = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(unit[fit], values[fit])
    assert np.array_equal(nearest_votes(unit, values, fit, asked, neighbours), expected.predict(unit[asked]))


@pytest.mark.parametrize("neighbours", [4, 20])
def test_votes_and_distances_that_tie_go_as_scikit_learn_s(neighbours):
    # Eight directions of numbers that are exact, so most distances are equal, and labels that follow them loosely.
    generator = np.random.default_rng(0)
    unit = np.concatenate([np.eye(4), -np.eye(4)])[generator.integers(8, size=300)]
    values, (fit, asked) = generator.integers(5, 9, size=300), halves()
    expected = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(unit[fit], values[fit])
    assert np.array_equal(nearest_votes(unit, values, fit, asked, neighbours), expected.predict(unit[asked]))


def test_of_equally_frequent_labels_the_smallest_wins():
    unit, values = np.eye(2)[[0, 0, 0, 0, 1, 0]], np.array([7, 3, 7, 3, 1, 0])
    assert nearest_votes(unit, values, np.arange(5), np.array([5]), 4).tolist() == [3]


def test_what_cannot_be_measured_is_refused():
    features, labels = clusters(60)
    with pytest.raises(ValueError, match="got 1 classes"):
        separability(features, torch.zeros(60).long(), seed=0)
    with pytest.raises(ValueError, match="rows that are all equal"):
        separability(torch.ones(60, 3), labels, seed=0)
    with pytest.raises(ValueError, match="31 neighbours; allowed are 1 to the 30 rows"):
        separability(features, labels, seed=0, neighbours=31)
    with pytest.raises(ValueError, match="row 7 of the features is zero"):
        separability(features.index_fill(0, torch.tensor([7]), 0), labels, seed=0)
    with pytest.raises(ValueError, match="row 7 .*not finite"):
        separability(features.index_fill(0, torch.tensor([7]), math.nan), labels, seed=0)
