"""Every preset and every row of a sweep loads and builds at its full size on a device without memory."""

from functools import cache

import pytest
import torch

from workbench import config as configuration
from workbench.config import plugin_class, presets, to_dict
from workbench.objectives.base import Context
from workbench.reporting.sweep.specification import load_sweep
from workbench.shipped import shipped

load_config = cache(configuration.load_config)
CHANNELS = {
    "sd-vae": (4, 8),
    "va-vae": (32, 16),
    "kl-f4": (4, 4),
    "kl-f4-scenes-64": (4, 4),
}  # and how many pixels a latent is wide
SWEEPS = {file.stem: load_sweep(file) for file in sorted(shipped("reports/sweeps").glob("*.yaml"))}
# Those that change something in a preset; "SWEEP/ROW".
ROWS = [f"{name}/{row.name}" for name, sweep in SWEEPS.items() for row in sweep.rows if row.overrides]


@cache
def config_of(name: str):
    """The configuration of a preset, or of a row of a sweep as it is scored."""
    sweep, _, row = name.partition("/")
    if sweep not in SWEEPS or name in presets():
        return load_config(name)
    one = next(one for one in SWEEPS[sweep].rows if one.name == row)
    return load_config(one.base, (*one.overrides, *SWEEPS[sweep].evaluate.overrides))


def scale_of(name: str) -> str:
    return name.partition("/")[0].partition("-")[0]


@pytest.mark.parametrize("name", [*presets(), *ROWS])
def test_preset_builds_on_meta(name):
    config = config_of(name)
    channels, factor = CHANNELS[config.vae.name]
    height = (32 if config.data.name == "fashion-mnist" else config.data.size) // factor
    with torch.device("meta"):
        backbone = plugin_class("backbone", config.backbone.name)(
            **config.backbone.options, channels=channels, height=height, classes=1000
        )
        options = config.objective.options
        targets = dict.fromkeys(options.get("encoder", "").split(","), 768)
        context = Context(backbone.depth, backbone.width, backbone.patch, channels, height, "linear", targets, backbone)
        objective = plugin_class("objective", config.objective.name)(context, **options)
    if scale_of(name) == "paper":
        assert backbone.tokens == {256: 256, 512: 1024}[config.data.size]
    assert all(layer <= backbone.depth for layer in objective.taps)


@pytest.mark.parametrize("name", [*presets(), *(row for row in ROWS if not row.startswith("laptop-released/"))])
def test_teachers_are_presets_that_keep_the_step_asked_for(name):
    config = config_of(name)
    options = config.objective.options
    if "teacher" not in options:
        return
    teacher = load_config(options["teacher"])
    assert teacher.objective.name != config.objective.name and teacher.diffusion == config.diffusion
    step = teacher.training.steps if options["teacher_step"] is None else options["teacher_step"]
    assert 0 < step <= teacher.training.steps
    assert step == teacher.training.steps or step % teacher.training.milestone_every == 0
    assert teacher.backbone == config.backbone and teacher.vae == config.vae and teacher.data == config.data


def test_laptop_presets_are_those_of_the_paper():
    paper, laptop = (
        {n.partition("/")[2] for n in presets() if n.startswith(f"{scale}/")} for scale in ("paper", "laptop")
    )
    renamed = {
        n.replace("sit-nano-2", "sit-b-2-256").replace("lightningdit-nano-2", "lightningdit-b-1-256") for n in laptop
    }
    extra = {f"lightningdit-b-1-256-{method}" for method in ("repa", "dispersive", "layersync", "sra")}
    assert renamed - paper == extra  # combinations that the paper does not have
    assert {n for n in paper if n.startswith("sit-b-2-256")} <= renamed


def test_laptop_ablations_are_those_of_the_paper():
    paper, laptop = ({r.name: r for r in SWEEPS[f"{scale}-ablations"].rows} for scale in ("paper", "laptop"))
    assert {n for n in paper if n.startswith("table")} == {n for n in laptop if n.startswith("table")}
    for name in (n for n in paper if n.startswith("table")):
        changed = [text.replace("paper/", "laptop/") for text in paper[name].overrides]
        changed = [text.replace("sit-b-2-256", "sit-nano-2") for text in changed]
        # A teacher's step is a thousandth.
        changed = [text.removesuffix("000") if "teacher_step" in text else text for text in changed]
        assert tuple(changed) == laptop[name].overrides


# What the runs of one recipe have in common, and what a method changes about it.
SIT = {
    "training.learning_rate": 1e-4,
    "training.beta1": 0.9,
    "training.beta2": 0.999,
    "training.weight_decay": 0.0,
    "training.clip": 1.0,
    "training.batch": 256,
    "training.precision": "fp16",
    "training.ema": 0.9999,
    "training.warmup_steps": 0,
    "diffusion.path": "linear",
    "diffusion.time": "uniform",
    "diffusion.label_dropout": 0.1,
    "diffusion.cosine_weight": 0.0,
    "data.flip": False,
    "data.crop": "adm",
    "vae.name": "sd-vae",
    "sampling.sampler": "euler-maruyama",
    "sampling.steps": 250,
    "sampling.last_step": 0.04,
    "sampling.shift": 1.0,
}
LIGHTNINGDIT = {
    **SIT,
    "training.learning_rate": 2e-4,
    "training.beta2": 0.95,
    "training.clip": None,
    "training.batch": 1024,
    "training.precision": "bf16",
    "diffusion.time": "lognormal",
    "diffusion.cosine_weight": 1.0,
    "data.flip": True,
    "vae.name": "va-vae",
    "sampling.sampler": "euler",
    "sampling.steps": 249,
    "sampling.shift": 0.3,
}
LAPTOP = {
    "backbone.size": "nano",
    "backbone.patch": 2,
    "training.batch": 32,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 50,
    "training.beta2": 0.95,
    "training.clip": 1.0,
    "training.ema": 0.99,
    "training.precision": "no",
    "data.name": "fashion-mnist",
    "data.flip": False,
    "vae.name": "kl-f4",
    "sampling.sampler": "euler",
    "sampling.steps": 16,
    "sampling.count": 300,
}
METHODS = {
    "dispersive": {"training.beta2": 0.95},
    "layersync": {"training.clip": None, "training.precision": "no", "data.flip": True},
}
# Scale, lowest and highest time and channels of guidance; the others are scored without.
GUIDED = {
    "paper-guided/table2-sit-xl-2-plain": (1.5, 0.0, 1.0, 3),
    "paper-guided/table2-sit-xl-2-dispersive": (1.5, 0.0, 1.0, 3),
    "paper-guided/table2-sit-xl-2-layersync": (1.8, 0.0, 0.7, None),
    "paper-guided/table2-sit-xl-2-repa": (1.8, 0.0, 0.7, None),
    "paper-guided/table2-sit-xl-2-sra": (1.8, 0.0, 0.7, None),
    "paper-guided/table2-sit-xl-2-guided": (1.9, 0.0, 0.65, None),
    "paper-guided/table2-lightningdit-xl-1-plain": (6.7, 0.0, 0.875, 3),
    "paper-guided/table2-lightningdit-xl-1-guided": (6.7, 0.0, 0.875, 3),
    "paper-guided/table3-sit-xl-2-plain": (1.5, 0.0, 1.0, 3),
    "paper-guided/table3-sit-xl-2-repa": (1.8, 0.0, 0.7, None),
    "paper-guided/table3-sit-xl-2-guided": (1.9, 0.0, 0.65, None),
}


@pytest.mark.parametrize(
    "name",
    [name for name in [*presets(), *ROWS] if scale_of(name) in ("laptop", "paper") and "released" not in name],
)
def test_every_run_has_the_values_of_its_recipe(name):
    config = config_of(name)
    tree = to_dict(config)
    if scale_of(name) == "laptop":
        expected = LAPTOP
        lightning = config.backbone.name == "lightningdit"
        times = ("lognormal", 1.0) if lightning else ("uniform", 0.0)
        assert (config.diffusion.time, config.diffusion.cosine_weight) == times
    elif config.backbone.name == "lightningdit":
        expected = LIGHTNINGDIT
    else:
        expected = SIT | METHODS.get(config.objective.name, {})
    found = {key: tree[key.split(".")[0]][key.split(".")[1]] for key in expected}
    assert found == expected
    s = config.sampling
    guidance = (s.guidance_scale, s.guidance_low, s.guidance_high, s.guidance_channels)
    own = 3 if config.backbone.name == "lightningdit" else None
    assert guidance == GUIDED.get(name, (1.0, 0.0, 1.0, own))
    ablation = name.startswith("paper-ablations/")
    assert s.count == (300 if scale_of(name) == "laptop" else 10_000 if ablation else 50_000)


def test_rows_that_need_no_training_of_their_own():
    for scale, base in (("paper", "sit-b-2-256"), ("laptop", "sit-nano-2")):
        found = {row.name: row for row in SWEEPS[f"{scale}-ablations"].rows}
        for row, run in (("plain", f"{base}-plain"), ("vae", f"{base}-vae"), ("guided", base)):
            assert (found[f"table4-{row}"].base, found[f"table4-{row}"].overrides) == (f"{scale}/{run}", ())


def test_repa_stops_where_the_guided_run_does():
    for scale, base in (("paper", "sit-b-2-256"), ("laptop", "sit-nano-2")):
        stop = {"paper": "paper-ablations/fig8-repa-stop", "laptop": "laptop-ablations/fig8-repa-100"}[scale]
        stopped, guided, repa = map(config_of, (stop, f"{scale}/{base}", f"{scale}/{base}-repa"))
        assert stopped.objective.options["stop_step"] == guided.objective.options["stop_step"]
        assert {**stopped.objective.options, "stop_step": None} == repa.objective.options
        assert stopped.training == repa.training


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("laptop/")])
def test_laptop_runs_are_short_and_stop_as_early_as_the_papers(name):
    config = load_config(name)
    kind = "lightningdit" if config.backbone.name == "lightningdit" else "sit"
    shorter = {"sit": 1000, "lightningdit": 200}[kind]
    paper = {"lightningdit-nano-2": "lightningdit-b-1-256", "sit-nano-2": "sit-b-2-256"}
    twin = name.replace("laptop/", "paper/")
    for nano, full in paper.items():
        twin = twin.replace(nano, full)
    if twin not in presets() or config.objective.name in ("denoise", "vae_align"):
        return  # a combination of ours, or a baseline that the paper trains on
    full = load_config(twin)
    assert config.training.steps == full.training.steps / shorter == 400
    stops = [c.objective.options["stop_step"] for c in (config, full)]
    assert stops == [None, None] or stops[0] == round(stops[1] / shorter)


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
    config = load_config("paper/sit-b-2-256", ("recipe=released",))
    assert config.backbone.options["qk_norm"] is True
    assert config.objective.options["window"] == "scale"
    assert config.objective.options["teacher_weights"] == "raw"
    teacher = load_config("paper/sit-b-2-256-teacher", ("recipe=released",))
    assert teacher.objective.options["target"] == "velocity"
    assert teacher.objective.options["head"] == "mlp-norm-linear"
