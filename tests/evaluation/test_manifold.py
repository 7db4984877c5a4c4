import jaxtyping
import pytest
import torch

from workbench.evaluation.manifold import (
    density_coverage,
    memorisation,
    nearest_training,
    precision_recall,
    squared_distances,
    squared_radii,
)


def sample(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def whole(n, d, seed):
    """Small whole numbers, whose squared distances are exact in float32 and in float16."""
    return torch.randint(-5, 6, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def line(*points):
    return torch.tensor(points, dtype=torch.float32)[:, None]


def by_definition(generated, real, k):
    """Every distance at once, in float64."""
    first, second = generated.double(), real.double()
    across = (first[:, None] - second).square().sum(dim=2)
    radii = [(rows[:, None] - rows).square().sum(dim=2).sort(dim=1).values[:, k] for rows in (first, second)]
    precision = (across <= radii[1]).any(dim=1).double().mean()
    recall = (across <= radii[0][:, None]).any(dim=0).double().mean()
    return precision.item(), recall.item()


@pytest.mark.parametrize("block", [3, 100])
def test_squared_radii_by_hand(block):
    # Of 0, 1, 3, 7: nearest at 1, 1, 2, 4; second nearest at 3, 2, 3, 6.
    assert squared_radii(line(0, 1, 3, 7), 1, block=block).tolist() == [1, 1, 4, 16]
    assert squared_radii(line(0, 1, 3, 7), 2, block=block).tolist() == [9, 4, 9, 36]
    assert squared_radii(line(2, 2, 5), 1, block=block).tolist() == [0, 0, 9]


def test_precision_and_recall_by_hand():
    # k = 1. Balls of the real rows: [-1, 1], [0, 2], [1, 5]; -1 is on an edge and inside, 6 and 10 are outside.
    # Balls of the generated rows: [-3.5, 1.5], [-1, 4], [2, 10], [6, 14] hold 0, 1 and 3.
    result = precision_recall(line(-1, 1.5, 6, 10), line(0, 1, 3), k=1)
    assert result.precision == 0.5
    assert result.recall == 1


def test_the_sets_do_not_stand_for_each_other():
    # Collapsed onto one mode of two: precise, but half of the real rows are missed.
    real = torch.cat([sample(50, 4, seed=0), sample(50, 4, seed=1) + 100])
    result = precision_recall(real[:50] + 0.01, real)
    assert result.precision == 1
    assert result.recall == 0.5
    assert result.real_inside.tolist() == [True] * 50 + [False] * 50


@pytest.mark.parametrize(("n", "m", "k"), [(60, 60, 3), (90, 40, 3), (25, 70, 2)])
@pytest.mark.parametrize("block", [16, 25, 4096])
@pytest.mark.parametrize("half", [False, True])
def test_blocks_change_nothing_and_float16_is_exact_for_small_whole_numbers(n, m, k, block, half):
    generated, real = whole(n, 6, seed=0), whole(m, 6, seed=1) + 3
    result = precision_recall(generated, real, k=k, half=half, block=block)
    precision, recall = by_definition(generated, real, k)
    assert 0.1 < precision < 1 and 0.1 < recall < 1
    assert (result.precision, result.recall) == (precision, recall)


def test_float16_rounds_as_it_should():
    # Between 2048 and 4096 float16 holds even numbers only: 2049 becomes 2048.
    x, y = torch.zeros(1, 3), torch.tensor([[-32.0, -32.0, 1.0]])
    assert squared_distances(x, y).item() == 2049
    assert squared_distances(x, y, half=True).item() == 2048
    # So a row just outside of a ball of squared radius 2048 = 32^2 + 32^2 comes to lie inside.
    real = torch.tensor([[0.0, 0, 0], [32, 32, 0]])
    generated = torch.tensor([[-32.0, -32, 1], [-100, -100, 0]])
    assert precision_recall(generated, real, k=1).precision == 0
    assert precision_recall(generated, real, k=1, half=True).precision == 0.5


def test_float16_falls_back_to_float32_for_the_block_that_overflows():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[300.0], [0.1]])
    exact = squared_distances(x, y)
    assert exact[0, 0] == 90_000
    assert torch.equal(squared_distances(x, y, half=True), exact)
    assert not torch.equal(squared_distances(x, y[1:], half=True), exact[:, 1:])


def test_density_and_coverage_by_hand():
    # k = 1. Balls [-1, 1], [0, 2], [1, 5]: 0.5 lies in two, 10 in none, so (2 + 0) / 2; two of three balls are met.
    result = density_coverage(line(0.5, 10), line(0, 1, 3), k=1)
    assert result.density == 1
    assert result.coverage == pytest.approx(2 / 3)


@pytest.mark.parametrize("block", [7, 4096])
def test_density_and_coverage_of_one_distribution(block):
    # Expected density 1; expected coverage 1 - prod_{i=1..k} (n - i) / (n + m - i), whatever the distribution.
    expected = 1.0
    for i in range(1, 6):
        expected *= (60 - i) / (60 + 90 - i)
    values = [density_coverage(sample(90, 5, 2 * i), sample(60, 5, 2 * i + 1), block=block) for i in range(30)]
    assert sum(v.density for v in values) / 30 == pytest.approx(1, abs=0.05)
    assert sum(v.coverage for v in values) / 30 == pytest.approx(1 - expected, abs=0.01)


def test_an_outlier_does_not_raise_density_as_it_raises_precision():
    # One real row at 1000 has a ball that holds everything: precision 1, density 1 / k.
    real, generated = torch.cat([sample(50, 3, seed=0), torch.full((1, 3), 1000.0)]), sample(40, 3, seed=1) + 500
    assert precision_recall(generated, real).precision == 1
    assert density_coverage(generated, real, k=5).density == pytest.approx(1 / 5)


@pytest.mark.parametrize("block", [16, 4096])
def test_nearest_training_rows(block):
    train, queries = sample(70, 9, seed=0) + 50, sample(40, 9, seed=1) + 50
    queries[5] = train[33]
    result = nearest_training(queries, train, block=block)
    expected = (queries.double()[:, None] - train.double()).norm(dim=2).min(dim=1)
    assert torch.equal(result.index, expected.indices)
    torch.testing.assert_close(result.distance, expected.values, rtol=1e-12, atol=0)
    assert result.index[5] == 33 and result.distance[5] == 0


def test_memorisation_by_hand():
    # Distances to the training rows 0 and 10: generated 1, 3; test 2, 3. Closer: 1 < 2, 1 < 3, 3 > 2, 3 = 3.
    result = memorisation(*(nearest_training(rows, line(0, 10)) for rows in (line(1, 7), line(2, 13))))
    assert result.generated.distance.tolist() == [1, 3] and result.generated.index.tolist() == [0, 1]
    assert result.test.distance.tolist() == [2, 3]
    assert result.closer == pytest.approx(2.5 / 4)


def test_copies_are_told_from_fresh_samples():
    train, test, fresh = sample(300, 6, seed=0), sample(200, 6, seed=1), sample(200, 6, seed=2)
    copies = train[:200] + 0.01 * sample(200, 6, seed=3)
    copied, honest = (memorisation(*(nearest_training(x, train) for x in (rows, test))) for rows in (copies, fresh))
    assert copied.closer > 0.99 and copied.p_value < 1e-20
    assert abs(honest.closer - 0.5) < 0.1 and honest.p_value > 0.01


def test_radii_that_are_known_change_nothing():
    generated, real = sample(40, 3, seed=0), sample(60, 3, seed=1)
    known = precision_recall(generated, real, real_radii=squared_radii(real, 3))
    fresh = precision_recall(generated, real)
    assert (known.precision, known.recall) == (fresh.precision, fresh.recall)
    assert density_coverage(generated, real, real_radii=squared_radii(real, 5)) == density_coverage(generated, real)


def test_refusals(monkeypatch):
    x = sample(10, 3, seed=0)
    for k in (0, 10):
        with pytest.raises(ValueError, match="1 to 9"):
            precision_recall(x, sample(20, 3, seed=1), k=k)
    with pytest.raises(ValueError, match="no queries rows"):
        nearest_training(x[:0], x)
    broken = x.clone()
    broken[6, 1] = torch.nan
    with pytest.raises(ValueError, match="row 6 of the real features"):
        precision_recall(x, broken)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="different dimensions"):
        density_coverage(x, sample(10, 4, seed=1))
