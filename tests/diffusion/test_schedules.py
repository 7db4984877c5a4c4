"""Laws of t by their quantiles, sampling grids by their points."""

import math

import pytest
import torch

from workbench.diffusion.paths import COSINE, LINEAR
from workbench.diffusion.schedules import sample_time, time_grid


def test_uniform_is_the_identity():
    u = torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(sample_time(u, "uniform"), u)


def test_lognormal_quantiles():
    # Phi(1) = 0.841344746..., so that draw becomes sigmoid(1); the median draw becomes sigmoid(0) = 1/2.
    u = torch.tensor([0.5, 0.5 * (1 + math.erf(1 / math.sqrt(2)))], dtype=torch.float64)
    expected = torch.tensor([0.5, 1 / (1 + math.exp(-1))], dtype=torch.float64)
    torch.testing.assert_close(sample_time(u, "lognormal"), expected)


def test_lognormal_times_on_the_cosine_path():
    # n = 1 and -1 (Phi(1) = 0.841344746...): tan(pi t / 2) = e and 1/e, so t = 2/pi atan(e) = 0.77...
    u = torch.tensor([0.841344746068543, 0.158655253931457, 0.5], dtype=torch.float64)
    expected = torch.tensor([2 / math.pi * math.atan(math.e), 2 / math.pi * math.atan(1 / math.e), 0.5]).double()
    torch.testing.assert_close(sample_time(u, "lognormal", COSINE), expected, rtol=0, atol=1e-7)
    assert 0.77 < expected[0] < 0.78 and sample_time(u, "uniform", COSINE).equal(u)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_lognormal_is_of_the_ratio_of_noise_to_data(path):
    n = torch.linspace(-3, 3, 13, dtype=torch.float64)
    t = sample_time(torch.special.ndtr(n), "lognormal", path)
    torch.testing.assert_close((path.b(t) / path.a(t)).log(), n)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_lognormal_is_symmetric_increasing_and_inside(path):
    u = torch.linspace(0.001, 0.999, 501, dtype=torch.float64)
    t = sample_time(u, "lognormal", path)
    torch.testing.assert_close(t + sample_time(1 - u, "lognormal", path), torch.ones_like(t))
    assert (t.diff() > 0).all()
    assert 0 < t.min() < t.max() < 1


@pytest.mark.parametrize("distribution", ["uniform", "lognormal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions_keep_the_dtype(distribution, dtype):
    assert sample_time(torch.tensor([0.3], dtype=dtype), distribution).dtype == dtype


def test_unknown_law():
    with pytest.raises(ValueError, match="'cosmap'.*uniform, lognormal"):
        sample_time(torch.tensor([0.5]), "cosmap")


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 250])
def test_ode_grid(steps):
    grid = time_grid(steps)
    assert grid.dtype == torch.float64
    assert grid.shape == (steps + 1,)
    assert (grid[0], grid[-1]) == (1, 0)
    torch.testing.assert_close(grid, torch.linspace(1, 0, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("steps", [10, 50, 100, 250])
def test_ode_grid_holds_the_decimals_as_they_are_written(steps):
    assert {i / 10 for i in range(11)} <= set(time_grid(steps).tolist())


def test_sde_grid():
    # Four points from 1 to 0.04 are 0.32 apart, then comes 0.
    expected = torch.tensor([1, 0.68, 0.36, 0.04, 0], dtype=torch.float64)
    torch.testing.assert_close(time_grid(4, last_step=0.04), expected)
    grid = time_grid(250, last_step=0.04)
    assert grid.shape == (251,)
    assert grid[[0, -2, -1]].tolist() == [1, 0.04, 0]
    assert time_grid(1, last_step=0.04).tolist() == [1, 0]


@pytest.mark.parametrize("steps", [1, 7, 50, 250])
def test_shift_1_keeps_every_bit(steps):
    assert time_grid(steps, shift=1.0).tolist() == [i / steps for i in range(steps, -1, -1)]
    assert torch.equal(time_grid(steps, 0.04, shift=1.0), time_grid(steps, 0.04))


def test_shifted_grid_by_hand():
    # The middle point 1/2 goes to 0.5 / (0.3 + 0.7 * 0.5) = 10/13, and with 3 to 0.5 / (3 - 2 * 0.5) = 1/4.
    for shift, middle in ((0.3, 10 / 13), (3.0, 0.25)):
        assert time_grid(2, shift=shift).tolist() == pytest.approx([1, middle, 0], rel=1e-15)
    # Points 1, 0.52, 0.04 of the SDE, then 0: the last noisy point moves like any other.
    expected = [1, 0.52 / (0.3 + 0.7 * 0.52), 0.04 / (0.3 + 0.7 * 0.04), 0]
    assert time_grid(3, 0.04, shift=0.3).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("last_step", [None, 0.04])
@pytest.mark.parametrize("shift", [1e-3, 0.1, 0.3, 0.7, 1.1, 3.3, 1e3])
def test_shift_keeps_both_ends_and_the_order_and_is_undone_by_its_inverse(shift, last_step):
    plain, grid = time_grid(250, last_step), time_grid(250, last_step, shift)
    assert (grid[0], grid[-1]) == (1, 0)
    assert (grid.diff() < 0).all()
    inner = slice(1, -1)
    assert ((grid > plain) == (shift < 1))[inner].all()
    torch.testing.assert_close(grid / (1 / shift + (1 - 1 / shift) * grid), plain)


def test_shift_is_the_released_one_on_its_axis():
    # LightningDiT runs from 0 (noise) to 1 (data) over 250 points, each moved to s u / (1 + (s - 1) u), s = 0.3.
    u = torch.linspace(0, 1, 250, dtype=torch.float64)
    released = 0.3 * u / (1 + (0.3 - 1) * u)
    torch.testing.assert_close(1 - time_grid(249, shift=0.3), released)


def test_refused_grids():
    with pytest.raises(ValueError, match="steps.*0"):
        time_grid(0)
    for last_step in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="last_step"):
            time_grid(10, last_step=last_step)
    for shift in (0.0, -0.3, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"shift must be positive and finite, got {shift}"):
            time_grid(10, shift=shift)
