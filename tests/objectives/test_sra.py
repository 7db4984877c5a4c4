"""SRA: the teacher's time, labels and precision; the two losses; the decay."""

from dataclasses import replace

import pytest
import torch

from workbench.config import from_dict, load_config, to_dict
from workbench.objectives.sra import Objective


class Recorder:
    """An average model that keeps what it was asked and answers with ``answer``."""

    width, null_label = 128, 5

    def __init__(self, answer: torch.Tensor):
        self.answer = answer

    def features(self, x_t, t, y, layers):
        self.asked = (x_t, t, y, layers)
        self.grad, self.autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        return {layers[0]: self.answer}


@pytest.fixture
def recorder(inputs):
    return Recorder(inputs.features[5])


def test_teacher_sees_an_earlier_time(context, inputs, recorder):
    u = torch.tensor([0.0, 1.0, 0.5, 0.25, 1.0, 0.0])
    Objective(context).target(replace(inputs, u=u, ema=recorder))
    t = recorder.asked[1]
    # t = 0.1 .4 .5 .7 .71 .9 less 0.2 u
    torch.testing.assert_close(t, torch.tensor([0.1, 0.2, 0.4, 0.65, 0.51, 0.9]))
    Objective(context, offset=0.6).target(replace(inputs, u=torch.ones(6), ema=recorder))
    torch.testing.assert_close(recorder.asked[1], torch.tensor([0.0, 0.0, 0.0, 0.1, 0.11, 0.3]))
    Objective(context).target(replace(inputs, ema=recorder))
    assert (recorder.asked[1] <= inputs.t).all() and (recorder.asked[1] >= inputs.t - 0.2).all()


def test_teacher_sees_the_same_image_and_noise(context, inputs, recorder):
    Objective(context).target(replace(inputs, u=torch.zeros(6), ema=recorder))
    x_t, t, y, layers = recorder.asked
    torch.testing.assert_close(x_t, inputs.x_t)
    torch.testing.assert_close(t, inputs.t)
    assert torch.equal(y, inputs.y) and not torch.equal(y, inputs.labels) and layers == (8,)
    later = Objective(context)
    later.target(replace(inputs, u=torch.ones(6), ema=recorder))
    earlier = recorder.asked[1].reshape(6, 1, 1, 1)
    torch.testing.assert_close(recorder.asked[0], (1 - earlier) * inputs.z + earlier * inputs.eps)


def test_path_is_the_students(context, inputs, recorder):
    Objective(replace(context, path="cosine")).target(replace(inputs, u=torch.zeros(6), ema=recorder))
    angle = torch.pi / 2 * inputs.t.reshape(6, 1, 1, 1)
    torch.testing.assert_close(recorder.asked[0], angle.cos() * inputs.z + angle.sin() * inputs.eps)


def test_teacher_runs_in_single_precision_without_gradient(context, inputs, recorder):
    objective = Objective(context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective.loss(replace(inputs, ema=recorder))
        target = objective.target(inputs)
    assert recorder.grad is False and recorder.autocast is False
    assert found.loss.dtype == torch.float32
    assert torch.equal(target, objective.target(inputs))


def test_only_the_head_and_the_student_get_gradient(context, inputs, backbone):
    average = backbone(4)
    objective = Objective(context)
    f = inputs.features[3].clone().requires_grad_()
    objective.loss(replace(inputs, ema=average, features={3: f})).loss.mean().backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    assert f.grad.any() and all(parameter.grad.any() for parameter in objective.parameters())
    assert [tuple(p.shape) for p in objective.parameters()] == [(256, 128), (256,), (128, 256), (128,)]


def test_teacher_stops_at_its_layer(context, inputs, backbone):
    average = backbone(4)
    expected = Objective(context).target(replace(inputs, ema=average))
    for block in average.blocks[8:]:
        block.forward = None
    torch.testing.assert_close(Objective(context).target(replace(inputs, ema=average)), expected)


def test_smooth_l1_by_hand(context, inputs, recorder):
    objective = Objective(context)
    predicted = objective.head(inputs.features[3]).detach()
    # Below beta e^2 / (2 beta), above it |e| - beta / 2: e = 0.03 gives 0.009, e = -0.4 gives 0.375.
    error = torch.full_like(predicted, 0.03)
    error[:, :4] = -0.4  # a quarter of the tokens
    recorder.answer = predicted - error
    found = objective.loss(replace(inputs, ema=recorder)).loss
    torch.testing.assert_close(found, torch.full((6,), 0.75 * 0.009 + 0.25 * 0.375), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("axis", "dim"), [("channels", 2), ("tokens", 1)])
def test_cosine_along_either_axis(context, inputs, recorder, axis, dim):
    objective = Objective(context, loss="cosine", axis=axis)
    a, f = objective.head(inputs.features[3]).double(), recorder.answer.double()
    cosine = (a * f).sum(dim) / (a.square().sum(dim) * f.square().sum(dim)).sqrt()
    found = objective.loss(replace(inputs, ema=recorder)).loss
    torch.testing.assert_close(found, (1 - cosine).mean(1).float())


def test_cosine_axes_differ_where_they_should(context, inputs, recorder):
    # Each token of the target is the prediction times its own factor: every token agrees in direction, channels do not.
    recorder.answer = Objective(context).head(inputs.features[3]).detach()
    channels, tokens = (Objective(context, loss="cosine", axis=axis) for axis in ("channels", "tokens"))
    tokens.head = channels.head
    answer = channels.head(inputs.features[3]).detach() * torch.linspace(0.1, 3, 16).reshape(1, 16, 1)
    seen = replace(inputs, ema=Recorder(answer))
    torch.testing.assert_close(channels.loss(seen).loss, torch.zeros(6), rtol=0, atol=1e-5)
    assert (tokens.loss(seen).loss > 0.01).all()
    torch.testing.assert_close(channels.loss(seen).metrics["cosine"], torch.tensor(1.0))


def test_decay_by_hand(context):
    objective = Objective(context, weight=0.2, decay_start=10, decay_length=4)
    weights = [objective.weight_at(step) for step in (0, 10, 12, 14, 18)]
    assert weights == pytest.approx([0.2, 0.2, 0.2 / 10**0.5, 0.02, 0.002])
    assert Objective(context).weight_at(10**9) == 0.2
    stopped = Objective(context, weight=0.2, decay_start=10, decay_length=4, stop_step=14)
    assert [stopped.weight_at(step) for step in (9, 12, 14)] == pytest.approx([0.2, 0.2 / 10**0.5, 0.0])


def test_decay_of_the_paper_is_that_of_its_epochs(context):
    options = dict(load_config("demo/plain", ["objective.name=sra", "recipe=paper"]).objective.options)
    objective = Objective(context, **options)
    for epoch, expected in ((0, 0.2), (149, 0.2), (150, 0.2 * 0.1**0.001), (649, 0.2 * 0.1**0.5), (1149, 0.02)):
        assert objective.weight_at(epoch * 5004) == pytest.approx(expected)


def test_recipes_and_round_trip():
    released = load_config("demo/plain", ["objective.name=sra", "recipe=released"])
    options = released.objective.options
    assert (options["loss"], options["axis"], options["weight"], options["decay_start"]) == (
        "cosine",
        "tokens",
        0.5,
        None,
    )
    paper = load_config("demo/plain", ["objective.name=sra", "recipe=paper"])
    options = paper.objective.options
    assert (options["loss"], options["beta"], options["weight"]) == ("smooth-l1", 0.05, 0.2)
    assert (options["layer"], options["teacher_layer"], options["decay_start"]) == (3, 8, 745_596)
    for config in (paper, released):
        assert from_dict(to_dict(config)) == config


def test_mistakes(context):
    for option in ("layer", "teacher_layer"):
        for number in (0, 13):
            with pytest.raises(ValueError, match=f"objective.{option} {number} is outside 1..12"):
                Objective(context, **{option: number})
    with pytest.raises(ValueError, match=r"objective.offset must be in \[0, 1\]; got 1.5"):
        Objective(context, offset=1.5)
    for options in ({"beta": 0.0}, {"decay_length": 0}):
        with pytest.raises(ValueError, match="objective.beta must be above 0 and objective.decay_length at least 1"):
            Objective(context, **options)


@pytest.mark.parametrize("loss", ["smooth-l1", "cosine"])
def test_training_follows_the_average_until_the_stop(train, loss):
    records = train("objective.name=sra", f"objective.loss={loss}", "objective.stop_step=15", "training.steps=17")
    alignment = [record["alignment"] for record in records]
    assert alignment[15:] == [None, None]
    assert alignment[14] < 0.8 * alignment[0]
    assert records[14]["cosine"] > records[0]["cosine"] and records[0]["norm_target"] > 0
