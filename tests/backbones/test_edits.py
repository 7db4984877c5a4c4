"""Edits of tokens in the walk over the blocks."""

import pytest
import torch

from workbench import plugins
from workbench.config import plugin_class

LAYERS = (0, 5, 12)


@pytest.fixture(params=plugins.names("backbone"))
def model(request):
    """A backbone with random weights, also in the parts that are initialised with zeros."""
    backbone = plugin_class("backbone", request.param)(size="pico", patch=2, channels=4, height=8, classes=3)
    generator = torch.Generator().manual_seed(0)
    backbone.initialize(generator)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return backbone.eval()


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([0.3, 0.8]), torch.tensor([2, 3])


@torch.no_grad()
def test_edits_that_change_nothing_give_the_same_bits(model, points):
    plain = model.forward_tapped(*points, LAYERS)
    edited = model.forward_tapped(*points, LAYERS, edits={layer: lambda f: f.clone() for layer in LAYERS})
    assert torch.equal(edited.v, plain.v) and torch.equal(edited.v, model(*points))
    assert all(torch.equal(edited.features[layer], plain.features[layer]) for layer in LAYERS)


@torch.no_grad()
def test_a_layer_gets_the_tokens_and_the_next_blocks_the_edited_ones(model, points):
    plain, seen = model.forward_tapped(*points, LAYERS), []

    def halve(tokens):
        seen.append(tokens)
        return tokens / 2

    edited = model.forward_tapped(*points, LAYERS, edits={5: halve})
    assert len(seen) == 1 and torch.equal(seen[0], plain.features[5])
    assert torch.equal(edited.features[0], plain.features[0])
    assert torch.equal(edited.features[5], plain.features[5] / 2)
    assert not torch.allclose(edited.features[12], plain.features[12], atol=1e-3)
    # The last layer's tokens decide the velocity, whatever came before.
    again = model.forward_tapped(*points, (), edits={5: halve, 12: lambda f: plain.features[12]})
    assert torch.equal(again.v, plain.v)


@torch.no_grad()
def test_the_last_layer_read_out_is_the_velocity(model, points):
    x_t, t, y = points
    tapped = model.forward_tapped(x_t, t, y, (5, 12))
    torch.testing.assert_close(model.read_out(tapped.features[12], x_t, t, y), tapped.v)
    replaced = model.forward_tapped(x_t, t, y, (), edits={12: lambda f: tapped.features[5]})
    torch.testing.assert_close(model.read_out(tapped.features[5], x_t, t, y), replaced.v)


def test_gradients_flow_through_an_edit(model, points):
    model.forward_tapped(*points, (), edits={4: lambda f: 2 * f}).v.sum().backward()
    assert model.x_embedder.proj.weight.grad.abs().sum() > 0
    assert gradient_of_zeros(model, points, 4) == 0  # and not through tokens that were replaced


def gradient_of_zeros(model, points, layer):
    model.zero_grad()
    model.forward_tapped(*points, (), edits={layer: torch.zeros_like}).v.sum().backward()
    return model.x_embedder.proj.weight.grad.abs().sum() if model.x_embedder.proj.weight.grad is not None else 0


@torch.no_grad()
def test_wrong_edits_are_refused(model, points):
    for layer in (-1, 13):
        with pytest.raises(ValueError, match=rf"layer {layer} is outside 0\.\.12"):
            model.forward_tapped(*points, (), edits={layer: torch.clone})
    for wrong in (lambda f: f[:, 1:], lambda f: f.double()):
        with pytest.raises(ValueError, match=r"^the edit of layer 3 returned .*; the tokens are \(2, 16, 48\) of"):
            model.forward_tapped(*points, (), edits={3: wrong})
