"""Samplers on Gaussian data, whose velocity and answer are known exactly, and single steps by hand.

For z ~ N(m, s^2), x_t = a z + b eps is N(a m, V) with V = a^2 s^2 + b^2. With r = (x_t - a m)/V the posterior
means are E[z|x_t] = m + a s^2 r and E[eps|x_t] = b r, so the velocity a' E[z|x_t] + b' E[eps|x_t] is a' m + k
r with k = a a' s^2 + b b' = V'/2, and the score is -r.
"""

import math

import pytest
import torch

from workbench.diffusion.guidance import Guidance
from workbench.diffusion.paths import COSINE, LINEAR
from workbench.diffusion.randomness import normal
from workbench.diffusion.sampling import sample
from workbench.diffusion.schedules import time_grid

M, S = 1.5, 0.5
SHAPE = (2, 4, 4)
by_path = pytest.mark.parametrize("path", [LINEAR, COSINE], ids=lambda path: path.name)


def coefficients(path, t):
    t = torch.as_tensor(t, dtype=torch.float64)
    return path.a(t), path.b(t), path.da(t), path.db(t)


def gaussian(path):
    """The exact velocity of the module docstring."""

    def velocity(x, t, y):
        a, b, da, db = coefficients(path, t.reshape(-1, 1, 1, 1))
        r = (x - a * M) / (a**2 * S**2 + b**2)
        return da * M + (a * da * S**2 + b * db) * r

    return velocity


def start(count, dtype=torch.float64):
    return normal(0, "noise", range(count), SHAPE).to(dtype), torch.zeros(count, dtype=torch.int64)


def noise_of_step(count):
    return lambda step: normal(0, f"step-{step}", range(count), SHAPE)


def ode_error(path, sampler, steps, shift=1.0):
    # The flow keeps (x - a m)/sqrt(V); from x = eps at t = 1, where V = 1, it ends in m + s eps.
    noise, labels = start(4)
    end = sample(gaussian(path), noise, labels, null_label=1, sampler=sampler, steps=steps, path=path, shift=shift)
    return (end - (M + S * noise)).abs().max().item()


@by_path
@pytest.mark.parametrize("shift", [1.0, 0.3, 2.0])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_ode_converges_at_its_order(path, sampler, order, shift):
    errors = [ode_error(path, sampler, steps, shift) for steps in (100, 200, 400)]
    observed = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert observed == pytest.approx([order, order], abs=0.25)
    # The longest step is max(s, 1/s) times an equal one.
    assert errors[-1] < 0.01 * max(shift, 1 / shift)


@by_path
def test_heun_beats_euler_at_equal_evaluations(path):
    assert ode_error(path, "heun", 50) < 0.2 * ode_error(path, "euler", 100)


@by_path
@pytest.mark.parametrize("shift", [1.0, 0.3])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_ode_mean_and_variance(path, sampler, shift):
    # n = 16000 numbers: standard errors s/sqrt(n) and s^2 sqrt(2/n); five of them and 1 % for the finite
    # steps.
    noise, labels = start(500)
    end = sample(gaussian(path), noise, labels, null_label=1, sampler=sampler, steps=200, path=path, shift=shift)
    n = end.numel()
    assert end.mean().item() == pytest.approx(M, abs=5 * S / n**0.5 + 0.01 * M)
    assert end.var().item() == pytest.approx(S**2, abs=5 * S**2 * (2 / n) ** 0.5 + 0.01 * S**2)


def sde_moments(path, steps, shift=1.0):
    """Mean and variance after the last step, exactly: each step is affine in x with Gaussian noise.

    The drift v - (w/2) score is a' m + (k + w/2) r, so a step multiplies x - mean by 1 + dt g, g = (k +
    w/2)/V.
    """
    mean, variance = 0.0, 1.0
    times = time_grid(steps, last_step=0.04, shift=shift).tolist()
    for t, t_next in zip(times, times[1:], strict=False):
        a, b, da, db = (c.item() for c in coefficients(path, t))
        w, dt = 2 * t, t_next - t
        g = (a * da * S**2 + b * db + w / 2) / (a**2 * S**2 + b**2)
        mean += dt * (da * M + g * (mean - a * M))
        variance = (1 + dt * g) ** 2 * variance + (w * -dt if t_next > 0 else 0)
    return mean, variance


@by_path
@pytest.mark.parametrize("shift", [1.0, 0.3])
def test_sde_mean_and_variance(path, shift):
    # The recursion is what 100 steps must give, within five standard errors of n = 32000 numbers.
    noise, labels = start(1000)
    end = sample(
        gaussian(path),
        noise,
        labels,
        null_label=1,
        sampler="euler-maruyama",
        steps=100,
        path=path,
        shift=shift,
        step_noise=noise_of_step(1000),
    )
    mean, variance = sde_moments(path, 100, shift)
    n = end.numel()
    assert end.mean().item() == pytest.approx(mean, abs=5 * S / n**0.5)
    assert end.var().item() == pytest.approx(variance, abs=5 * S**2 * (2 / n) ** 0.5)


@by_path
def test_sde_steps_lead_to_the_data(path):
    # The recursion itself tends to (m, s^2), up to what the last step of 0.04 costs.
    mean, variance = sde_moments(path, 4000)
    assert mean == pytest.approx(M, rel=0.01)
    assert variance == pytest.approx(S**2, rel=0.04)


def test_sde_by_hand():
    # v = 0, x = 1, grid 1, 1/2, 0. At t = 1: score -x = -1, w = 2, drift 1, so x = 1 - 1/2 + sqrt(2 * 1/2) n
    # with n = 1/4, that is 3/4. At t = 1/2: score -x/t = -3/2, w = 1, drift 3/4, no noise: x = 3/4 - 3/8 =
    # 3/8.
    asked = []

    def step_noise(step):
        asked.append(step)
        return torch.full((1, 1, 1, 1), 0.25)

    end = sample(
        lambda x, t, y: torch.zeros_like(x),
        torch.ones(1, 1, 1, 1),
        torch.tensor([0]),
        null_label=1,
        sampler="euler-maruyama",
        steps=2,
        last_step=0.5,
        step_noise=step_noise,
    )
    assert end.item() == 0.375
    assert asked == [0]


def test_the_other_time_axis_gives_the_same_euler_samples():
    # On the axis of SiT (0 noise, 1 data) the field is u(x, 1 - t) = -v(x, t) and time runs upwards.
    noise, labels = start(3)
    velocity = gaussian(LINEAR)
    x = noise
    for i in range(20):
        t = torch.full((3,), 1 - i / 20, dtype=torch.float64)
        x = x + 1 / 20 * -velocity(x, t, labels)
    torch.testing.assert_close(sample(velocity, noise, labels, null_label=1, steps=20), x)


def test_guiding_the_velocity_is_guiding_the_sde_drift():
    # With v_u and v_c constant, the score is affine in v, so the guided run is the run of the guided
    # constant.
    noise, labels = start(2)
    options = {
        "null_label": 1,
        "sampler": "euler-maruyama",
        "steps": 8,
        "step_noise": noise_of_step(2),
    }

    def by_label(x, t, y):
        return torch.where(y.reshape(-1, 1, 1, 1) == 1, 0.25, -0.5).expand_as(x)

    guided = sample(by_label, noise, labels, guidance=Guidance(scale=3.0), **options)
    constant = sample(lambda x, t, y: torch.full_like(x, 0.25 + 3 * (-0.5 - 0.25)), noise, labels, **options)
    torch.testing.assert_close(guided, constant)


def test_state_is_float64_between_float32_evaluations():
    # 3000 steps of 1/3000 add up to 1 in float64; a float32 state that starts at 1000 would drift visibly.
    noise = torch.full((1, 1, 1, 1), 1000.0)
    end = sample(lambda x, t, y: torch.ones_like(x), noise, torch.tensor([0]), null_label=1, steps=3000)
    assert end.item() == 999.0
