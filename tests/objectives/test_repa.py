"""REPA: the cosine with the tokens of outside encoders."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from workbench.config import from_dict, load_config, to_dict
from workbench.objectives.repa import Objective


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the cosine along the channels, from its definition, in double precision."""
    a, b = a.double(), b.double()
    along = (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return along.mean(1).float()


def test_equal_directions_give_minus_one_and_opposite_ones_one(context, inputs):
    objective = Objective(context, encoder="first")
    objective.heads["first"] = nn.Identity()
    f = inputs.features[4]
    for factor, expected in ((1.0, -1.0), (3.0, -1.0), (-0.5, 1.0)):
        loss = objective.loss(replace(inputs, targets={"first": factor * f})).loss
        torch.testing.assert_close(loss, torch.full((6,), expected))


def test_loss_is_minus_the_mean_cosine_of_all_encoders(context, inputs):
    objective = Objective(context, encoder="first, second", head_width=8)
    f = inputs.features[4]
    first, second = (cosine(objective.heads[name](f), inputs.targets[name]) for name in ("first", "second"))
    found = objective.loss(inputs)
    torch.testing.assert_close(found.loss, -(first + second) / 2)
    torch.testing.assert_close(found.metrics["cosine"], ((first + second) / 2).mean())
    assert not found.metrics["cosine"].requires_grad
    alone = Objective(context, encoder="second", head_width=8)
    alone.heads["second"] = objective.heads["second"]
    torch.testing.assert_close(alone.loss(inputs).loss, -second)


def test_each_encoder_has_a_head_of_its_width(context):
    objective = Objective(context, encoder="first,second", head_width=8)
    assert objective.heads["first"][-1].out_features == 7 and objective.heads["second"][-1].out_features == 5
    assert objective.taps == (4,)


def test_gradient_reaches_heads_and_layer(context, inputs):
    objective = Objective(context, encoder="first,second", head_width=8)
    f = inputs.features[4].clone().requires_grad_()
    objective.loss(replace(inputs, features={4: f})).loss.mean().backward()
    assert f.grad.any() and all(parameter.grad.any() for parameter in objective.parameters())


def test_large_features_are_normalised_in_single_precision(context, inputs):
    objective = Objective(context, encoder="first")
    objective.heads["first"] = nn.Identity()
    f = (1e4 * inputs.features[4]).clamp(-6e4, 6e4).half()  # squares beyond half precision's 65504
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective.loss(replace(inputs, features={4: f}, targets={"first": f.float()})).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((6,), -1.0))


def test_mistakes(context, inputs):
    with pytest.raises(ValueError, match=r"objective.encoder 'fist' is not known; did you mean 'first'"):
        Objective(context, encoder="second,fist")
    for layer in (0, 13):
        with pytest.raises(ValueError, match=f"objective.layer {layer} is outside 1..12"):
            Objective(context, encoder="first", layer=layer)
    fewer = replace(inputs, targets={})
    fewer.targets["first"] = inputs.targets["first"][:, :4]
    with pytest.raises(ValueError, match="'first' gives 4 tokens per image, the student has 16"):
        Objective(context, encoder="first").loss(fewer)


def test_recipes_and_round_trip():
    for recipe in ("paper", "released"):
        config = load_config("demo/plain", ["objective.name=repa", f"recipe={recipe}"])
        options = config.objective.options
        assert (options["encoder"], options["layer"], options["weight"]) == ("dinov2-b", 4, 0.5)
        assert options["stop_step"] is None and config.backbone.options["qk_norm"] is False
        assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("stored", ["true", "false"])
def test_training_follows_the_encoder_until_the_stop(train, stored):
    options = ("objective.name=repa", "objective.head_width=32", f"objective.stored={stored}")
    records = train(*options, "objective.stop_step=15", "training.steps=17")
    alignment = [record["alignment"] for record in records]
    assert alignment[15:] == [None, None] and "cosine" not in records[15]
    assert records[3]["cosine"] == pytest.approx(-alignment[3])
    assert alignment[14] < alignment[0] - 0.2
