"""The labels and token grids that features are read with: wrong labels, local against distant similarity."""

import numpy as np
import pytest
import torch

from workbench.features.grid import local_distant_similarity, wrong_labels


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wrong_labels_are_the_same_labels_in_another_order():
    labels = np.arange(400) % 4
    wrong = wrong_labels(labels, seed=0)
    assert np.bincount(wrong).tolist() == [100] * 4
    assert np.array_equal(wrong, wrong_labels(labels, seed=0))
    assert not np.array_equal(wrong, wrong_labels(labels, seed=1))
    # Independent: each of the 16 pairs is expected 25 times, with a deviation of about 4.
    pairs = np.bincount(4 * labels + wrong, minlength=16)
    assert abs(pairs - 25).max() < 17


def test_lds_of_two_halves_by_hand():
    # 4 x 4, left half one direction, right half another. Near is distance 1: 24 pairs, 4 of them across. Of the 96
    # distant pairs 2 (28 - 10) lie in one half.
    halves = torch.tensor([0, 0, 1, 1]).repeat(4)
    tokens = torch.nn.functional.one_hot(halves).double()[None]
    both = torch.cat([tokens, -7 * tokens @ torch.linalg.qr(draw(2, 2, seed=9)).Q])
    torch.testing.assert_close(local_distant_similarity(both), torch.full((2,), 20 / 24 - 36 / 96).double())


def test_lds_of_a_constant_map_and_of_unrelated_tokens_is_zero():
    assert local_distant_similarity(draw(3, 1, 7).expand(3, 25, 7)).abs().max() < 1e-12
    assert local_distant_similarity(torch.eye(9)[None]) == 0
    # Over many images of independent tokens the two means agree.
    assert abs(local_distant_similarity(draw(120, 16, 5)).mean()) < 0.02


def test_lds_refuses_what_is_no_grid():
    with pytest.raises(ValueError, match="8 tokens"):
        local_distant_similarity(draw(1, 8, 3))
    with pytest.raises(ValueError, match="token 4 of image 1 is zero or not finite"):
        local_distant_similarity(draw(3, 9, 2).index_put((torch.tensor(1), torch.tensor(4)), torch.zeros(2).double()))
    with pytest.raises(ValueError, match="2 x 2"):
        local_distant_similarity(draw(1, 4, 3))
