"""Every preset loads; the paper's build at full size on a device without memory."""

import pytest
import torch

from workbench.config import load_config, plugin_class, presets

PAPER = [name for name in presets() if name.startswith("paper/")]


@pytest.mark.parametrize("name", presets())
def test_preset_loads(name):
    assert load_config(name).name


@pytest.mark.parametrize("name", PAPER)
def test_paper_preset_builds_on_meta(name):
    config = load_config(name)
    with torch.device("meta"):
        backbone = plugin_class("backbone", config.backbone.name)(
            **config.backbone.options, channels=4, height=config.data.size // 8, classes=1000
        )
    assert backbone.tokens == {256: 256, 512: 1024}[config.data.size]
    for option in ("layer", "teacher_layer"):
        assert config.objective.options.get(option, 1) <= backbone.depth


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
