import math
from functools import partial

import jaxtyping
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
    extrapolated_frechet,
    frechet_distance,
    frechet_from_features,
    spatial_rows,
    statistics,
)

distance_of = partial(frechet_from_features, small_ok=True)


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
        distance_of(sample(2, 3, seed=1), x)


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
    result = distance_of(centred, 3 * centred)
    assert result.covariance_term == pytest.approx(4 * np.trace(statistics(x).covariance), rel=1e-10)
    assert abs(result.mean_term) < 1e-20


@pytest.mark.parametrize("n", [20, 400])
def test_distance_to_itself_is_zero_and_a_shift_adds_its_square(n):
    x = sample(n, 32, seed=0)
    shift = torch.linspace(-1, 1, 32, dtype=torch.float64)
    assert abs(distance_of(x, x).value) < 1e-6
    shifted = distance_of(x, x + shift)
    assert shifted.mean_term == pytest.approx(float(shift @ shift), rel=1e-10)
    assert abs(shifted.covariance_term) < 1e-6


@pytest.mark.parametrize(("n", "m"), [(400, 300), (20, 30), (33, 32), (400, 10)])
def test_both_forms_agree_with_the_matrix_root(n, m):
    x, y = sample(n, 32, seed=0), sample(m, 32, seed=1)
    expected = by_matrix_root(x, y)
    # The rank-deficient product leaves dust of about 1e-8 in the root itself.
    assert distance_of(x, y).value == pytest.approx(expected, rel=1e-6)
    second = frechet_distance(statistics(x), statistics(y), small_ok=True)
    assert second.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [24, 200])
def test_distance_is_symmetric_and_unchanged_by_a_rotation(n):
    x, y = sample(n, 24, seed=0), sample(n + 5, 24, seed=1)
    rotation = torch.linalg.qr(sample(24, 24, seed=2)).Q
    value = distance_of(x, y).value
    assert value > 0.1
    assert distance_of(y, x).value == pytest.approx(value, rel=1e-8)
    assert distance_of(x @ rotation, y @ rotation).value == pytest.approx(value, rel=1e-7)


def test_constant_units_add_nothing():
    x, y = sample(200, 8, seed=0), sample(200, 8, seed=1)
    dead = torch.zeros(200, 4, dtype=torch.float64)
    value = distance_of(x, y).value
    result = distance_of(torch.cat([dead, x], 1), torch.cat([dead, y], 1))
    assert result.value == pytest.approx(value, rel=1e-12)
    assert result.d == 12


def test_a_unit_that_is_constant_in_one_set_adds_its_variance():
    # The root of the product loses it, so its trace and its mean's shift stay: 1 + variance.
    x, y = sample(200, 8, seed=0), sample(200, 8, seed=1)
    unit = sample(200, 1, seed=2)
    unit = unit - unit.mean() + 1
    both = distance_of(torch.cat([x, torch.zeros_like(unit)], 1), torch.cat([y, unit], 1)).value
    apart = distance_of(x, y).value + 1 + unit.var().item()
    assert both == pytest.approx(apart, rel=1e-12)
    nothing = torch.zeros(200, 8, dtype=torch.float64)
    alone = distance_of(nothing, y)
    assert alone.covariance_term == pytest.approx(np.trace(statistics(y).covariance), rel=1e-12)
    assert alone.x_rank == 0


def test_agrees_with_torch_fidelity():
    x, y = sample(800, 48, seed=0, dtype=torch.float32), sample(600, 48, seed=1, dtype=torch.float32)
    theirs = [fid_features_to_statistics(features.double()) for features in (x, y)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    assert distance_of(x, y).value == pytest.approx(expected, rel=1e-6)


def test_sets_of_different_width_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(statistics(sample(10, 3, seed=0)), statistics(sample(10, 4, seed=0)))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        distance_of(sample(3, 3, seed=0), sample(3, 4, seed=0))


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


@pytest.mark.parametrize(("n", "m"), [(40, 30), (5, 30), (5, 6)])
def test_the_record_tells_counts_dimensions_and_ranks(n, m):
    x, y = sample(n, 8, seed=0), sample(m, 8, seed=1)
    result = distance_of(x, y)
    assert (result.n, result.m, result.d, result.identical) == (n, m, 8, False)
    assert result.small == (min(n, m) < 16)
    assert result.value == result.mean_term + result.covariance_term
    assert result.x_rank == pytest.approx(effective_rank(statistics(x).covariance), rel=1e-9)
    assert result.y_rank == pytest.approx(effective_rank(statistics(y).covariance), rel=1e-9)


@pytest.mark.parametrize("n", [15, 16])
def test_fewer_rows_than_twice_the_dimensions_are_too_few_unless_allowed(n):
    x, y = sample(n, 8, seed=0), sample(40, 8, seed=1)
    moments = statistics(x), statistics(y)
    if n == 16:
        assert not frechet_from_features(x, y).small
        assert not frechet_distance(*moments).small
        return
    for call in (
        lambda ok: frechet_from_features(x, y, small_ok=ok),
        lambda ok: frechet_distance(*moments, small_ok=ok),
    ):
        with pytest.raises(ValueError, match="got 15 rows of 8 dimensions"):
            call(False)
        assert call(True).small


def test_stored_moments_without_a_count_are_taken_as_enough():
    # ADM's reference files hold a mean and a covariance, not the number of images.
    x, stored = statistics(sample(40, 8, seed=0)), statistics(sample(40, 8, seed=1))
    result = frechet_distance(x, Statistics(None, stored.mean, stored.covariance))
    assert (result.n, result.m, result.small) == (40, None, False)
    assert result.value == frechet_distance(x, stored).value


@pytest.mark.parametrize("n", [20, 100])
def test_identical_sets_are_detected_in_any_order(n):
    x = sample(n, 32, seed=0)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    assert distance_of(x, x).identical and distance_of(x, x[order]).identical
    assert frechet_distance(statistics(x), statistics(x), small_ok=True).identical
    other = x.clone()
    other[3, 5] += 1e-9
    assert not distance_of(x, other).identical
    # The same numbers in the first column, paired otherwise with the rest.
    assert not distance_of(x, torch.cat([x[:, :1], x[order, 1:]], dim=1)).identical


def test_extrapolation_removes_the_bias_of_the_count():
    # x ~ N(0, I), y its exact moments: the distance is 0 and n rows give about (d (d + 1) / 4 + d) / n = 636 / n.
    y = Statistics(None, np.zeros(48), np.eye(48))
    x = torch.randn(4000, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = extrapolated_frechet(x, y, seed=0)
    assert result.sizes[0] == 400 and result.sizes[-1] == 4000 and len(result.sizes) == 15
    assert result.values[-1] == pytest.approx(frechet_distance(statistics(x), y).value, rel=1e-9)
    assert result.slope == pytest.approx(636, rel=0.1)
    assert abs(result.intercept) < result.values[-1] / 5 < result.values[0] / 10
    assert result.residual < result.values[-1] / 5


def test_extrapolation_is_the_least_squares_line_of_its_own_points():
    x, y = sample(300, 6, seed=0), statistics(sample(500, 6, seed=1))
    result = extrapolated_frechet(x, y, points=5, smallest=100, seed=3)
    assert result.sizes == (100, 150, 200, 250, 300)
    # Normal equations by hand: slope = cov(u, v) / var(u) with u = 1 / N.
    u, v = 1 / np.array(result.sizes), np.array(result.values)
    slope = ((u - u.mean()) * (v - v.mean())).sum() / ((u - u.mean()) ** 2).sum()
    misses = v - v.mean() - slope * (u - u.mean())
    assert result.slope == pytest.approx(slope, rel=1e-8)
    assert result.intercept == pytest.approx(v.mean() - slope * u.mean(), rel=1e-8)
    assert result.residual == pytest.approx(math.sqrt((misses**2).sum() / 3), rel=1e-6)


def test_the_seed_alone_decides_the_subsets_of_an_extrapolation():
    x, y = sample(300, 6, seed=0), statistics(sample(500, 6, seed=1))
    first = extrapolated_frechet(x, y, seed=3)
    np.random.seed(0)
    assert extrapolated_frechet(x, y, seed=3) == first
    assert extrapolated_frechet(x, y, seed=4).values[0] != first.values[0]


def test_refused_extrapolations():
    x, y = sample(60, 8, seed=0), statistics(sample(60, 8, seed=1))
    with pytest.raises(ValueError, match="got 6 rows of 8 dimensions"):
        extrapolated_frechet(x, y, points=4, seed=0)
    assert extrapolated_frechet(x, y, points=4, seed=0, small_ok=True).sizes[0] == 6
    for options in ({"points": 2}, {"smallest": 60}, {"smallest": 58}, {"smallest": 1}):
        with pytest.raises(ValueError, match="at least 3 points whose sizes differ"):
            extrapolated_frechet(x, y, **options, seed=0, small_ok=True)


def test_spatial_rows_are_the_first_channels_channel_last():
    # Channel c at row i, column j holds 100 c + 10 i + j.
    maps = torch.tensor([[[[100.0 * c + 10 * i + j for j in range(2)] for i in range(2)] for c in range(3)]])
    assert spatial_rows(maps, channels=2).tolist() == [[0, 100, 1, 101, 10, 110, 11, 111]]
    with pytest.raises(ValueError, match="need 7"):
        spatial_rows(maps)


def test_the_order_matters_against_stored_moments_and_not_between_two_sets_of_ours():
    levels = torch.arange(7.0)[:, None, None]
    first, second = (
        sample(400, 42, seed=0).reshape(400, 7, 2, 3) + levels,
        sample(300, 42, seed=1).reshape(300, 7, 2, 3),
    )
    second = 2 * second + levels
    stored = statistics(spatial_rows(second))
    ours, flat = statistics(spatial_rows(first)), statistics(first.flatten(1))
    between = frechet_distance(ours, stored).value
    assert frechet_distance(flat, statistics(second.flatten(1))).value == pytest.approx(between, rel=1e-9)
    assert frechet_distance(flat, stored).value > 1.5 * between
    # A set against its own stored moments: 0 in their order, far from it in the other.
    assert abs(frechet_distance(ours, ours).value) < 1e-6
    assert frechet_distance(flat, ours).value > 1
