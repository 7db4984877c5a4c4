import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from workbench.evaluation.frechet import (
    Statistics,
    effective_rank,
    frechet_distance,
    frechet_from_features,
    statistics,
)


def sample(n, d, seed, dtype=torch.float64):
    """Correlated rows with a mean away from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 1).to(dtype)


def by_matrix_root(x, y):
    """The definition, with the root of the product itself."""
    first, second = statistics(x), statistics(y)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    shift = first.mean - second.mean
    return shift @ shift + np.trace(first.covariance + second.covariance - 2 * np.real(root))


def test_statistics_of_three_rows_by_hand():
    # Mean (2, 1); centred rows (-2, 0), (0, -1), (2, 1); divisor 2.
    result = statistics(torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 2.0]]))
    assert result.count == 3
    np.testing.assert_allclose(result.mean, [2, 1])
    np.testing.assert_allclose(result.covariance, [[4, 1], [1, 1]])


def test_statistics_do_not_depend_on_the_order_of_the_rows():
    x = sample(500, 16, seed=0)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    first, second = statistics(x), statistics(x[order])
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-12)
    np.testing.assert_allclose(first.covariance, second.covariance, rtol=0, atol=1e-12)


def test_statistics_keep_the_spread_of_features_far_from_zero():
    x = sample(200, 4, seed=0)
    np.testing.assert_allclose(statistics(x + 1e6).covariance, statistics(x).covariance, rtol=0, atol=1e-7)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_statistics_name_the_row_that_is_not_finite(broken):
    x = sample(20, 3, seed=0)
    x[7, 1] = broken
    with pytest.raises(ValueError, match="row 7 "):
        statistics(x)
    with pytest.raises(ValueError, match="row 7 "):
        frechet_from_features(sample(2, 3, seed=1), x)


def test_one_row_has_no_spread():
    with pytest.raises(ValueError, match="at least 2"):
        statistics(torch.ones(1, 3))


def test_diagonal_gaussians_have_a_closed_form():
    # |(0, 3, 0)|^2 + (1 - 2)^2 + (3 - 3)^2 + (0 - 5)^2 = 9 + 26, for deviations (1, 3, 0) and (2, 3, 5).
    first = Statistics(10, np.array([1.0, 0.0, 2.0]), np.diag([1.0, 9.0, 0.0]))
    second = Statistics(10, np.array([1.0, 3.0, 2.0]), np.diag([4.0, 9.0, 25.0]))
    result = frechet_distance(first, second)
    assert result.mean_term == pytest.approx(9)
    assert result.covariance_term == pytest.approx(26)
    assert result.value == pytest.approx(35)


def test_scaled_copy_has_a_closed_form():
    # Covariances S and 9 S commute: the covariance term is (3 - 1)^2 tr S.
    x = sample(300, 12, seed=0)
    centred = x - x.mean(dim=0)
    result = frechet_from_features(centred, 3 * centred)
    assert result.covariance_term == pytest.approx(4 * np.trace(statistics(x).covariance), rel=1e-10)
    assert abs(result.mean_term) < 1e-20


@pytest.mark.parametrize("n", [20, 400])
def test_distance_to_itself_is_zero_and_a_shift_adds_its_square(n):
    x = sample(n, 32, seed=0)
    shift = torch.linspace(-1, 1, 32, dtype=torch.float64)
    assert abs(frechet_from_features(x, x).value) < 1e-6
    shifted = frechet_from_features(x, x + shift)
    assert shifted.mean_term == pytest.approx(float(shift @ shift), rel=1e-10)
    assert abs(shifted.covariance_term) < 1e-6


@pytest.mark.parametrize(("n", "m"), [(400, 300), (20, 30), (33, 32), (400, 10)])
def test_both_forms_agree_with_the_matrix_root(n, m):
    x, y = sample(n, 32, seed=0), sample(m, 32, seed=1)
    expected = by_matrix_root(x, y)
    # The rank-deficient product leaves dust of about 1e-8 in the root itself.
    assert frechet_from_features(x, y).value == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(x), statistics(y)).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [24, 200])
def test_distance_is_symmetric_and_unchanged_by_a_rotation(n):
    x, y = sample(n, 24, seed=0), sample(n + 5, 24, seed=1)
    rotation = torch.linalg.qr(sample(24, 24, seed=2)).Q
    value = frechet_from_features(x, y).value
    assert value > 0.1
    assert frechet_from_features(y, x).value == pytest.approx(value, rel=1e-8)
    assert frechet_from_features(x @ rotation, y @ rotation).value == pytest.approx(value, rel=1e-7)


def test_constant_units_add_nothing():
    x, y = sample(200, 8, seed=0), sample(200, 8, seed=1)
    dead = torch.zeros(200, 4, dtype=torch.float64)
    value = frechet_from_features(x, y).value
    assert frechet_from_features(torch.cat([x, dead], 1), torch.cat([y, dead], 1)).value == pytest.approx(value)


def test_agrees_with_torch_fidelity():
    x, y = sample(800, 48, seed=0, dtype=torch.float32), sample(600, 48, seed=1, dtype=torch.float32)
    theirs = [fid_features_to_statistics(features.double()) for features in (x, y)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    assert frechet_from_features(x, y).value == pytest.approx(expected, rel=1e-6)


def test_sets_of_different_width_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(statistics(sample(10, 3, seed=0)), statistics(sample(10, 4, seed=0)))


@pytest.mark.parametrize(
    ("diagonal", "rank"),
    [
        ([2.0, 2.0, 2.0, 0.0], 3.0),
        ([5.0, 0.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        # Shares 1/2, 1/4, 1/4: entropy 1.5 log 2, so 2^1.5.
        ([2.0, 1.0, 1.0, 0.0], 2**1.5),
    ],
)
def test_effective_rank_by_hand(diagonal, rank):
    assert effective_rank(np.diag(diagonal)) == pytest.approx(rank)
    rotation = np.linalg.qr(np.arange(16.0).reshape(4, 4) + np.eye(4))[0]
    assert effective_rank(rotation @ np.diag(diagonal) @ rotation.T) == pytest.approx(rank)
