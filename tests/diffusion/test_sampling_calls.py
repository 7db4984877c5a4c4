"""What a sampler asks of the network: which rows, at which times, in which dtype; and what it refuses."""

import pytest
import torch

from workbench.diffusion.guidance import Guidance
from workbench.diffusion.randomness import normal
from workbench.diffusion.sampling import SAMPLERS, NotFinite, evaluations, sample
from workbench.diffusion.schedules import time_grid

SHAPE = (2, 4, 4)


class Counting:
    """v = y + x for class y: depends on the label, and records each call as (t, labels)."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, y):
        assert len(x) == len(t) == len(y)
        assert len(set(t.tolist())) == 1
        self.calls.append((t[0].item(), y.tolist()))
        return x + y.reshape(-1, 1, 1, 1)


def start(count, dtype=torch.float64):
    return normal(0, "noise", range(count), SHAPE).to(dtype), torch.zeros(count, dtype=torch.int64)


def noise_of_step(count):
    return lambda step: normal(0, f"step-{step}", range(count), SHAPE)


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler-maruyama"])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    def run(indices):
        return sample(
            Counting(),
            normal(0, "noise", indices, SHAPE),
            torch.tensor([i % 3 for i in indices]),
            null_label=9,
            sampler=sampler,
            steps=6,
            guidance=Guidance(scale=2.0, high=0.7),
            step_noise=lambda step: normal(0, f"step-{step}", indices, SHAPE),
        )

    assert torch.equal(run([0, 1, 2, 3])[1:3], run([1, 2]))


def test_null_branch_runs_only_inside_the_closed_interval():
    # Steps start at 1, .9, ..., .1; the interval [.3, .7] holds five of them, both ends included.
    velocity = Counting()
    noise, _ = start(2)
    sample(
        velocity,
        noise,
        torch.tensor([3, 4]),
        null_label=9,
        steps=10,
        guidance=Guidance(scale=2.0, low=0.3, high=0.7),
    )
    doubled = {0.7, 0.6, 0.5, 0.4, 0.3}
    expected = [(i / 10, [3, 4, 9, 9] if i / 10 in doubled else [3, 4]) for i in range(10, 0, -1)]
    assert velocity.calls == expected


def test_scale_1_never_runs_the_null_branch():
    velocity = Counting()
    noise, _ = start(2)
    sample(velocity, noise, torch.tensor([3, 4]), null_label=9, steps=5, guidance=Guidance(scale=1.0))
    assert [labels for _, labels in velocity.calls] == [[3, 4]] * 5


def test_guided_step_by_hand():
    # One step from 1 to 0 with v = x + y, class 3, null 9, scale 2: v_g = x + 9 + 2 (3 - 9) = x - 3, end = 3.
    # Guiding one channel of two leaves the other at x - (x + 3) = -3.
    noise = torch.full((1, 2, 1, 1), 5.0)
    options = {"null_label": 9, "steps": 1}
    end = sample(Counting(), noise, torch.tensor([3]), guidance=Guidance(scale=2.0), **options)
    assert end.flatten().tolist() == [3, 3]
    end = sample(Counting(), noise, torch.tensor([3]), guidance=Guidance(scale=2.0, channels=1), **options)
    assert end.flatten().tolist() == [3, -3]


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler-maruyama"])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("shift", [1.0, 0.3])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.0), Guidance(scale=2.0, low=0.2, high=0.65)])
def test_evaluations_are_the_rows_that_run(sampler, steps, guidance, shift):
    velocity = Counting()
    noise, labels = start(2)
    sample(
        velocity,
        noise,
        labels,
        null_label=9,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        shift=shift,
        step_noise=noise_of_step(2),
    )
    rows = sum(len(labels) for _, labels in velocity.calls)
    assert rows == 2 * evaluations(sampler, steps, guidance, shift=shift)


def test_evaluations_by_hand():
    # Ten steps start at 1 ... .1: seven of them at or below .7. Heun doubles all but the last, which is
    # guided.
    guidance = Guidance(scale=2.0, high=0.7)
    assert evaluations("euler", 10, guidance) == 3 + 7 * 2
    assert evaluations("heun", 10, guidance) == 3 * 2 + 6 * 4 + 2
    assert evaluations("euler-maruyama", 250, Guidance()) == 250


@pytest.mark.parametrize(("sampler", "last_step"), [("euler", None), ("euler-maruyama", 0.04)])
def test_a_shifted_sampler_steps_from_the_shifted_times(sampler, last_step):
    velocity = Counting()
    noise, labels = start(1)
    sample(velocity, noise, labels, null_label=9, sampler=sampler, steps=6, shift=0.3, step_noise=noise_of_step(1))
    assert [t for t, _ in velocity.calls] == time_grid(6, last_step, 0.3).tolist()[:-1]


@pytest.mark.parametrize("begin", [0.1, 0.11, 0.125])
def test_guidance_from_a_start_time_is_an_upper_bound_here(begin):
    # LightningDiT leaves the step at u unguided while u < begin, on its axis and at its shifted times.
    times = [1 - 0.3 * u / (1 - 0.7 * u) for u in (i / 249 for i in range(249))]
    guided = sum(1 - t >= begin for t in times)
    assert 0 < guided < 249
    assert evaluations("euler", 249, Guidance(scale=6.7, high=1 - begin, channels=3), shift=0.3) == 249 + guided


def test_both_evaluations_of_a_heun_step_are_guided_alike():
    # Steps 1 -> 1/2 and 1/2 -> 0 with guidance up to 1/2: the corrector at 1/2 belongs to the unguided step.
    velocity = Counting()
    noise, labels = start(1)
    guidance = Guidance(scale=2.0, high=0.5)
    sample(velocity, noise, labels, null_label=9, sampler="heun", steps=2, guidance=guidance)
    assert velocity.calls == [(1.0, [0]), (0.5, [0]), (0.5, [0, 9])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_network_sees_the_dtype_of_the_noise_and_no_gradient(dtype):
    weight = torch.ones((), dtype=dtype, requires_grad=True)
    seen = set()

    def velocity(x, t, y):
        seen.add((x.dtype, t.dtype, torch.is_grad_enabled()))
        return weight * x

    noise, labels = start(2, dtype)
    end = sample(velocity, noise, labels, null_label=1, steps=3)
    assert seen == {(dtype, dtype, False)}
    assert end.dtype == dtype
    assert not end.requires_grad


def test_progress_counts_steps():
    seen = []
    noise, labels = start(1)
    sample(Counting(), noise, labels, null_label=1, steps=3, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_refused_calls():
    noise, labels = start(1)
    with pytest.raises(ValueError, match="'dopri5'.*euler, heun, euler-maruyama"):
        sample(Counting(), noise, labels, null_label=1, sampler="dopri5")
    with pytest.raises(ValueError, match="'dopri5'"):
        evaluations("dopri5", 10, Guidance())
    with pytest.raises(ValueError, match="step_noise"):
        sample(Counting(), noise, labels, null_label=1, sampler="euler-maruyama")
    with pytest.raises(ValueError, match="steps"):
        sample(Counting(), noise, labels, null_label=1, steps=0)


def test_step_noise_of_one_row_is_not_spread_over_the_batch():
    noise, labels = start(2)
    with pytest.raises(AssertionError, match="step_noise"):
        sample(
            Counting(),
            noise,
            labels,
            null_label=1,
            sampler="euler-maruyama",
            step_noise=lambda step: normal(0, "step", [0], SHAPE),
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_row_and_step_that_are_not_finite_are_named(sampler, value):
    """The network breaks row 2 at its second step, row 1 at its third."""
    times = []

    def velocity(x, t, y):
        times.append(float(t[0]))
        step = len(set(times))
        v = torch.zeros_like(x)
        v[2 if step == 2 else 1] = value if step > 1 else 0.0
        return v

    noise = torch.zeros(4, 1, 2, 2)
    options = {"null_label": 5, "steps": 4, "sampler": sampler, "step_noise": lambda i: torch.zeros_like(noise)}
    with pytest.raises(NotFinite, match="row . of the samples is not finite after step . of 4") as caught:
        sample(velocity, noise, torch.zeros(4, dtype=torch.long), **options)
    # Heun looks ahead: its corrector of step 1 is the network's second time.
    assert (caught.value.row, caught.value.step) == ((2, 1) if sampler == "heun" else (2, 2))
