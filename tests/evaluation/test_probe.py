import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workbench.evaluation.probe import REGULARIZATIONS, linear_probe, stratified_splits
from workbench.evaluation.statistics import wilson


def clusters(n, d, classes, spread, seed=0):
    """Balanced labels in random order and Gaussian features round class centres of that spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % classes
    centres = spread * torch.randn(classes, d, generator=generator)
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def test_splits_are_disjoint_cover_everything_and_keep_the_class_shares():
    labels = torch.tensor([0] * 100 + [1] * 40 + [7] * 20)
    splits = stratified_splits(labels, seed=0)
    parts = (splits.fit, splits.choose, splits.report)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(160))
    counts = [[int((labels.numpy()[part] == label).sum()) for label in (0, 1, 7)] for part in parts]
    assert counts == [[50, 20, 10], [20, 8, 4], [30, 12, 6]]


def test_splits_depend_on_the_seed_only():
    labels = torch.arange(90) % 3
    assert np.array_equal(stratified_splits(labels, seed=1).fit, stratified_splits(labels, seed=1).fit)
    assert not np.array_equal(stratified_splits(labels, seed=1).fit, stratified_splits(labels, seed=2).fit)


@pytest.mark.parametrize("split", [(0.5, 0.5, 0.0), (0.5, 0.2, 0.2)])
def test_splits_refuse_shares_that_do_not_add_up(split):
    with pytest.raises(ValueError, match="sum to 1"):
        stratified_splits(torch.arange(90) % 3, seed=0, split=split)


def test_splits_name_a_class_that_is_too_small():
    with pytest.raises(ValueError, match="class 4 has 1 rows"):
        stratified_splits(torch.tensor([0] * 20 + [4]), seed=0)


def test_separable_classes_are_read_almost_perfectly():
    features, labels = clusters(400, 16, classes=5, spread=5.0)
    probe = linear_probe(features, labels, seed=0)
    assert probe.accuracy > 0.98
    assert probe.count == 120
    interval = wilson(round(probe.accuracy * 120), 120)
    assert (probe.low, probe.high) == (interval.low, interval.high)
    # Every penalty is right on all rows here: a tie, which goes to the strongest penalty.
    assert probe.regularization == REGULARIZATIONS[0]


def test_shuffled_labels_are_read_at_chance():
    features, labels = clusters(400, 32, classes=4, spread=5.0)
    covered = 0
    for seed in range(20):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        probe = linear_probe(features, labels[order], seed=seed)
        covered += probe.low <= 0.25 <= probe.high
    # 95 % intervals: fewer than 16 of 20 would happen about once in 400 times.
    assert covered >= 16


def test_scale_of_single_dimensions_does_not_matter():
    features, labels = clusters(300, 8, classes=3, spread=0.7)
    scales = 10.0 ** torch.arange(-4, 4)
    first, second = linear_probe(features, labels, seed=0), linear_probe(features * scales, labels, seed=0)
    assert 0.4 < first.accuracy < 0.98
    assert first == second


def test_the_reported_split_takes_no_part_in_the_choice():
    features, labels = clusters(400, 32, classes=4, spread=0.4)
    report = torch.from_numpy(stratified_splits(labels, seed=0).report)
    changed = features.clone()
    changed[report] = features.mean(dim=0)
    probe, blind = linear_probe(features, labels, seed=0), linear_probe(changed, labels, seed=0)
    assert blind.regularization == probe.regularization
    # One constant row gets one class: exactly the share of that class, a quarter of balanced labels.
    assert blind.accuracy == 0.25
    assert probe.accuracy > 0.5


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_the_penalty_is_the_best_of_the_second_split_and_not_of_the_third(seed):
    features, labels = clusters(400, 32, classes=4, spread=0.3)
    splits, rows, values = stratified_splits(labels, seed=seed), features.double().numpy(), labels.numpy()
    choose, report = [], []
    for penalty in REGULARIZATIONS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000))
        model.fit(rows[splits.fit], values[splits.fit])
        choose.append(model.score(rows[splits.choose], values[splits.choose]))
        report.append(model.score(rows[splits.report], values[splits.report]))
    chosen = int(np.argmax(choose))
    # These seeds tell the two splits apart: the third one would have preferred another penalty.
    assert chosen != int(np.argmax(report))
    probe = linear_probe(features, labels, seed=seed)
    assert probe.regularization == REGULARIZATIONS[chosen]
    assert probe.accuracy == pytest.approx(report[chosen], abs=0.01)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.ones(20).long(), seed=0)
