"""DiT as a velocity model: the change of variables against closed forms, and its network against SiT's."""

import math

import pytest
import torch

from workbench.backbones import sit
from workbench.backbones.base import TransformerBackbone
from workbench.backbones.dit import STEP_TIMES, Backbone, clamp_time, discrete_step
from workbench.config import plugin_class, plugin_options

MEAN, DEVIATION = 0.7, 1.3


def schedule() -> list[float]:
    """abar of DDPM's steps 0 .. 999, as a plain product."""
    abar, values = 1.0, []
    for step in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        values.append(abar)
    return values


ABAR = schedule()


def abar_at(tau: float) -> float:
    """abar between steps: linear in log-SNR."""
    low = min(int(tau), 998)
    log_snr = [math.log(ABAR[step] / (1 - ABAR[step])) for step in (low, low + 1)]
    between = log_snr[0] + (tau - low) * (log_snr[1] - log_snr[0])
    return 1 / (1 + math.exp(-between))


@pytest.fixture
def perfect(monkeypatch):
    """A DiT whose network knows E[eps | x_vp] at any DDPM step, for z ~ N(MEAN, DEVIATION^2)."""

    def walk(self, x, tau, y, layers, deepest, edits):
        rows = []
        for row, step in zip(x, tau.tolist(), strict=True):
            signal, noise = math.sqrt(abar_at(step)), math.sqrt(1 - abar_at(step))
            rows.append(noise * (row - signal * MEAN) / (signal**2 * DEVIATION**2 + noise**2))
        eps = torch.stack(rows).flatten(2).transpose(1, 2)
        return eps, eps[:, 0], {}

    monkeypatch.setattr(TransformerBackbone, "_walk", walk)
    model = Backbone(channels=3, height=4, classes=5)
    model.final_layer = torch.nn.Module()
    model.final_layer.forward = lambda tokens, condition: tokens
    return model


def exact_velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps - z | x_t] for x_t = (1-t) z + t eps, from the joint Gaussian of z, eps and x_t."""
    t = t[:, None, None, None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    surprise = (x_t - (1 - t) * MEAN) / variance
    return t * surprise - (MEAN + (1 - t) * DEVIATION**2 * surprise)


def points(count: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(count, 3, 4, 4, generator=generator, dtype=dtype)


def test_step_times_by_hand():
    # sqrt((1 - 0.9999) / 0.9999) = 0.01000050; divided by 1.01000050
    assert STEP_TIMES[0].item() == pytest.approx(0.00990148, abs=1e-7)
    for step in (0, 1, 250, 999):
        t = STEP_TIMES[step].item()
        assert (1 - t) ** 2 / t**2 == pytest.approx(ABAR[step] / (1 - ABAR[step]), rel=1e-9)
    assert len(STEP_TIMES) == 1000 and (STEP_TIMES.diff() > 0).all()


def test_steps_are_found_and_clamped():
    whole = discrete_step(STEP_TIMES)
    torch.testing.assert_close(whole, torch.arange(1000.0, dtype=torch.float64), atol=1e-7, rtol=0)
    ends = discrete_step(torch.tensor([0.0, 0.005, 0.995, 1.0]))
    assert ends.tolist() == [0, 0, 999, 999]
    t = torch.linspace(0.02, 0.99, 97, dtype=torch.float64)
    for time, tau in zip(t.tolist(), discrete_step(t).tolist(), strict=True):
        assert abar_at(tau) / (1 - abar_at(tau)) == pytest.approx((1 - time) ** 2 / time**2, rel=1e-9)


def test_perfect_noise_prediction_gives_the_exact_velocity(perfect):
    t = torch.cat([torch.linspace(0.01, 0.9936, 120, dtype=torch.float64), STEP_TIMES[[0, 7, 500, 999]]])
    x_t = points(len(t))
    v = perfect(x_t, t, torch.zeros(len(t), dtype=torch.long))
    torch.testing.assert_close(v, exact_velocity(x_t, t), atol=1e-5, rtol=1e-5)


def test_velocity_in_single_precision(perfect):
    t = torch.linspace(0.01, 0.95, 60)
    x_t = points(60, torch.float32)
    v = perfect(x_t, t, torch.zeros(60, dtype=torch.long))
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, exact_velocity(x_t, t), atol=1e-5, rtol=1e-5)


def test_times_without_a_step_have_the_velocity_of_the_nearest_one(perfect):
    t = torch.tensor([0.0, 0.005, 0.997, 1.0], dtype=torch.float64)
    x_t = points(4)
    v = perfect(x_t, t, torch.zeros(4, dtype=torch.long))
    scale = torch.hypot(1 - t, t)[:, None, None, None]
    nearest = clamp_time(t)
    moved = x_t / scale * torch.hypot(1 - nearest, nearest)[:, None, None, None]
    torch.testing.assert_close(v, exact_velocity(moved, nearest), atol=1e-5, rtol=1e-5)
    assert (v - exact_velocity(x_t, t)).abs().max() < 0.15  # the schedule's own ends, 0.01 and 0.006 of t


def test_the_ode_carries_noise_to_the_data(perfect):
    # Along dx = v dt a Gaussian keeps its quantiles: eps goes to MEAN + DEVIATION eps.
    eps = points(8)
    x, times = eps.clone(), torch.linspace(1, 0, 401, dtype=torch.float64)
    for t, after in zip(times[:-1], times[1:], strict=True):
        middle = x + (after - t) / 2 * perfect(x, t.expand(8), torch.zeros(8, dtype=torch.long))
        x = x + (after - t) * perfect(middle, ((t + after) / 2).expand(8), torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(x, MEAN + DEVIATION * eps, atol=0.03, rtol=0.01)


def random_pair() -> tuple[Backbone, sit.Backbone]:
    """A DiT and a SiT of the same weights."""
    shape = {"patch": 2, "channels": 3, "height": 8, "classes": 5, "learn_sigma": True}
    dit, same = Backbone(**shape), sit.Backbone(**shape)
    generator = torch.Generator().manual_seed(1)
    dit.initialize(generator)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    same.load_state_dict(dit.state_dict())
    return dit, same


def test_features_are_the_networks_at_ddpm_s_point_and_step():
    dit, network = (model.double() for model in random_pair())
    generator = torch.Generator().manual_seed(2)
    t, y = STEP_TIMES[[3, 400, 998]], torch.tensor([0, 4, 5])
    x_vp = torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    x_t = x_vp * torch.hypot(1 - t, t)[:, None, None, None]
    steps = torch.tensor([3.0, 400.0, 998.0], dtype=torch.float64)
    expected = network.features(x_vp, steps, y, (0, 5, 12))
    tapped = dit.forward_tapped(x_t, t, y, (0, 5, 12))
    for layer, tokens in dit.features(x_t, t, y, (0, 5, 12)).items():
        torch.testing.assert_close(tokens, expected[layer], atol=1e-6, rtol=1e-6)
        assert torch.equal(tokens, tapped.features[layer])
    eps = network(x_vp, steps, y)
    for row, step in enumerate((3, 400, 998)):
        z = (x_vp[row] - math.sqrt(1 - ABAR[step]) * eps[row]) / math.sqrt(ABAR[step])
        torch.testing.assert_close(tapped.v[row], eps[row] - z, atol=1e-5, rtol=1e-5)


def test_it_runs_in_bfloat16_and_trains():
    dit, _ = random_pair()
    x_t, t, y = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)),
        torch.tensor([0.3, 0.6]),
        torch.tensor([1, 2]),
    )
    exact = dit(x_t, t, y)
    exact.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dit.blocks.parameters())
    half = dit.bfloat16().requires_grad_(False)(x_t.bfloat16(), t, y)
    assert half.dtype == torch.bfloat16 and (half.float() - exact).norm() < 0.05 * exact.norm()


def test_it_is_found_by_name_with_sit_s_options():
    assert plugin_class("backbone", "dit") is Backbone
    assert plugin_options("backbone", "dit").keys() == plugin_options("backbone", "sit").keys()
