import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kernel_mmd,
    kid_features_to_metric,
)

from workbench.evaluation.scores.kid import kid, squared_discrepancy


def sample(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_discrepancy_of_two_pairs_by_hand():
    # d = 1: k(a, b) = (ab + 1)^3. Within x = {0, 1}: k(0, 1) = 1; within y = {1, 2}: k(1, 2) = 27;
    # across: 1, 1, 8, 27, mean 37/4. 1 + 27 - 2 * 37/4 = 9.5.
    value = squared_discrepancy(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]))
    assert value == pytest.approx(9.5)


def test_same_distribution_is_within_three_sd_of_zero_and_a_shift_is_not():
    x, y = sample(1500, 16, seed=0), sample(1500, 16, seed=1)
    same = kid(x, y, subsets=50, subset_size=200, seed=0)
    shifted = kid(x, y + 0.5, subsets=50, subset_size=200, seed=0)
    assert abs(same.value) < 3 * same.subset_sd
    assert shifted.value > 3 * shifted.subset_sd > 0


def test_is_unbiased_at_small_sizes():
    # Sets of 10 rows: the mean of 300 estimates is 0 within 4 standard errors; a biased one is far off.
    values = [kid(sample(10, 4, 2 * i), sample(10, 4, 2 * i + 1), subsets=1, seed=0).value for i in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0


@pytest.mark.parametrize("subset_size", [60, 100])
def test_agrees_with_torch_fidelity_on_the_same_subsets(subset_size):
    x, y = sample(120, 12, seed=0).double(), sample(100, 12, seed=1).double() + 0.3
    generator = np.random.default_rng(7)
    values = []
    for _ in range(5):
        rows = generator.choice(120, subset_size, replace=False)
        others = generator.choice(100, subset_size, replace=False)
        values.append(kernel_mmd(x[rows].numpy(), y[others].numpy()))
    result = kid(x, y, subsets=5, subset_size=subset_size, seed=7)
    assert result.value == pytest.approx(np.mean(values), rel=1e-10)
    assert result.subset_sd == pytest.approx(np.std(values), rel=1e-8)


def test_agrees_with_torch_fidelity_on_whole_sets():
    x, y = sample(90, 12, seed=0).double(), sample(90, 12, seed=1).double() + 0.3
    theirs = kid_features_to_metric(x, y, kid_subsets=3, kid_subset_size=90, rng_seed=2020, verbose=False)
    result = kid(x, y, subsets=3, seed=0)
    assert result.subset_size == 90
    assert result.value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)
    assert max(result.subset_sd, theirs[KEY_METRIC_KID_STD]) < 1e-12


def test_the_seed_alone_decides_the_subsets():
    x, y = sample(200, 8, seed=0), sample(300, 8, seed=1)
    first = kid(x, y, subsets=4, subset_size=50, seed=3)
    np.random.seed(0)
    assert kid(x, y, subsets=4, subset_size=50, seed=3) == first
    assert kid(x, y, subsets=4, subset_size=50, seed=4) != first


def test_refusals():
    x = sample(20, 4, seed=0)
    with pytest.raises(ValueError, match="at least 1 subset"):
        kid(x, x, subset_size=1, seed=0)
    x[5, 2] = torch.nan
    with pytest.raises(ValueError, match="row 5 "):
        kid(x, x, seed=0)
