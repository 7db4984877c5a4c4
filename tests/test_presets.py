"""Every preset loads and builds at its full size on a device without memory."""

import pytest
import torch

from workbench.config import load_config, plugin_class, presets
from workbench.objectives.base import Context

CHANNELS = {"sd-vae": (4, 8), "va-vae": (32, 16), "kl-f4": (4, 4)}  # and how many pixels a latent is wide


@pytest.mark.parametrize("name", presets())
def test_preset_builds_on_meta(name):
    config = load_config(name)
    channels, factor = CHANNELS[config.codec.name]
    height = (32 if config.data.name == "fashion-mnist" else config.data.size) // factor
    with torch.device("meta"):
        backbone = plugin_class("backbone", config.backbone.name)(
            **config.backbone.options, channels=channels, height=height, classes=1000
        )
        options = config.objective.options
        targets = dict.fromkeys(options.get("encoder", "").split(","), 768)
        context = Context(backbone.depth, backbone.width, backbone.patch, channels, height, "linear", targets, backbone)
        objective = plugin_class("objective", config.objective.name)(context, **options)
    if name.startswith("paper/"):
        assert backbone.tokens == {256: 256, 512: 1024}[config.data.size]
    assert all(layer <= backbone.depth for layer in objective.taps)


@pytest.mark.parametrize("name", presets())
def test_teachers_are_presets_that_keep_the_step_asked_for(name):
    config = load_config(name)
    options = config.objective.options
    if "teacher" not in options:
        return
    teacher = load_config(options["teacher"] if "/" in options["teacher"] else name)
    step = options["teacher_step"] or teacher.training.steps
    assert step <= teacher.training.steps
    assert step == teacher.training.steps or step % teacher.training.milestone_every == 0
    assert teacher.backbone == config.backbone and teacher.codec == config.codec and teacher.data == config.data


def test_laptop_presets_are_those_of_the_paper():
    paper, laptop = (
        {n.partition("/")[2] for n in presets() if n.startswith(f"{scale}/")} for scale in ("paper", "laptop")
    )
    renamed = {
        n.replace("sit-nano-2", "sit-b-2-256").replace("lightningdit-nano-2", "lightningdit-b-1-256") for n in laptop
    }
    extra = {f"lightningdit-b-1-256-{method}" for method in ("repa", "dispersive", "layersync", "sra")}
    assert renamed - paper == extra  # combinations that the paper does not have
    assert {n for n in paper if n.startswith(("table4", "table5"))} <= laptop
    assert {n for n in paper if n.startswith("sit-b-2-256")} <= renamed


def test_paper_recipe_is_the_papers():
    guided, teacher = load_config("paper/sit-b-2-256"), load_config("paper/sit-b-2-256-teacher")
    options = guided.objective.options
    assert (options["guidance_scale"], options["weight"], options["window"]) == (30.0, 0.5, "none")
    assert (options["layer"], options["teacher_layer"]) == (6, 8)
    assert guided.training.batch == 256 and teacher.training.steps == 200_000
    # 20 epochs of 1,281,167 images at batch 256 are 100,091 iterations
    assert options["stop_step"] == 100_000
    assert load_config("paper/sit-xl-2-512").objective.options["stop_step"] == 50_000
    assert teacher.objective.options["target"] == "clean"


def test_released_recipe_differs_where_the_code_does():
    config = load_config("paper/sit-b-2-256", ["recipe=released"])
    assert config.backbone.options["qk_norm"] is True
    assert config.objective.options["window"] == "scale"
    assert config.objective.options["teacher_weights"] == "raw"
    teacher = load_config("paper/sit-b-2-256-teacher", ["recipe=released"])
    assert teacher.objective.options["target"] == "velocity"
    assert teacher.objective.options["head"] == "mlp-norm-linear"
