"""Object against background, on tokens whose separation from their masks is known."""

import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from workbench.evaluation.objects import (
    image_pairs,
    object_difference,
    object_probe,
    object_separation,
    place_pairs,
    split_masks,
)

N, SIDE, WIDTH = 40, 6, 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squares(n=N, side=SIDE, size=3, seed=0):
    """Shares of a square of `size` tokens at a random place in each image."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.zeros(n, side, side)
    for image, (y, x) in zip(shares, torch.randint(side - size + 1, (n, 2), generator=generator), strict=True):
        image[y : y + size, x : x + size] = 1
    return shares.flatten(1)


def tokens(shares, *, signal=1.0, noise=0.0, at=0, sizes=None, seed=1):
    """Tokens whose dimension `at` holds the mask, beside noise in the others, turned by a rotation."""
    sizes = torch.ones(WIDTH) if sizes is None else torch.as_tensor(sizes)
    features = noise * draw(*shares.shape, WIDTH, seed=seed) * sizes
    features[..., at] += signal * shares
    return features @ torch.linalg.qr(draw(WIDTH, WIDTH, seed=7))[0] + 3


@pytest.mark.parametrize("signal", [1.0, -1.0])
def test_a_component_that_is_the_mask_separates_perfectly_whatever_its_sign(signal):
    shares = squares()
    found = object_separation(tokens(shares, signal=signal, noise=1e-3), shares)
    for name in found.resampled:
        estimate = getattr(found, name)
        if "class" in name:
            assert np.isnan(estimate.value)  # no classes are given
        else:
            assert (estimate.value, estimate.low, estimate.high, estimate.count) == (1, 1, 1, N // 2)
    assert found.component == 1


def test_tokens_on_the_object_and_beside_it_that_are_two_orthogonal_points_have_silhouette_one():
    shares = squares()
    features = torch.stack([shares, 1 - shares], dim=2)
    assert object_separation(features, shares).silhouette == pytest.approx(1)


def test_masks_that_have_nothing_to_do_with_the_tokens_are_at_chance():
    first, second = ((draw(N, SIDE**2, seed=seed) > 0.7).float() for seed in (3, 4))
    found = object_separation(tokens(first, noise=0.1), second)
    for estimate in (found.auc, found.auc_best, found.probe):
        assert 0.4 < estimate.low < 0.5 < estimate.high < 0.6
    # No threshold does better than all tokens, as many of which are on an object.
    assert found.iou.value == pytest.approx(float(second[found.masks.held].mean()), abs=0.02)


def test_the_mask_in_the_third_component_is_found_there_and_by_the_probe():
    shares = squares(n=80)
    features = tokens(shares, noise=1.0, at=2, sizes=[9, 7, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5], signal=4)
    found = object_separation(features, shares)
    assert found.component == 3
    assert found.auc_best.value > 0.99 and found.probe.value > 0.99 and abs(found.auc.value - 0.5) < 0.1
    assert found.iou.value > 0.95


def test_a_mask_below_three_components_is_seen_by_the_probe_alone():
    shares = squares(n=80)
    features = tokens(shares, noise=1.0, at=3, sizes=[9, 8, 7, 0.1, 0.1, 0.1, 0.1, 0.1], signal=1)
    found = object_separation(features, shares)
    assert found.probe.value > 0.99 and found.auc_best.value < 0.65


def test_sign_and_component_are_chosen_on_the_other_half():
    # The object is bright in the images that are fitted on and dark in the others: what is chosen there is wrong here.
    shares = squares()
    masks = split_masks(shares, seed=0)
    features = tokens(shares, noise=1e-3) - 3
    features[masks.held] *= -1
    found = object_separation(features, masks)
    assert found.auc.value == found.auc_best.value == found.probe.value == 0
    assert found.iou.value < 0.3


def test_a_half_is_fitted_and_the_other_measured():
    masks = split_masks(squares(n=41), seed=3)
    assert sorted([*masks.fit, *masks.held]) == list(range(41)) and (len(masks.fit), len(masks.held)) == (20, 21)
    assert (masks.counts.sum(axis=1) == 21).all() and (masks.counts_of_all.sum(axis=1) == 41).all()
    assert list(split_masks(squares(n=41), seed=4).fit) != list(masks.fit)
    # A token that is half covered is on the object.
    half = split_masks(torch.tensor([0.5, 0.49]).repeat(4, 3), seed=0)
    assert half.inside.tolist() == [[True, False] * 3] * 4


def test_the_area_is_scikit_learn_s_and_so_is_that_of_every_resample():
    masks = split_masks(squares(), seed=0)
    # Rounded, so that many scores tie.
    scores = (draw(len(masks.held), SIDE**2) + torch.from_numpy(masks.shares[masks.held])).round().double().numpy()
    inside = masks.inside[masks.held]
    wins, pairs = image_pairs(scores, inside)
    assert wins.sum() / pairs.sum() == pytest.approx(roc_auc_score(inside.ravel(), scores.ravel()))
    for counts in masks.counts[:5]:
        weights = np.repeat(counts, SIDE**2)
        expected = roc_auc_score(inside.ravel(), scores.ravel(), sample_weight=weights)
        assert counts @ wins @ counts / (counts @ pairs @ counts) == pytest.approx(expected)


def test_tokens_that_only_know_their_place_are_at_chance_at_the_same_place_and_nowhere_else():
    shares = squares(n=200)
    middle = -(torch.arange(SIDE**2) // SIDE - 2.5).abs() - (torch.arange(SIDE**2) % SIDE - 2.5).abs()
    found = object_separation(torch.stack([middle, middle**2], dim=1).expand(200, -1, -1), shares)
    for estimate in (found.auc_same_place, found.probe_same_place):
        assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)
    masks = found.masks
    assert 0.65 < found.auc.value <= found.probe.value + 0.02 and found.auc_in_image.value > 0.65
    # No function of the place is better than how often the object is there, apart from chance.
    assert found.probe.value == pytest.approx(masks.auc_of_place, abs=0.02)
    assert found.auc_in_image.value == pytest.approx(masks.auc_in_image_of_place, abs=0.02)
    assert found.iou.value == pytest.approx(masks.iou_of_place, abs=0.03) and masks.iou_of_place > 0.25 + 0.05


def test_the_component_at_the_same_place_is_another_than_that_of_the_place():
    # The first component is the place, the second what is there, under so much noise that the place tells more.
    shares = squares(n=200, side=9, size=5)
    middle = -(torch.arange(81) // 9 - 4.0).abs() - (torch.arange(81) % 9 - 4.0).abs()
    features = torch.stack([90 * middle.expand(200, -1), shares + 1.5 * draw(200, 81)], dim=2)
    found = object_separation(features, shares)
    assert found.component == 1 and found.auc_best.value == found.auc.value > 0.75
    # Two normal distributions, 1 apart with deviation 1.5: area Phi(1 / (1.5 sqrt(2))).
    assert found.auc_same_place.value == pytest.approx(0.681, abs=0.02)


def test_tokens_that_only_know_place_and_label_are_at_chance_in_the_same_class_and_nowhere_else():
    # Objects of the first class are left, of the second right; the feature is the usual mask of the class.
    labels = torch.arange(200) % 2
    shares = torch.zeros(200, SIDE, SIDE)
    for image, label, (y, x) in zip(
        shares, labels, torch.randint(3, (200, 2), generator=torch.Generator().manual_seed(0)), strict=True
    ):
        image[y : y + 3, min(x, 1) + 2 * label : min(x, 1) + 2 * label + 3] = 1
    shares = shares.flatten(1)
    usual = torch.stack([shares[labels == label].mean(dim=0) for label in (0, 1)])
    masks = split_masks(shares, seed=0, labels=labels)
    found = object_separation(1 + usual[labels][..., None], masks)
    assert (found.auc_same_class.value, found.probe_same_class.low) == (0.5, 0.5)
    assert found.auc_same_place.low > 0.6
    again = object_separation(1 + usual[labels][..., None], shares, labels=labels)
    assert again.auc_same_class == found.auc_same_class
    seeing = object_separation(1 + (usual[labels] + shares)[..., None], masks)
    assert seeing.auc_same_class.value > 0.95


def test_pairs_at_the_same_place_are_counted_one_by_one():
    generator = np.random.default_rng(0)
    scores, inside = generator.integers(0, 4, (5, 6)).astype(np.float64), generator.random((5, 6)) < 0.4
    wins, pairs = place_pairs(scores, inside)
    for i in range(5):
        for j in range(5):
            places = [p for p in range(6) if inside[i, p] and not inside[j, p]]
            assert pairs[i, j] == len(places)
            less = [scores[i, p] - scores[j, p] for p in places]
            assert wins[i, j] == sum(1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in less)


def test_masks_that_are_the_same_in_all_images_leave_no_pairs_at_the_same_place():
    shares = torch.tensor([1.0, 0, 0, 1]).repeat(8, 1)
    found = object_separation(shares[..., None] + 1, shares)
    assert found.auc.value == 1 and np.isnan([found.auc_same_place.value, found.probe_same_place.low]).all()


@pytest.mark.fuzz
@given(
    arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(-3, 3)),
    st.integers(0, 2**30 - 1),
)
def test_pairs_of_any_scores_and_masks_give_the_area(scores, bits):
    inside = (bits >> np.arange(scores.size) & 1).astype(bool).reshape(scores.shape)
    assume(inside.any() and not inside.all())
    wins, pairs = image_pairs(scores.astype(np.float64), inside)
    assert (wins >= 0).all() and (wins <= pairs).all()
    assert wins.sum() / pairs.sum() == pytest.approx(roc_auc_score(inside.ravel(), scores.ravel()))


@pytest.mark.fuzz
@given(st.integers(4, 9), st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_whatever_is_measured_lies_where_it_can(n, m, width, seed):
    shares = torch.rand(n, m, generator=torch.Generator().manual_seed(seed))
    features = (3 * draw(n, m, width, seed=seed)).round() + 0.5  # with ties
    try:
        found = object_separation(features, shares, seed=seed)
    except ValueError as error:
        assert re.search("tokens are at least half object|all tokens of the images to fit on are equal", str(error))
        return
    for name in found.resampled:
        estimate = getattr(found, name)
        if name in ("auc", "auc_best", "probe", "iou") or not np.isnan(estimate.value):
            assert 0 <= estimate.low <= estimate.high <= 1 and 0 <= estimate.value <= 1
        assert estimate.count <= (n + 1) // 2
    assert 1 <= found.component <= min(3, width) and -1 <= found.silhouette <= 1
    for image in found.masks.held.tolist():
        area = found.of_image(image)
        assert (area is None) == (found.masks.inside[image].all() or not found.masks.inside[image].any())


def test_an_image_that_is_brighter_as_a_whole_disturbs_the_area_of_all_images_but_not_that_in_each():
    shares = squares()
    features = (shares + 4 * draw(N, 1))[..., None]
    found = object_separation(features, shares)
    assert found.auc_in_image.value == found.auc_in_image.low == 1 and found.auc.value < 0.8
    assert found.of_image(int(found.masks.held[0])) == 1
    # Images without an object, or full of it, have no area and are left out.
    masks = split_masks(torch.cat([torch.zeros(1, SIDE**2), torch.ones(1, SIDE**2), shares[2:]]), seed=0, held=2)
    found = object_separation(features, masks)
    assert found.of_image(0) is None and found.of_image(1) is None
    assert found.auc_in_image.count == N // 2 - 2 and found.iou.count == N // 2 - 1


def test_intervals_are_over_images_not_tokens():
    # All tokens of an image are bright or dark together: 20 images are measured, however many tokens they have.
    shares = squares(n=200)
    few, many = shares[:40], torch.nn.functional.interpolate(shares[:40].reshape(40, 1, 6, 6), scale_factor=2)
    shifts = 2 * draw(40, 1)

    def width(of):
        found = object_separation((of + shifts)[..., None], of).auc
        return found.high - found.low

    assert width(many.flatten(1)) == pytest.approx(width(few), rel=1e-6)
    assert width(few) > 0.05


def test_intervals_cover_as_often_as_they_say():
    # Area of two normal distributions that differ by one standard deviation, in images with a shift of their own: the
    # value of many images lies in nearly all intervals of few.
    def found(n, seed):
        shares = squares(n=n, seed=seed)
        features = (shares + 0.6 * draw(*shares.shape, seed=seed + 1000) + 0.6 * draw(n, 1, seed=seed + 2000))[
            ..., None
        ]
        return object_separation(features, shares).auc

    truth = found(600, 99).value
    hits = sum(one.low <= truth <= one.high for one in (found(60, seed) for seed in range(20)))
    assert hits >= 17


def test_gains_are_paired_over_images():
    shares = squares()
    noisy, clear = tokens(shares, noise=0.6, signal=1.5), tokens(shares, noise=0.5, signal=1.5)
    masks = split_masks(shares, seed=0)
    first, second = (object_separation(features, masks) for features in (clear, noisy))
    gain = first.less(second, "probe")
    assert gain.value == pytest.approx(first.probe.value - second.probe.value) and gain.value > 0
    # The same noise, more or less of it: the difference is surer than either.
    assert gain.high - gain.low < first.probe.high - first.probe.low + second.probe.high - second.probe.low
    nothing = first.less(first, "auc")
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_the_probe_with_masks_of_other_images_knows_the_position_alone():
    shares = squares(n=200)
    masks, shuffled = (split_masks(shares, seed=0), split_masks(shares, seed=0).shuffled(0))
    assert not np.array_equal(masks.inside, shuffled.inside) and masks.inside.mean() == shuffled.inside.mean()
    y, x = (torch.arange(SIDE**2) // SIDE - 2.5, torch.arange(SIDE**2) % SIDE - 2.5)
    place = torch.stack([y.abs(), x.abs()], dim=1).expand(200, -1, -1)
    seen = torch.cat([shares[..., None], 1e-3 * place], dim=2)
    assert object_probe(seen, masks).value == 1
    # Squares cover the middle more often than the edge.
    expected = object_probe(place, shuffled)
    assert 0.6 < expected.value < 0.9
    assert abs(object_probe(seen, shuffled).value - expected.value) < 0.1


def test_a_difference_on_the_object_alone_and_everywhere():
    shares = squares()
    f_u = draw(N, SIDE**2, WIDTH)
    direction = torch.nn.functional.normalize(draw(WIDTH, seed=5), dim=0)
    inside = object_difference(f_u, f_u + 2 * shares[..., None] * direction, shares)
    assert inside.share.value == pytest.approx(1) and inside.share.low == pytest.approx(1)
    assert inside.area == 0.25 and inside.share.count == N
    everywhere = object_difference(f_u, f_u + 2 * direction, shares)
    assert everywhere.share.value == pytest.approx(0.25, abs=1e-6)
    assert everywhere.ratio.value == pytest.approx(1, abs=1e-6) == everywhere.ratio.high
    # Three times as long on the object: 3 of every 3 + 3 parts.
    thrice = object_difference(f_u, f_u + (1 + 2 * shares)[..., None] * direction, shares)
    assert thrice.ratio.value == pytest.approx(3, rel=1e-5) and thrice.share.value == pytest.approx(0.5, rel=1e-5)


def test_half_covered_tokens_count_half_in_the_difference():
    shares = torch.tensor([[1.0, 0.5, 0, 0]]).repeat(6, 1)
    f_c = torch.tensor([[4.0], [2], [1], [1]]).repeat(6, 1, 1)
    found = object_difference(torch.zeros_like(f_c), f_c, shares)
    # On the object 4 + 2 / 2 over 1.5 tokens, beside it 2 / 2 + 2 over 2.5.
    assert found.share.value == pytest.approx(5 / 8)
    assert found.ratio.value == pytest.approx((5 / 1.5) / (3 / 2.5))


def test_a_difference_that_is_larger_in_the_middle_is_even_at_the_same_place():
    shares = squares(n=100)
    middle = 5 - (torch.arange(SIDE**2) // SIDE - 2.5).abs() - (torch.arange(SIDE**2) % SIDE - 2.5).abs()
    lengths = (1 + middle).expand(100, -1)
    found = object_difference(torch.zeros(100, SIDE**2, 1), lengths[..., None], shares)
    assert found.ratio.low > 1.1
    at_place = found.ratio_same_place
    assert at_place.value == pytest.approx(1) == at_place.low == at_place.high
    # Twice as long on the object, wherever it is.
    found = object_difference(torch.zeros(100, SIDE**2, 1), (lengths * (1 + shares))[..., None], shares)
    assert found.ratio_same_place.value == pytest.approx(2) and found.ratio.value > 2.2


def test_equal_features_have_no_difference_to_share():
    shares, f_u = squares(), draw(N, SIDE**2, WIDTH)
    found = object_difference(f_u, f_u, shares)
    ratios = (found.ratio.value, found.ratio.high, found.ratio_same_place.value)
    assert np.isnan([found.share.value, found.share.low, *ratios]).all()


@pytest.mark.parametrize("width", [1, 2])
def test_targets_of_few_dimensions_have_fewer_components(width):
    shares = squares()
    assert object_separation(torch.cat([1 + shares[..., None]] * width, dim=2), shares).auc_best.value == 1


def test_what_cannot_be_measured_is_refused():
    shares, features = squares(), draw(N, SIDE**2, WIDTH)
    with pytest.raises(ValueError, match="got the shares of 3 images, 0 to 1; allowed are 4 or more"):
        split_masks(shares[:3], seed=0)
    with pytest.raises(ValueError, match="40 images, 0 to 2; allowed are 4 or more images and 0 to 1"):
        split_masks(2 * shares, seed=0)
    with pytest.raises(ValueError, match="40 images, nan to nan; allowed"):
        split_masks(shares * torch.nan, seed=0)
    with pytest.raises(ValueError, match="of the 20 images to fit on, 0% of the tokens are at least half object"):
        split_masks(0.4 * shares, seed=0)
    with pytest.raises(ValueError, match="got the shares of 40 images and 3 labels; they must agree"):
        split_masks(shares, seed=0, labels=torch.arange(3))
    with pytest.raises(ValueError, match="got 40 images of 36 tokens and masks of 39 images of 36 tokens"):
        object_separation(features, shares[:39])
    with pytest.raises(ValueError, match="got 40 images of 36 tokens and masks of 40 images of 9 tokens"):
        object_difference(features, features, shares[:, :9])
    with pytest.raises(ValueError, match="all tokens of the images to fit on are equal"):
        object_separation(torch.ones_like(features), shares)
    broken = features.clone()
    broken[5, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        object_separation(broken, shares)
    with pytest.raises(ValueError, match="f_c - f_u is not finite"):
        object_difference(features, broken, shares)
