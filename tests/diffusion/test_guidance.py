"""Guidance at its ends, by hand, and on some of the channels."""

import math

import pytest
import torch

from workbench.diffusion.guidance import UNGUIDED, Guidance, guide, guide_velocity


def pair(*shape):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng), torch.randn(*shape, generator=rng)


@pytest.mark.parametrize("shape", [(7,), (2, 256, 8), (2, 4, 8, 8)])
def test_scale_0_and_1_are_the_branches_bit_for_bit(shape):
    f_u, f_c = pair(*shape)
    assert torch.equal(guide(f_u, f_c, 0.0), f_u)
    assert torch.equal(guide(f_u, f_c, 1.0), f_c)


def test_equation_by_hand():
    # 1 + 30 (3 - 1) = 61, 2 + 30 (1 - 2) = -28.
    assert guide(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), 30.0).tolist() == [61.0, -28.0]


@pytest.mark.parametrize("scale", [0.3, 1.9, 30.0])
def test_guidance_is_linear_in_the_scale(scale):
    f_u, f_c = (f.double() for f in pair(3, 5))
    torch.testing.assert_close(guide(f_u, f_c, scale), f_u + scale * (f_c - f_u))


def test_three_channels_differ_from_all_only_from_the_fourth_on():
    v_u, v_c = pair(2, 5, 4, 4)
    everything = guide_velocity(v_u, v_c, 4.0, None)
    three = guide_velocity(v_u, v_c, 4.0, 3)
    assert torch.equal(everything, guide(v_u, v_c, 4.0))
    assert torch.equal(three[:, :3], everything[:, :3])
    assert torch.equal(three[:, 3:], v_c[:, 3:])
    assert (three[:, 3:] != everything[:, 3:]).all()


def test_more_channels_than_there_are():
    v_u, v_c = pair(1, 2, 4, 4)
    assert torch.equal(guide_velocity(v_u, v_c, 4.0, 2), guide(v_u, v_c, 4.0))
    with pytest.raises(ValueError, match="3 channels.*has 2"):
        guide_velocity(v_u, v_c, 4.0, 3)


def test_interval_is_closed():
    guidance = Guidance(scale=1.8, low=0.3, high=0.7)
    assert [guidance.active(t) for t in (0.3, 0.5, 0.7)] == [True, True, True]
    outside = (0.0, math.nextafter(0.3, 0), math.nextafter(0.7, 1), 1.0)
    assert not any(guidance.active(t) for t in outside)


def test_only_scale_1_is_never_active():
    assert not any(UNGUIDED.active(t) for t in (0.0, 0.5, 1.0))
    assert all(Guidance(scale=scale).active(t) for scale in (0.0, 0.5, 4.0) for t in (0.0, 0.5, 1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"scale": -1.0},
        {"scale": math.nan},
        {"scale": math.inf},
        {"low": 0.8, "high": 0.7},
        {"low": -0.1},
        {"high": 1.1},
        {"low": math.nan},
        {"channels": 0},
    ],
)
def test_refused_options(options):
    with pytest.raises(ValueError, match="guid"):
        Guidance(**options)
