"""Random numbers by address: independence of batching, distinct streams, and the right distributions."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from workbench.diffusion.randomness import generator, normal, permutation, uniform

SHAPE = (4, 8, 8)


def correlation(x, y):
    return np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]


def draws(indices):
    """Both batched functions behind one signature."""
    return {"normal": normal(3, "noise", indices, SHAPE), "uniform": uniform(3, "noise", indices, 5)}


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_row_depends_on_its_index_alone(kind):
    together = draws(range(10))[kind]
    assert torch.equal(torch.cat([draws([i])[kind] for i in range(10)]), together)
    order = [7, 2, 2, 9, 0]
    assert torch.equal(draws(order)[kind], together[order])
    assert torch.equal(draws(np.array(order))[kind], together[order])
    assert len(torch.unique(together, dim=0)) == 10


def test_global_state_is_neither_read_nor_moved():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    first = normal(3, "noise", [1], SHAPE)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(normal(3, "noise", [1], SHAPE), first)


def test_another_process_draws_the_same():
    # Another hash salt, so a key made with hash() would differ.
    code = "from workbench.diffusion import randomness as r; print(r.generator(3, 'noise', 5).integers(2**60))"
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(there.stdout) == generator(3, "noise", 5).integers(2**60)


def test_normal_distribution():
    # 2000 rows of 256: n = 512000, standard errors 1/sqrt(n) for the mean, sqrt(2/n), sqrt(96/n) for the
    # fourth moment (E x^8 - 9 = 96) and sqrt(p(1-p)/n) for the share beyond 2 (p = 0.0455). Five of each.
    x = normal(0, "noise", range(2000), SHAPE)
    assert x.dtype == torch.float32
    assert x.shape == (2000, *SHAPE)
    x = x.double()
    n = x.numel()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs((x.abs() > 2).double().mean() - 0.0455003) < 5 * (0.0455 * 0.9545 / n) ** 0.5


def test_uniform_distribution():
    # n = 200000; the mean has standard error sqrt(1/12n); each of 20 bins holds 10000 +- sqrt(9500).
    u = uniform(0, "times", range(2000), 100)
    assert u.dtype == torch.float32
    assert u.shape == (2000, 100)
    assert abs(u.double().mean() - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert (counts - 10000).abs().max() < 5 * 9500**0.5


def test_uniform_stays_strictly_inside(monkeypatch):
    # All bits 0 and all bits 1 are the extreme draws: 2**-24 and 1 - 2**-24, each exact in float32.
    class Extreme:
        def random_raw(self, columns):
            return np.array([0, 2**64 - 1], dtype=np.uint64)

    monkeypatch.setattr("workbench.diffusion.randomness._philox", lambda key, index, purpose: Extreme())
    assert uniform(0, "times", [0], 2).double().tolist() == [[2**-24, 1 - 2**-24]]


def test_seeds_streams_and_neighbouring_indices_are_uncorrelated():
    # n = 128000 numbers a stream: |correlation| of independent draws stays below 5/sqrt(n) = 0.014.
    base = normal(0, "noise", range(500), SHAPE)
    others = {
        "seed": normal(1, "noise", range(500), SHAPE),
        "stream": normal(0, "step-noise", range(500), SHAPE),
        "index": normal(0, "noise", range(1, 501), SHAPE),
    }
    assert {name: abs(correlation(base, x)) < 0.014 for name, x in others.items()} == dict.fromkeys(others, True)


def test_seed_and_stream_do_not_run_together():
    assert not torch.equal(normal(1, "2", [0], SHAPE), normal(12, "", [0], SHAPE))


def test_functions_sharing_an_address_are_independent():
    # A normal draw that reused the bits of the uniform one would be tied to it row by row; n = 20000.
    x = normal(0, "train", range(20000), (1,))
    u = uniform(0, "train", range(20000), 1)
    assert abs(correlation(x, u)) < 5 / 20000**0.5
    assert abs(correlation(x.abs(), u)) < 5 / 20000**0.5
    raw = generator(0, "train", 0).bit_generator.random_raw(4)
    assert ((raw >> np.uint64(41)) + 0.5).tolist() != (uniform(0, "train", [0], 4)[0] * 2**23).tolist()


def test_indices_are_half_the_counter_apart():
    # Sequence 0 moved on by 2**128 blocks is sequence 1: nothing that fits in a machine's life makes them
    # meet.
    moved = generator(0, "noise", 0).bit_generator.advance(2**128).random_raw(8)
    assert np.array_equal(moved, generator(0, "noise", 1).bit_generator.random_raw(8))


@pytest.mark.parametrize("index", [-1, 2**64])
def test_refused_index(index):
    with pytest.raises(ValueError, match="index"):
        generator(0, "noise", index)


def test_large_indices_differ():
    x = normal(0, "noise", [0, 2**32, 2**63, 2**64 - 1], SHAPE)
    assert len(torch.unique(x, dim=0)) == 4
    assert torch.equal(normal(0, "noise", np.array([2**63], dtype=np.uint64), SHAPE), x[2:3])


def test_permutation():
    first = permutation(0, "order", 0, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, permutation(0, "order", 0, 100))
    assert not np.array_equal(first, permutation(0, "order", 1, 100))
    assert not np.array_equal(first, permutation(1, "order", 0, 100))


def test_permutations_put_every_item_everywhere():
    # 6000 orders of 3 items: each of the 6 orders comes 1000 +- sqrt(833) times.
    orders = [tuple(permutation(0, "order", index, 3).tolist()) for index in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 5 * 833**0.5
