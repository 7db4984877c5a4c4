import numpy as np
import pytest
import torch

from workbench.evaluation.frechet import Moments, frechet_distance, statistics


def sample(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, d + 1) + 3


def streamed(features, sizes):
    moments = Moments.none(features.shape[1])
    for part in features.split(sizes):
        moments = moments.add(part)
    return moments


def agree(moments, rows):
    found = moments.statistics()
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=0, atol=1e-12 * np.square(rows).max())


def test_two_batches_by_hand():
    # Rows (0, 1), then (2, 0) and (4, 2): mean (2, 1); centred (-2, 0), (0, -1), (2, 1); divisor 2.
    moments = Moments.none(2).add(torch.tensor([[0.0, 1.0]])).add(torch.tensor([[2.0, 0.0], [4.0, 2.0]]))
    np.testing.assert_allclose(moments.mean, [2, 1])
    np.testing.assert_allclose(moments.scatter, [[8, 2], [2, 2]])
    np.testing.assert_allclose(moments.statistics().covariance, [[4, 1], [1, 1]])


@pytest.mark.parametrize("sizes", [1, 7, 64, 200, [1, 150, 49]])
def test_batches_of_any_size_give_numpys_mean_and_covariance(sizes):
    features = sample(200, 5, seed=0)
    agree(streamed(features, sizes), features.double().numpy())


def test_merged_parts_are_the_whole_in_either_order():
    features = sample(130, 4, seed=0)
    first, second = streamed(features[:30], 8), streamed(features[30:], 16)
    agree(first.merge(second), features.double().numpy())
    agree(second.merge(first), features.double().numpy())
    empty = Moments.none(4)
    agree(empty.merge(first).merge(empty), features[:30].double().numpy())
    assert empty.merge(empty).count == 0


def test_features_far_from_zero_keep_their_spread():
    features = sample(300, 4, seed=0).double()
    near, far = streamed(features, 32).statistics(), streamed(features + 1e6, 32).statistics()
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=0, atol=1e-6)


def test_a_frechet_distance_does_not_need_the_features():
    x, y = sample(300, 12, seed=0), sample(250, 12, seed=1) * 1.5
    expected = frechet_distance(statistics(x), statistics(y))
    found = frechet_distance(streamed(x, 64).statistics(), streamed(y, 17).statistics())
    assert found.value == pytest.approx(expected.value, rel=1e-10)
    assert (found.n, found.m) == (300, 250)


def test_refusals():
    moments = Moments.none(3)
    with pytest.raises(ValueError, match="got 0 feature rows"):
        moments.statistics()
    with pytest.raises(ValueError, match="got 1 feature rows"):
        moments.add(torch.ones(1, 3)).statistics()
    with pytest.raises(ValueError, match="got 0 feature rows"):
        moments.add(torch.ones(0, 3))
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        moments.add(torch.ones(4, 2))
    batch = torch.ones(4, 3)
    batch[1, 2] = torch.inf
    # Ten rows before it: row 11 of all.
    with pytest.raises(ValueError, match="row 11 "):
        moments.add(torch.ones(10, 3)).add(batch)
