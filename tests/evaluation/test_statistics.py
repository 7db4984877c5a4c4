import math

import pytest
import torch

from workbench.evaluation.statistics import class_agreement, wilson


def test_wilson_of_eight_in_ten_by_hand():
    # z^2 = 3.841459: middle (.8 + .192073) / 1.384146 = .716740,
    # half 1.959964 / 1.384146 * sqrt(.016 + .009604) = .226577.
    interval = wilson(8, 10)
    assert interval.low == pytest.approx(0.490162, abs=2e-6)
    assert interval.high == pytest.approx(0.943318, abs=2e-6)


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_wilson_without_any_success_is_zero_to_z2_over_n_plus_z2(count):
    z2 = 1.959963984540054**2
    assert wilson(0, count).low == 0
    assert wilson(0, count).high == pytest.approx(z2 / (count + z2), rel=1e-12)


@pytest.mark.parametrize("successes", [0, 1, 37, 80])
def test_wilson_mirrors_failures(successes):
    interval, mirrored = wilson(successes, 80), wilson(80 - successes, 80)
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-14)
    assert interval.high == pytest.approx(1 - mirrored.low, abs=1e-14)


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.959963984540054), (0.99, 2.5758293035489004)])
def test_wilson_ends_solve_their_equation(level, z):
    interval = wilson(37, 120, level)
    for end in (interval.low, interval.high):
        assert abs(37 / 120 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 120), rel=1e-12)


def test_wilson_at_85_percent_of_1000_is_about_two_points_wide_on_each_side():
    interval = wilson(850, 1000)
    assert 0.020 < (interval.high - interval.low) / 2 < 0.024


@pytest.mark.parametrize(("successes", "count", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 95.0)])
def test_wilson_refuses_impossible_counts(successes, count, level):
    with pytest.raises(ValueError, match="allowed"):
        wilson(successes, count, level)


def test_class_agreement_counts_the_asked_class():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.1, 0.2], [5.0, 0.0, 4.0]])
    share = class_agreement(logits, torch.tensor([0, 1, 2, 2]))
    interval = wilson(3, 4)
    assert (share.value, share.count) == (0.75, 4)
    assert (share.low, share.high) == (interval.low, interval.high)


def test_class_agreement_follows_a_relabelling():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator)
    labels = torch.randint(5, (200,), generator=generator)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert class_agreement(logits[:, order], order.argsort()[labels]) == class_agreement(logits, labels)


def test_class_agreement_refuses_what_the_detector_does_not_know():
    with pytest.raises(ValueError, match="0 to 3; allowed are 0 to 2"):
        class_agreement(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="row 1"):
        class_agreement(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no images"):
        class_agreement(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
