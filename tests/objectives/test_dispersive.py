"""Dispersive Loss: known distances, and the batch of two processes."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from workbench.config import from_dict, load_config, to_dict
from workbench.objectives.base import Context, Inputs
from workbench.objectives.dispersive import Objective, squared_distances

CONTEXT = Context(12, 6, 1, 1, 2, "linear", {})


class Ema:
    """Stands where the average model would; never asked."""

    width, null_label = 6, 5

    def features(self, x_t, t, y, layers):
        raise AssertionError("Dispersive Loss has no teacher")


def batch(f: torch.Tensor) -> Inputs:
    """A batch with feature ``f`` at layer 3."""
    b = len(f)
    image, number, label = torch.zeros(b, 1, 2, 2), torch.zeros(b), torch.zeros(b, dtype=torch.long)
    return Inputs(
        z=image,
        eps=image,
        t=number,
        x_t=image,
        v=image,
        y=label,
        labels=label,
        u=number,
        targets={},
        features={3: f},
        ema=Ema(),
    )


def rows(count: int) -> torch.Tensor:
    """Tokens before the layer, ``count`` samples of four tokens."""
    return torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(7))


def layer() -> nn.Linear:
    """What is trained in the test of two processes."""
    module = nn.Linear(6, 6)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def loss_and_gradient(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    loss = Objective(CONTEXT, gather=True).loss(batch(module(x))).loss
    loss.mean().backward()
    return [loss.detach(), *(parameter.grad for parameter in module.parameters())]


def one_process(rank: int, folder: Path) -> None:
    """The part of one of two processes: half of the batch, under DDP; what came out goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = rows(6)[3 * rank : 3 * rank + 3]
    torch.save(loss_and_gradient(nn.parallel.DistributedDataParallel(layer()), half), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_gather_to_the_whole_batch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(a, env=environment, stderr=subprocess.PIPE, text=True) for a in arguments]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    loss, *gradients = loss_and_gradient(layer(), rows(6))  # nothing to gather here: this is the whole batch
    halves = [Objective(CONTEXT).loss(batch(layer()(half))).loss[0] for half in rows(6).chunk(2)]
    assert all((half - loss[0]).abs() > 1e-3 for half in halves)  # the pairs across the processes do count
    for rank in range(2):
        found, *found_gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, loss[:3])
        for a, b in zip(found_gradients, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


def test_two_samples_by_hand():
    # 24 numbers a sample; 6 of them differ by 2: d = 6 * 4 / 24 = 1.
    f = torch.zeros(2, 4, 6)
    f[1, 0] = 2.0
    for temperature in (0.5, 1.0):
        # Pairs (1,1), (2,2), (1,2), (2,1): the mean of 1, 1, exp(-1/tau), exp(-1/tau).
        expected = math.log((1 + math.exp(-1 / temperature)) / 2)
        found = Objective(CONTEXT, temperature=temperature).loss(batch(f))
        torch.testing.assert_close(found.loss, torch.full((2,), expected))
        torch.testing.assert_close(found.metrics["distance"], torch.tensor(1.0))


def test_equal_rows_give_zero_and_far_ones_the_floor():
    same = rows(1).expand(5, -1, -1)
    torch.testing.assert_close(Objective(CONTEXT).loss(batch(same)).loss, torch.zeros(5), rtol=0, atol=1e-6)
    far = Objective(CONTEXT).loss(batch(1e3 * rows(5))).loss
    torch.testing.assert_close(far, torch.full((5,), math.log(1 / 5)))


def test_both_sides_get_gradient_and_move_apart():
    f = torch.zeros(2, 4, 6)
    f[1, 0] = 2.0
    f.requires_grad_()
    Objective(CONTEXT, temperature=1.0).loss(batch(f)).loss.mean().backward()
    # dL/dd = -e^-1 / (1 + e^-1); dd/df = 2 (f_2 - f_1) / 24, with opposite signs for the two.
    expected = -math.exp(-1) / (1 + math.exp(-1)) * 2 * 2 / 24
    torch.testing.assert_close(f.grad[1, 0], torch.full((6,), expected))
    torch.testing.assert_close(f.grad[0], -f.grad[1])
    assert not f.grad[:, 1:].any()


def test_distances_keep_their_digits_under_a_large_common_part():
    z = rows(5).flatten(1)
    expected = (z.double()[:, None] - z.double()[None]).square().mean(-1).float()
    torch.testing.assert_close(squared_distances(z), expected)
    shifted = z + 1024.0  # rounds z to about 1e-4
    torch.testing.assert_close(squared_distances(shifted), expected, rtol=1e-3, atol=1e-3)
    assert not squared_distances(shifted).diagonal().any()


def test_single_precision_under_autocast():
    f = rows(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Objective(CONTEXT).loss(batch(f)).loss
    assert torch.equal(found, Objective(CONTEXT).loss(batch(f)).loss)


def test_mistakes():
    with pytest.raises(ValueError, match="needs two or more; got 1"):
        Objective(CONTEXT).loss(batch(rows(1)))
    with pytest.raises(ValueError, match="objective.temperature must be above 0; got 0"):
        Objective(CONTEXT, temperature=0.0)
    for number in (0, 13):
        with pytest.raises(ValueError, match=f"objective.layer {number} is outside 1..12"):
            Objective(CONTEXT, layer=number)


def test_recipes_and_round_trip():
    for recipe, expected in (("paper", (3, 0.5, 0.5)), ("released", (12, 1.0, 0.25))):
        config = load_config("demo/plain", ["objective.name=dispersive", f"recipe={recipe}"])
        options = config.objective.options
        assert tuple(options[key] for key in ("layer", "temperature", "weight")) == expected
        assert options["gather"] is False and from_dict(to_dict(config)) == config


def test_nothing_is_trained_beside_the_backbone(inputs):
    objective = Objective(CONTEXT)
    assert not list(objective.parameters()) and objective.taps == (3,)
    loss = objective.loss(replace(inputs, features={3: inputs.features[3]})).loss
    assert torch.equal(loss, loss[:1].expand(6))


def test_training_disperses_until_the_stop(train):
    records = train("objective.name=dispersive", "objective.stop_step=12", "training.steps=14")
    alignment = [record["alignment"] for record in records]
    assert alignment[12:] == [None, None]
    assert alignment[11] < alignment[0] - 0.02 and min(alignment[:12]) >= math.log(1 / 8)
    assert records[11]["distance"] > records[0]["distance"]


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
