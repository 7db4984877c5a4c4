"""Objectives: windows, targets, teachers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from workbench.config import plugin_class
from workbench.objectives.base import Context, windowed


def build(name: str, loaded=None, **options):
    objective = plugin_class("objective", name)(
        Context(12, 128, 1, 2, 4, "linear", {}, loaded), head_width=8, **options
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return objective


CASES = [("vae_align", {}), ("self_transcendence", {"teacher": "t", "guidance_scale": 3.0})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_selecting_equals_computing_all_and_masking(name, options, inputs, teacher):
    whole, chosen = (build(name, teacher, window=window, **options) for window in ("none", "select"))
    mask = torch.tensor([0.0, 1, 1, 1, 0, 0])  # 0.4 and 0.7 belong to the window
    masked, selected = whole.loss(inputs).loss * mask, chosen.loss(inputs).loss
    torch.testing.assert_close(selected, masked)
    masked.mean().backward()
    selected.mean().backward()
    for a, b in zip(whole.parameters(), chosen.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_scaling_is_the_released_broadcast(inputs):
    per_sample = torch.arange(6.0)
    mask = ((inputs.t >= 0.4) & (inputs.t <= 0.7)).float()
    released = (mask.reshape(6, 1, 1, 1) * per_sample).mean()  # (b,1,1,1) against (b,)
    ours = windowed(lambda part: per_sample, inputs, "scale", 0.4, 0.7).mean()
    torch.testing.assert_close(ours, released)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_empty_window_has_zero_loss_and_gradients(name, options, inputs, teacher, monkeypatch):
    def refuse(*_):
        raise AssertionError("kernels of GPUs may refuse an empty batch")

    monkeypatch.setattr(teacher, "features", refuse)
    objective = build(name, teacher, window="select", window_low=0.2, window_high=0.3, **options)
    loss = objective.loss(inputs).loss
    assert loss.tolist() == [0.0] * 6
    loss.mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_teacher_sees_the_selected_samples_only(inputs, teacher, monkeypatch):
    rows = []
    features = teacher.features
    monkeypatch.setattr(teacher, "features", lambda x, *rest: rows.append(len(x)) or features(x, *rest))
    build("self_transcendence", teacher, teacher="t", window="select").loss(inputs)
    assert rows == [6]  # three samples, two label branches


def test_target_is_the_guided_feature(inputs, teacher):
    f_c = teacher.features(inputs.x_t, inputs.t, inputs.labels, (8,))[8]
    f_u = teacher.features(inputs.x_t, inputs.t, torch.full((6,), 5), (8,))[8]
    target, difference = build("self_transcendence", teacher, teacher="t", guidance_scale=7.0).target(inputs)
    torch.testing.assert_close(target, f_u + 7 * (f_c - f_u), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(difference, (f_c - f_u).norm(dim=-1).mean(), rtol=1e-3, atol=1e-3)
    one, _ = build("self_transcendence", teacher, teacher="t", guidance_scale=1.0).target(inputs)
    torch.testing.assert_close(one, f_c, rtol=1e-4, atol=1e-4)
    normal, _ = build("self_transcendence", teacher, teacher="t", guidance_scale=7.0, normalize=True).target(inputs)
    torch.testing.assert_close(normal, F.layer_norm(target, (128,)))
    dropped, _ = build("self_transcendence", teacher, teacher="t", teacher_labels="student").target(inputs)
    torch.testing.assert_close(dropped[2], f_u[2], rtol=1e-3, atol=1e-3)  # its label was dropped: f_c is f_u


def test_teacher_stays_outside_the_module_tree(teacher):
    objective = build("self_transcendence", teacher, teacher="t")
    assert {name.split(".")[0] for name in objective.state_dict()} == {"head"}
    assert [m for m in objective.modules() if m is teacher] == []


def test_vae_targets_and_heads(inputs):
    from workbench.diffusion.tokens import patchify

    for head in ("mlp", "mlp-norm-linear"):
        for target, latent in (("clean", inputs.z), ("velocity", inputs.v)):
            objective = build("vae_align", target=target, head=head)
            expected = (objective.head(inputs.features[2]) - patchify(latent, 1)).square().mean(dim=(1, 2))
            torch.testing.assert_close(objective.loss(inputs).loss, expected)


def test_mistakes(teacher):
    with pytest.raises(ValueError, match="pass the frozen teacher in context.teacher"):
        build("self_transcendence", None, teacher="t")
    with pytest.raises(ValueError, match=r"teacher_layer 13 is outside 1..12.*layer 6 aligned with layer 8"):
        build("self_transcendence", teacher, teacher="t", teacher_layer=13)
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        build("vae_align", window_low=0.7, window_high=0.4)


def test_weight_stops():
    objective = build("vae_align", weight=0.3, stop_step=5)
    assert [objective.weight_at(step) for step in (0, 4, 5, 6)] == [0.3, 0.3, 0.0, 0.0]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_scaled_mean_is_the_product_of_the_means(name, options, inputs, teacher):
    whole, scaled = (build(name, teacher, window=window, **options) for window in ("none", "scale"))
    expected = 0.5 * whole.loss(inputs).loss.mean()  # three of six samples are inside
    torch.testing.assert_close(scaled.loss(inputs).loss.mean(), expected)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_selecting_gives_the_student_the_masked_gradient(name, options, inputs, teacher):
    grads = []
    for window in ("none", "select"):
        objective = build(name, teacher, window=window, **options)
        f = inputs.features[objective.layer].clone().requires_grad_()
        loss = objective.loss(replace(inputs, features={objective.layer: f})).loss
        mask = torch.tensor([0.0, 1, 1, 1, 0, 0]) if window == "none" else torch.ones(6)
        (grad,) = torch.autograd.grad((loss * mask).mean(), f)
        grads.append(grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)
    assert [bool(row.any()) for row in grads[1]] == [False, True, True, True, False, False]


def test_normalised_targets_have_zero_mean_and_unit_variance(inputs, teacher):
    target, _ = build("self_transcendence", teacher, teacher="t", normalize=True).target(inputs)
    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(6, 16), rtol=0, atol=1e-4)
    torch.testing.assert_close(target.var(dim=-1, unbiased=False), torch.ones(6, 16), rtol=1e-3, atol=1e-3)


def test_teacher_gets_no_gradient_and_the_head_does(inputs, backbone):
    free = backbone(1)
    objective = build("self_transcendence", free, teacher="t")
    assert all(parameter.requires_grad for name, parameter in free.named_parameters() if name != "pos_embed")
    objective.loss(inputs).loss.mean().backward()
    assert all(parameter.grad is None for parameter in free.parameters())
    assert all(parameter.grad.any() for parameter in objective.parameters())
    assert {id(p) for p in objective.parameters()} == {id(p) for p in objective.head.parameters()}


def test_whole_batch_costs_the_teacher_both_branches(inputs, teacher, monkeypatch):
    rows = []
    features = teacher.features
    monkeypatch.setattr(teacher, "features", lambda x, *rest: rows.append(len(x)) or features(x, *rest))
    build("self_transcendence", teacher, teacher="t", window="scale").loss(inputs)
    build("vae_align", teacher).loss(inputs)
    assert rows == [12]


@pytest.mark.parametrize(("head", "linears"), [("mlp", 3), ("mlp-norm-linear", 4)])
def test_heads_give_a_patch_for_each_token(head, linears):
    context = Context(12, 128, 2, 3, 4, "linear", {})
    objective = plugin_class("objective", "vae_align")(context, head=head, head_width=8)
    assert objective.head(torch.randn(5, 4, 128)).shape == (5, 4, 12)  # 2 x 2 pixels of 3 channels
    assert sum(isinstance(m, torch.nn.Linear) for m in objective.head.modules()) == linears
    assert all(parameter.requires_grad for parameter in objective.parameters())


@pytest.mark.parametrize("layer", [0, 13])
def test_layers_outside_the_depth(layer, teacher):
    for name, options in CASES:
        with pytest.raises(ValueError, match=f"objective.layer {layer} is outside 1..12"):
            build(name, teacher, layer=layer, **options)


def test_plain_training_has_nothing_to_align():
    objective = plugin_class("objective", "denoise")(Context(12, 128, 1, 2, 4, "linear", {}))
    assert objective.taps == () and objective.weight_at(0) == 0 and not list(objective.parameters())
