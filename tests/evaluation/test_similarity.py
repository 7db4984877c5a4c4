import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import i0

from workbench.evaluation import similarity as module
from workbench.evaluation.similarity import (
    alignment,
    cknna,
    linear_cka,
    rank_me,
    unbiased_hsic,
    uniformity,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=9):
    return torch.linalg.qr(draw(d, d, seed=seed)).Q


def gram(n, d, seed):
    rows = draw(n, d, seed=seed).numpy()
    return rows @ rows.T


def test_hsic_is_the_mean_over_all_four_different_rows():
    k, l = gram(6, 3, 0), gram(6, 2, 1)  # noqa: E741
    terms = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in itertools.permutations(range(6), 4)]
    assert unbiased_hsic(k, l) == pytest.approx(np.mean(terms), rel=1e-12)


def test_hsic_is_zero_on_average_over_all_orders():
    k, l = gram(6, 3, 0), gram(6, 2, 1)  # noqa: E741
    orders = [list(order) for order in itertools.permutations(range(6))]
    values = [unbiased_hsic(k, l[np.ix_(order, order)]) for order in orders]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert np.std(values) > 0.1
    with pytest.raises(ValueError, match="got 3 rows"):
        unbiased_hsic(k[:3, :3], l[:3, :3])


def test_cka_of_equal_sets_is_one_whatever_rotation_scale_and_shift():
    x = draw(40, 6)
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation(6) + 1e5) == pytest.approx(1)
    y = draw(40, 4, seed=1) + x[:, :4]
    assert linear_cka(x @ rotation(6), y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y)) and 0.1 < linear_cka(x, y) < 0.9


def test_cka_with_as_much_noise_again_is_the_root_of_a_half():
    # Of y = (x, independent noise of the same size) the kernel is a sum, so CKA = |S|^2 / sqrt(|S|^2 2 |S|^2).
    x, noise = draw(1500, 4), draw(1500, 4, seed=1)
    assert linear_cka(x, torch.cat([x, noise], dim=1)) == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_cka_of_independent_sets_is_near_zero_where_the_biased_one_is_near_one():
    values = [linear_cka(draw(40, 800, seed=seed), draw(40, 800, seed=100 + seed)) for seed in range(10)]
    assert abs(np.mean(values)) < 0.03 and max(map(abs, values)) < 0.1
    centred = [x - x.mean(dim=0) for x in (draw(40, 800), draw(40, 800, seed=100))]
    k, l = (x @ x.T for x in centred)  # noqa: E741
    assert (k * l).sum() / (k.norm() * l.norm()) > 0.9


@pytest.mark.parametrize("constant", [torch.ones(10, 3), torch.full((10, 3), 0.1)])
def test_cka_refuses_a_constant_set(constant):
    with pytest.raises(ValueError, match="does not vary"):
        linear_cka(draw(10, 3), constant)


def written_out(x, y, k):
    """CKNNA by its definition, with whole matrices."""
    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (x, y))

    def near(gram):
        hidden = gram.clone().fill_diagonal_(-torch.inf)
        return torch.zeros_like(gram).scatter_(1, hidden.topk(k, dim=1).indices, 1)

    def hsic(first, second):
        mask, n = near(first) * near(second), len(first)
        a, b = mask * first, mask * second
        value = (a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b).sum() / (n - 2)
        return value / (n * (n - 3))

    first, second = x @ x.T, y @ y.T
    return float(hsic(first, second) / (torch.sqrt(hsic(first, first) * hsic(second, second)) + 1e-6))


@pytest.mark.parametrize("k", [2, 5, 20])
def test_cknna_is_its_definition_and_so_is_its_null(k, monkeypatch):
    x = draw(60, 5)
    y = torch.cat([x, draw(60, 5, seed=1)], dim=1)
    monkeypatch.setattr(module, "_BLOCK", 7)
    found = cknna(x, y, neighbours=k, permutations=5, seed=3)
    assert found.value == pytest.approx(written_out(x, y, k), rel=1e-10)
    generator = np.random.default_rng(3)
    null = [written_out(x, y[torch.from_numpy(generator.permutation(60))], k) for _ in range(5)]
    assert found.null_mean == pytest.approx(np.mean(null), rel=1e-8)
    assert found.null_high == pytest.approx(np.quantile(null, 0.95), rel=1e-8)
    assert (found.neighbours, found.count, found.permutations) == (k, 60, 5)


def test_cknna_of_equal_sets_is_one_and_rotation_changes_nothing():
    x = draw(200, 8)
    found = cknna(x, 5 * x @ rotation(8), seed=0)
    # The 1e-6 beside self terms of about 4e-3 leaves a little less than 1.
    assert 0.999 < found.value < 1
    assert found.p == pytest.approx(1 / 101)
    assert found.calibrated == pytest.approx((found.value - found.null_high) / (1 - found.null_high))


def test_cknna_of_independent_sets_is_within_its_null():
    found = [cknna(draw(300, 8, seed=seed), draw(300, 8, seed=50 + seed), seed=seed) for seed in range(10)]
    # A p below 1/20 happens in 1 of 20 independent pairs; four of ten would happen once in a thousand times.
    assert sum(one.p <= 0.05 for one in found) < 4
    assert all(one.null_mean < 10 / 299 and one.calibrated < 0.05 for one in found)
    assert min(one.null_high - one.null_mean for one in found) > 0


@pytest.mark.parametrize("options", [{"neighbours": 1}, {"neighbours": 20}, {"permutations": 0}])
def test_cknna_refuses_what_has_no_neighbours(options):
    with pytest.raises(ValueError, match="20 rows"):
        cknna(draw(20, 3), draw(20, 3, seed=1), seed=0, **options)


def test_rank_of_equal_singular_values_is_their_number():
    features = torch.zeros(12, 8, dtype=torch.float64)
    features[:5, :5] = 3 * torch.eye(5)
    # Five shares of 1/5 + 1e-7 and three of 1e-7.
    shares = np.array([0.2 + 1e-7] * 5 + [1e-7] * 3)
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert rank_me(features) == pytest.approx(expected, rel=1e-12) == pytest.approx(5, abs=1e-3)
    assert rank_me(features @ rotation(8)) == pytest.approx(expected, rel=1e-9)


def test_rank_without_the_mean_does_not_see_a_shift():
    x = draw(50, 6)
    assert rank_me(x + 1000, centred=True) == pytest.approx(rank_me(x, centred=True))
    assert rank_me(x + 1000) < 1.1 < 5 < rank_me(x)
    with pytest.raises(ValueError, match="all features are zero"):
        rank_me(torch.zeros(4, 3))


def test_alignment_of_equal_orthogonal_and_opposite_pairs():
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    turned = torch.tensor([[-4.0, 3.0], [0.0, 2.0]])
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, turned) == pytest.approx(2)
    assert alignment(x, -x) == pytest.approx(4)


def test_uniformity_in_closed_form(monkeypatch):
    assert uniformity(torch.tensor([[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]])) == pytest.approx(0, abs=1e-12)
    assert uniformity(3 * torch.eye(6)) == pytest.approx(-4)
    # n even points on a circle: the mean of exp(4 cos) over all pairs is I_0(4); a row is no pair with itself.
    monkeypatch.setattr(module, "_BLOCK", 60)
    angles = torch.arange(200, dtype=torch.float64) * (2 * math.pi / 200)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert uniformity(circle) == pytest.approx(math.log((200 * math.exp(-4) * i0(4) - 1) / 199), rel=1e-10)
