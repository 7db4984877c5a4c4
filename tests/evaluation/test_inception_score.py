import math

import pytest
import torch

from workbench.evaluation.scores.is_ import BLOCK, inception_score


def certain(classes, k):
    """Logits of images that are surely of the given classes."""
    return 50.0 * torch.nn.functional.one_hot(torch.as_tensor(classes), k).double()


def test_certain_and_balanced_images_score_the_number_of_classes():
    assert inception_score(certain([0, 1, 2, 3, 4] * 6, 5)).value == pytest.approx(5, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, -400.0])
def test_images_that_look_alike_score_one(shift):
    row = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    assert inception_score(row.repeat(20, 1) + shift).value == pytest.approx(1, abs=1e-5)


def test_two_images_by_hand():
    # p = (3/4, 1/4) and (1/4, 3/4), q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2 for both.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]], dtype=torch.float64)
    assert inception_score(logits).value == pytest.approx(1.5**0.75 * 0.5**0.25, rel=1e-12)


def test_blocks_follow_the_order_and_the_last_partial_one_weighs_as_much():
    # Blocks of 4: {0, 1, 0, 1} scores 2, {0, 0, 0, 0} scores 1, the last {0, 1, 2} scores 3.
    result = inception_score(certain([0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 2], 3), block=4)
    assert result.blocks == pytest.approx((2, 1, 3), rel=1e-9)
    assert result.value == pytest.approx(2, rel=1e-9)
    assert result.count == 11


def test_the_order_matters_only_through_the_blocks():
    sorted_, mixed = certain([0] * 4 + [1] * 4, 2), certain([0, 1] * 4, 2)
    assert inception_score(sorted_, block=4).value == pytest.approx(1, rel=1e-9)
    assert inception_score(mixed, block=4).value == pytest.approx(2, rel=1e-9)
    assert inception_score(sorted_).value == pytest.approx(inception_score(mixed).value, rel=1e-12)


def test_a_block_is_5000_images_not_a_share_of_them():
    assert BLOCK == 5000
    assert len(inception_score(torch.zeros(10_001, 2)).blocks) == 3


def test_classes_that_no_image_can_be_add_nothing():
    # exp(-2000) is 0 in float64, where 0 * log 0 would be NaN.
    logits = torch.cat([certain([0, 1] * 5, 2), torch.full((10, 3), -2000.0, dtype=torch.float64)], dim=1)
    assert inception_score(logits).value == pytest.approx(2, rel=1e-9)


def test_refusals():
    logits = torch.zeros(6, 3)
    with pytest.raises(ValueError, match="got 0 rows"):
        inception_score(logits[:0])
    with pytest.raises(ValueError, match="blocks of 0"):
        inception_score(logits, block=0)
    logits[4, 1] = torch.nan
    with pytest.raises(ValueError, match="row 4 of the logits"):
        inception_score(logits)
