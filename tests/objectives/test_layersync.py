"""LayerSync: pairs of layers, and which side learns."""

from dataclasses import replace

import pytest
import torch
import yaml

from workbench.config import fingerprint, from_dict, load_config, to_yaml
from workbench.objectives.layersync import Objective


def test_equal_directions_give_minus_one(context, inputs):
    f = inputs.features[4]
    for factor, expected in ((1.0, -1.0), (5.0, -1.0), (-2.0, 1.0)):
        loss = Objective(context).loss(replace(inputs, features={4: f, 8: factor * f})).loss
        torch.testing.assert_close(loss, torch.full((6,), expected))


def test_loss_is_minus_the_cosine_along_the_channels(context, inputs):
    a, b = inputs.features[4].double(), inputs.features[8].double()
    cosine = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    found = Objective(context).loss(inputs)
    torch.testing.assert_close(found.loss, -cosine.mean(1).float())
    torch.testing.assert_close(found.metrics["cosine"], cosine.mean().float())


def test_pairs_add_up(context, inputs):
    one, other = (Objective(context, pairs=(pair,)).loss(inputs) for pair in ((2, 5), (4, 8)))
    both = Objective(context, pairs=((2, 5), (4, 8)))
    found = both.loss(inputs)
    torch.testing.assert_close(found.loss, one.loss + other.loss)
    torch.testing.assert_close(found.metrics["cosine"], (one.metrics["cosine"] + other.metrics["cosine"]) / 2)
    assert both.taps == (2, 4, 5, 8) and not list(both.parameters())
    assert Objective(context, pairs=((2, 5), (5, 8))).taps == (2, 5, 8)


def test_the_last_pair_counts_as_released(context, inputs):
    pairs = ((2, 5), (4, 8))
    last, alone = Objective(context, pairs=pairs, counted="last"), Objective(context, pairs=pairs[-1:])
    assert torch.equal(last.loss(inputs).loss, alone.loss(inputs).loss)
    assert last.loss(inputs).metrics == alone.loss(inputs).metrics and last.taps == (4, 8)
    with pytest.raises(ValueError, match="objective.pairs 13 is outside"):  # the others are checked all the same
        Objective(context, pairs=((2, 13), (4, 8)), counted="last")


def test_only_the_shallow_side_gets_gradient(context, inputs):
    f = {layer: value.clone().requires_grad_() for layer, value in inputs.features.items()}
    Objective(context, pairs=((2, 5), (4, 8))).loss(replace(inputs, features=f)).loss.mean().backward()
    assert {layer for layer, value in f.items() if value.grad is not None} == {2, 4}
    assert all(f[layer].grad.any() for layer in (2, 4))


def test_large_features_are_compared_in_single_precision(context, inputs):
    f = (1e4 * inputs.features[4]).clamp(-6e4, 6e4).half()  # squares beyond half precision's 65504
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Objective(context).loss(replace(inputs, features={4: f, 8: f})).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((6,), -1.0))


def test_mistakes(context):
    for pair in ((8, 8), (8, 4)):
        with pytest.raises(
            ValueError, match=rf"objective.pairs \[8, {pair[1]}\] must be a shallow layer, then a deeper"
        ):
            Objective(context, pairs=((2, 5), pair))
    for pair, layer in (((0, 4), 0), ((4, 13), 13)):
        with pytest.raises(ValueError, match=f"objective.pairs {layer} is outside 1..12"):
            Objective(context, pairs=(pair,))
    with pytest.raises(ValueError, match="objective.pairs is empty"):
        Objective(context, pairs=())


def test_pairs_survive_the_file():
    config = load_config("demo/plain", ["objective.name=layersync", "objective.pairs=[[2,5],[4,8]]"])
    assert config.objective.options["pairs"] == ((2, 5), (4, 8))
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    with pytest.raises(ValueError, match="objective.pairs must be a list of 2"):
        load_config("demo/plain", ["objective.name=layersync", "objective.pairs=[[2,5,8]]"])


def test_recipes():
    for recipe, counted in (("paper", "all"), ("released", "last")):
        config = load_config("demo/plain", ["objective.name=layersync", f"recipe={recipe}"])
        expected = {"pairs": ((4, 8),), "counted": counted, "weight": 0.2, "stop_step": None}
        assert config.objective.options == expected
    two = ["objective.name=layersync", "recipe=released", "objective.pairs=[[2,5],[4,8]]"]
    assert load_config("demo/plain", two).objective.options["counted"] == "last"


def test_the_fingerprint_counts_which_pairs_do():
    def mark(*options):
        return fingerprint(load_config("demo/plain", ["objective.name=layersync", *options]))

    several, last = "objective.pairs=[[2,5],[4,8]]", "objective.counted=last"
    assert mark(several) != mark(several, last)
    assert mark() == mark(last) and mark(several) == mark(several, "objective.counted=all")


def test_training_synchronises_until_the_stop(train):
    options = ("objective.name=layersync", "objective.stop_step=40", "training.steps=42")
    held, free = ([r["alignment"] for r in train(*options, f"objective.weight={w}")] for w in (1.0, 1e-6))
    assert held[40:] == [None, None] == free[40:]
    assert held[0] == pytest.approx(-1.0)  # a new model's blocks pass their tokens on
    # Layers drift apart by themselves; the loss halves the drift at least.
    assert 1 + sum(held[30:40]) / 10 < (1 + sum(free[30:40]) / 10) / 2
