"""Paths against autograd, conversions as round trips and as closed forms for Gaussian data."""

import math

import pytest
import torch

from workbench.diffusion.paths import (
    COSINE,
    LINEAR,
    eps_to_velocity,
    get_path,
    interpolate,
    score_to_velocity,
    velocity_to_eps,
    velocity_to_score,
    velocity_to_z,
    z_to_velocity,
)

PATHS = [LINEAR, COSINE]
by_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


def batch(count=5, dtype=torch.float64):
    """z, eps and interior times."""
    rng = torch.Generator().manual_seed(0)
    z = 2 + 3 * torch.randn(count, 4, 3, 2, generator=rng, dtype=dtype)
    eps = torch.randn(count, 4, 3, 2, generator=rng, dtype=dtype)
    return z, eps, torch.linspace(0.05, 0.95, count, dtype=dtype)


@by_path
def test_derivatives_are_those_of_autograd(path):
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    for value, derivative in ((path.a, path.da), (path.b, path.db)):
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(derivative(t), expected)


@by_path
def test_ends_are_data_and_noise(path):
    z, eps, _ = batch()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.a(ends), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(path.b(ends), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(interpolate(path, z, eps, torch.zeros(5, dtype=torch.float64)).x_t, z)
    torch.testing.assert_close(interpolate(path, z, eps, torch.ones(5, dtype=torch.float64)).x_t, eps)


@by_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_coefficients_keep_the_dtype(path, dtype):
    t = torch.tensor([0.25], dtype=dtype)
    assert {f(t).dtype for f in (path.a, path.b, path.da, path.db)} == {dtype}


def test_linear_by_hand():
    # t = 1/4: x = 3/4 * 8 + 1/4 * (-4) = 5, v = -4 - 8 = -12; cosine at t = 1/2: x = (8 - 4)/sqrt 2.
    z, eps = torch.tensor([[8.0]]), torch.tensor([[-4.0]])
    point = interpolate(LINEAR, z, eps, torch.tensor([0.25]))
    assert (point.x_t.item(), point.v.item()) == (5.0, -12.0)
    point = interpolate(COSINE, z, eps, torch.tensor([0.5]))
    assert point.x_t.item() == pytest.approx(4 / math.sqrt(2))
    assert point.v.item() == pytest.approx(-math.pi / 2 * 12 / math.sqrt(2))


@by_path
def test_velocity_is_the_time_derivative_of_the_point(path):
    z, eps, t = batch()
    step = 1e-6
    difference = interpolate(path, z, eps, t + step).x_t - interpolate(path, z, eps, t - step).x_t
    torch.testing.assert_close(interpolate(path, z, eps, t).v, difference / (2 * step), rtol=1e-7, atol=1e-7)


@by_path
def test_time_belongs_to_its_own_sample(path):
    z, eps, t = batch()
    together = interpolate(path, z, eps, t)
    for i in range(len(t)):
        alone = interpolate(path, z[i : i + 1], eps[i : i + 1], t[i : i + 1])
        assert torch.equal(together.x_t[i], alone.x_t[0])
        assert torch.equal(together.v[i], alone.v[0])


@by_path
def test_velocity_gives_back_z_and_eps_even_at_the_ends(path):
    z, eps, _ = batch()
    t = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    point = interpolate(path, z, eps, t)
    torch.testing.assert_close(velocity_to_z(path, point.x_t, t, point.v), z)
    torch.testing.assert_close(velocity_to_eps(path, point.x_t, t, point.v), eps)


@by_path
@pytest.mark.parametrize(
    ("there", "back"),
    [
        (velocity_to_eps, eps_to_velocity),
        (velocity_to_z, z_to_velocity),
        (velocity_to_score, score_to_velocity),
    ],
)
def test_conversions_are_round_trips(path, there, back):
    # x and v are unrelated: the conversions are linear algebra, not facts about a particular sample.
    x, v, t = batch()
    torch.testing.assert_close(back(path, x, t, there(path, x, t, v)), v)
    torch.testing.assert_close(there(path, x, t, back(path, x, t, v)), v)


def test_score_of_the_linear_path_is_the_published_formula():
    x, v, t = batch()
    column = t.reshape(-1, 1, 1, 1)
    expected = (-(1 - column) * v - x) / column
    torch.testing.assert_close(velocity_to_score(LINEAR, x, t, v), expected)


@by_path
def test_score_of_gaussian_data(path):
    # z ~ N(m, s^2) gives x_t ~ N(a m, V), V = a^2 s^2 + b^2, hence score -(x - a m)/V. With r = (x - a m)/V
    # the posterior means are E[z|x] = m + a s^2 r and E[eps|x] = b r, and the velocity is a' E[z|x] + b'
    # E[eps|x].
    m, s = 1.5, 0.6
    x, _, t = batch()
    column = t.reshape(-1, 1, 1, 1)
    a, b, da, db = (f(column) for f in (path.a, path.b, path.da, path.db))
    r = (x - a * m) / (a**2 * s**2 + b**2)
    v = da * (m + a * s**2 * r) + db * b * r
    torch.testing.assert_close(velocity_to_score(path, x, t, v), -r)
    torch.testing.assert_close(velocity_to_eps(path, x, t, v), b * r)
    torch.testing.assert_close(velocity_to_z(path, x, t, v), m + a * s**2 * r)


def test_singular_times_are_the_documented_ones():
    x, value = torch.ones(2, 1), torch.full((2, 1), 2.0)
    ends = torch.tensor([0.0, 1.0])
    finite = {
        function: torch.isfinite(function(LINEAR, x, ends, value)).flatten().tolist()
        for function in (
            velocity_to_eps,
            velocity_to_z,
            velocity_to_score,
            eps_to_velocity,
            z_to_velocity,
            score_to_velocity,
        )
    }
    assert finite == {
        velocity_to_eps: [True, True],
        velocity_to_z: [True, True],
        velocity_to_score: [False, True],
        eps_to_velocity: [True, False],
        z_to_velocity: [False, True],
        score_to_velocity: [True, False],
    }


def test_paths_are_found_by_name():
    assert [get_path(path.name) for path in PATHS] == PATHS
    assert LINEAR != COSINE
    with pytest.raises(ValueError, match="'vp'.*linear, cosine"):
        get_path("vp")
