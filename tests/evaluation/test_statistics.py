import math
from itertools import product

import pytest
import torch
from scipy.stats import permutation_test, ttest_1samp

from workbench.evaluation.scores.class_agreement import class_agreement
from workbench.evaluation.statistics import (
    SignFlip,
    holm,
    measured_alike,
    paired,
    sign_flip,
    t_interval,
    t_test,
    wilson,
)


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


def test_t_interval_by_hand():
    # One degree of freedom: t = tan(.475 pi) = 12.7062, and s / sqrt(2) = 1 for 0 and 2.
    interval = t_interval([0.0, 2.0])
    assert (interval.low, interval.high) == pytest.approx((1 - 12.7062047, 1 + 12.7062047), abs=1e-6)
    # Two degrees: t = .95 / sqrt(2 * .975 * .025) = 4.302653, and s / sqrt(3) = .577350 for 1, 2, 3.
    interval = t_interval([1.0, 3.0, 2.0])
    assert (interval.low, interval.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_t_interval_is_the_widest_shift_that_a_t_test_keeps():
    values = [0.3, -0.1, 0.8, 0.4, 0.35]
    interval = t_interval(values, 0.9)
    for end in (interval.low, interval.high):
        assert ttest_1samp(values, end).pvalue == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([5.0], 1.0),
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach 6
        ([-1.0, -2.0, -3.0], 2 / 8),
        ([-1.0, 2.0, 4.0], 4 / 8),  # |sums| are 7, 5, 3, 1, each twice; 5 and 7 reach 5
        ([1.0, 2.0, -4.0], 8 / 8),  # every |sum| reaches 1
        ([1.0, 1.0, -1.0], 8 / 8),
        ([0.0, 1.0, 2.0], 4 / 8),  # a zero's sign changes nothing, so each sum comes twice
        ([0.0, 0.0], 1.0),
    ],
)
def test_sign_flip_by_hand(differences, p):
    assert sign_flip(differences) == SignFlip(p, 2.0 ** (1 - len(differences)))


def test_sign_flip_counts_ties_that_rounding_hides():
    # In floating point 0.1 + 0.2 - 0.3 is 5.6e-17; like 1 + 2 - 3 it is the smallest |sum| there is.
    assert sign_flip([0.1, 0.2, -0.3]).p == sign_flip([1.0, 2.0, -3.0]).p == 1.0
    tenths, whole = [0.1, 0.2, 0.4, -0.3, 0.7], [1.0, 2.0, 4.0, -3.0, 7.0]
    assert sign_flip(tenths).p == sign_flip(whole).p < 1


def test_sign_flip_is_uniform_where_no_sums_tie():
    # Sums of powers of two with signs are all different, so the p of the 2^n patterns are 2, 4, .. 2^n of 2^n, twice.
    sizes = [1.0, 2.0, 4.0, 8.0]
    ps = [sign_flip([s * x for s, x in zip(signs, sizes, strict=True)]).p for signs in product((1, -1), repeat=4)]
    assert sorted(ps) == sorted([k / 16 for k in range(2, 17, 2)] * 2)


def test_sign_flip_is_scipys_over_all_patterns():
    differences = torch.randn(9, generator=torch.Generator().manual_seed(3)).double().numpy() + 0.4

    def total(x, axis):
        return x.sum(axis)

    expected = permutation_test((differences,), total, permutation_type="samples", n_resamples=math.inf)
    assert sign_flip(differences.tolist()).p == pytest.approx(expected.pvalue, rel=1e-12)


def test_least_p_is_reached_when_all_agree():
    for count in (1, 3, 5, 12):
        test = sign_flip([1.0 + 0.1 * i for i in range(count)])
        assert test.p == test.least == 2 / 2**count


def test_statistics_of_nothing_are_refused():
    for values in ([], [1.0]):
        with pytest.raises(ValueError, match="two or more finite values"):
            t_interval(values)
    for values in ([], [1.0, math.nan], [1.0] * 25):
        with pytest.raises(ValueError, match="1 to 24"):
            sign_flip(values)
    with pytest.raises(ValueError, match="level is 95"):
        t_interval([1.0, 2.0], 95.0)
    with pytest.raises(ValueError, match=r"there is no common seed: one has \[0\], the other \[1\]"):
        paired({0: 1.0}, {1: 1.0})


def test_paired_differences_of_shared_seeds():
    found = paired({2: 10.0, 0: 5.0, 7: 1.0}, {0: 4.0, 2: 7.0, 9: 3.0})
    assert found.differences == {0: -1.0, 2: -3.0} and found.mean == -2.0
    assert found.interval == t_interval([-1.0, -3.0]) and found.test == SignFlip(0.5, 0.5)
    assert paired({0: 1.0}, {0: 1.5}).interval is None


def test_pairing_takes_out_what_the_seeds_share():
    # Seeds move both arms by hundreds and the arms differ by 1, give or take .1.
    interval = paired({0: 100.0, 1: 500.0, 2: 900.0}, {0: 100.9, 1: 501.0, 2: 901.1}).interval
    # s / sqrt(3) = .1 / 1.732051 = .057735, times t = 4.302653.
    assert (interval.low, interval.high) == pytest.approx((1 - 0.248414, 1 + 0.248414), abs=1e-6)


def test_holm_by_hand():
    # Smallest first: 3 * .01 = .03, 2 * .03 = .06, then 1 * .04 raised to the .06 before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.2]) == [0.2] and holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_a_t_test_and_its_interval_agree(level):
    values = [0.3, -0.1, 0.4, 0.2, 0.35]
    low = t_interval(values, level).low
    assert (t_test(values) < 1 - level) == (low > 0)
    # At the end of its interval a mean is just significant.
    assert t_test([value - low for value in values]) == pytest.approx(1 - level)


def test_t_tests_by_hand():
    # One and three: mean 2, standard error 1, one degree of freedom, for which p = 1 - 2 atan(2) / pi.
    assert t_test([1.0, 3.0]) == pytest.approx(1 - 2 * math.atan(2) / math.pi) == t_test([-3.0, -1.0])
    assert t_test([0.0, 0.0]) == 1 and t_test([2.0, 2.0]) == 0
    for wrong in ([], [1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="two or more finite differences"):
            t_test(wrong)


def test_holm_stops_where_the_step_down_stops():
    # The procedure itself: reject the i-th smallest while p <= level / (m - i + 1).
    ps = [0.012, 0.2, 0.004, 0.03, 0.011]
    for level in (0.01, 0.02, 0.045, 0.06, 0.5):
        rejected = set()
        for place, index in enumerate(sorted(range(5), key=ps.__getitem__)):
            if ps[index] > level / (5 - place):
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected


def record(step, value, **how):
    return {"metric": "fd-clf64", "step": step, "value": value, "n_generated": 100, **how}


def test_scores_measured_alike_are_those_that_most_runs_share():
    mine = [record(step, 1.0, sampler="euler") for step in (3, 1, 2)] + [record(1, 5.0, sampler="heun")]
    found = measured_alike({"a": mine, "b": [record(1, 6.0, sampler="heun")], "c": []})
    assert {run: list(by_step) for run, by_step in found.records.items()} == {"a": [1], "b": [1]}
    assert (found.how, found.left_out) == ({"n_generated": 100, "sampler": "heun"}, 3)
    assert list(measured_alike({"a": mine}).records["a"]) == [1, 2, 3]  # alone, the way that most steps have


def test_of_ties_the_one_of_more_images_then_the_last_is_chosen():
    few, many = record(1, 1.0), record(1, 2.0, n_generated=500)
    for order in ([few, many], [many, few]):
        assert measured_alike({"a": order}).records == {"a": {1: many}}
    old, new = record(1, 1.0, sampler="euler"), record(1, 2.0, sampler="heun")
    for order in ([old, new], [new, old]):
        assert measured_alike({"a": order}).records == {"a": {1: order[1]}}
    # Of one protocol the later counts, and a protocol that came back is the newest.
    again = record(1, 3.0, sampler="euler")
    assert measured_alike({"a": [old, new, again]}).records == {"a": {1: again}}


def test_nothing_is_measured_alike_with_nothing_and_odd_protocols_are_no_error():
    assert measured_alike({}) == measured_alike({"a": []}) and measured_alike({}).protocol is None
    odd = record(1, 1.0, n_generated=[3], reference={"a": 1})
    found = measured_alike({"a": [odd, record(1, 2.0, n_generated="many"), odd]})
    assert found.records == {"a": {1: odd}} and found.left_out == 1
