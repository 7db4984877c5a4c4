"""Configuration: layers, types, nearest names, recipes, fingerprints."""

import pytest
import yaml

from workbench.config import coerce, fingerprint, from_dict, load_config, presets, to_yaml
from workbench.reporting.sweep.rows import resolve


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.learning_rat=1", "learning_rate"),
        ("trainin.steps=1", "training"),
        ("backbone.siz=b", "size"),
        ("objective.layr=3", "layer"),
        ("objective.name=vae_aligned", "vae_align"),
    ],
)
def test_mistyped_names_the_nearest(override, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        load_config("demo/teacher", [override])


def test_types():
    assert coerce("x", "1e-4", float) == 1e-4 and isinstance(coerce("x", 3, float), float)
    for value, hint in ((True, int), ("3", int), (1.5, int), (True, float), (None, int)):
        with pytest.raises(ValueError, match="x must be"):
            coerce("x", value, hint)
    assert coerce("x", None, int | None) is None


def test_another_objective_starts_afresh():
    config = load_config("demo/guided", ["objective.name=vae_align"])
    assert "teacher" not in config.objective.options and config.objective.options["layer"] == 2


def test_recipe_fills_and_explicit_values_win():
    config = load_config("demo/teacher", ["recipe=released", "objective.layer=4"])
    assert config.objective.options["target"] == "velocity"
    assert config.objective.options["layer"] == 4
    assert config.backbone.options["qk_norm"] is True


@pytest.mark.parametrize("preset", presets())
def test_yaml_round_trip(preset):
    config = load_config(preset)
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_fingerprint_counts_what_trains_and_nothing_else():
    def mark(*overrides: str) -> str:
        return fingerprint(load_config("demo/guided", overrides), "teacher@3")

    assert mark() == mark("name=other", "training.log_every=3", "sampling.steps=7", "training.keep=5")
    changed = [mark("training.seed=1"), mark("objective.weight=0.3"), mark("data.limit=9"), mark("backbone.size=s")]
    assert len({mark(), *changed}) == 5
    assert mark() != fingerprint(load_config("demo/guided"), "teacher@4")


def test_values_out_of_range():
    for override in (
        "training.steps=0",
        "training.keep=0",
        "training.accumulation=5",
        "data.limit=0",
        "diffusion.label_dropout=1",
        "training.ema=1",
        "training.beta2=1",
        "training.learning_rate=-1",
        "training.clip=0",
        "training.milestone_every=0",
        "sampling.count=0",
    ):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            load_config("demo/plain", [override])


def test_mistyped_preset_and_choice():
    with pytest.raises(ValueError, match="preset 'demo/guidde' is not known; did you mean 'demo/guided'"):
        load_config("demo/guidde")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        load_config("demo/plain", ["diffusion.path=cosin"])
    with pytest.raises(ValueError, match=r"option 'zzzz' is not known\. Allowed: name"):
        load_config("demo/plain", ["zzzz.q=1"])


def test_types_of_overrides():
    training = load_config("demo/plain", ["training.learning_rate=1e-4", "training.clip=2"]).training
    assert (training.learning_rate, training.clip) == (1e-4, 2.0) and isinstance(training.clip, float)
    assert load_config("demo/plain", ["training.clip=null"]).training.clip is None
    for override in ("training.steps=true", "training.steps=1.5", "training.clip=high", "training.compile=1"):
        with pytest.raises(ValueError, match=f"{override.split('=')[0]} must be"):
            load_config("demo/plain", [override])


def test_a_bare_no_is_the_word():
    assert load_config("demo/plain", ["training.precision=no"]).training.precision == "no"
    with pytest.raises(ValueError, match="objective.window False"):
        load_config("demo/teacher", ["objective.window=no"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.steps"], "an override looks like"),
        (["training.steps=[1"], "the value of training.steps is not valid YAML"),
        (["objective=x", "objective.layer=3"], "objective must be a section"),
        (["objective="], "objective must be a section"),
    ],
)
def test_malformed_overrides(overrides, said):
    with pytest.raises(ValueError, match=said):
        load_config("demo/teacher", overrides)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="there is no configuration file .*mine.yaml"):
        load_config(file)
    for content, said in (("a: [", "mine.yaml is not valid YAML"), ("- 1", "mine.yaml must hold a mapping")):
        file.write_text(content)
        with pytest.raises(ValueError, match=said):
            load_config(file)


def test_the_same_objective_named_again_keeps_its_options():
    config = load_config("demo/guided", ["objective.name=self_transcendence"])
    assert config == load_config("demo/guided")


def test_recipes_of_lower_layers(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo/teacher\nrecipe: released\nobjective: {layer: 3}\n")
    config = load_config(file, ["backbone.qk_norm=false"])
    assert (config.objective.options["layer"], config.objective.options["window"]) == (3, "scale")
    assert config.backbone.options["qk_norm"] is False
    assert load_config(file, ["objective.name=denoise"]).backbone.options["qk_norm"] is True
    paper = load_config(file, ["recipe=paper"]).objective.options
    assert (paper["layer"], paper["window"], paper["target"]) == (3, "none", "clean")  # a layer is no switch


def test_batch_is_divided_by_accumulation():
    config = load_config("demo/plain", ["training.batch=30", "training.accumulation=5"])
    assert config.training.accumulation == 5
    with pytest.raises(ValueError, match="training.batch 32 is not divisible by training.accumulation 5"):
        load_config("demo/plain", ["training.accumulation=5"])


def test_lists_become_tuples_of_the_right_length():
    pairs = tuple[tuple[int, int], ...]
    assert coerce("pairs", [[8, 16], [4, 8]], pairs) == ((8, 16), (4, 8))
    for value, problem in (("8-16", "must be a list"), ([[8]], "a list of 2"), ([[8, "x"]], "must be int")):
        with pytest.raises(ValueError, match=problem):
            coerce("pairs", value, pairs)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("repa", {"layer": 8}),
        ("dispersive", {"layer": 7}),
        ("layersync", {"pairs": ((8, 16),)}),
        ("sra", {"layer": 8, "teacher_layer": 20, "decay_start": 149 * 5004}),
        ("vae_align", {"layer": 2, "weight": 0.5}),
    ],
)
def test_one_word_changes_the_method_with_what_is_published_for_the_size(method, expected):
    options = load_config("paper/sit-xl-2-256", [f"objective.name={method}"]).objective.options
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize("name", presets())
def test_naming_the_recipe_in_force_changes_nothing(name):
    config = load_config(name)
    if config.recipe:
        assert load_config(name, [f"recipe={config.recipe}"]) == config


def test_a_student_hands_its_recipe_on_without_undoing_what_its_teacher_says(tmp_path):
    teacher = resolve("laptop/table5/by-repa", root=tmp_path).teacher
    assert teacher.config == load_config("laptop/sit-nano-2-repa")


def test_a_recipe_changes_its_switches_and_leaves_the_placement():
    paper = load_config("paper/sit-xl-2-256").objective.options
    released = load_config("paper/sit-xl-2-256", ["recipe=released"]).objective.options
    changed = {key for key in paper if paper[key] != released[key]}
    assert changed == {"window", "teacher_weights", "teacher_precision"}
    assert load_config("paper/table5/weight-0.1", ["recipe=released"]).objective.options["weight"] == 0.1
    again = load_config("paper/sit-xl-2-256", ["objective.name=self_transcendence"])
    assert again.objective.options == paper


def test_lightningdit_has_its_own_scale_and_stop():
    options = load_config("paper/lightningdit-xl-1-256").objective.options
    assert (options["guidance_scale"], options["stop_step"], options["layer"]) == (10.0, 12_510, 14)


def test_nothing_published_for_a_depth_is_said():
    with pytest.raises(ValueError, match="sit of depth 24: state objective.layer, objective.teacher_layer"):
        load_config("paper/sit-l-2-256", ["objective.name=sra"])
    given = ["objective.name=sra", "objective.layer=6", "objective.teacher_layer=16"]
    assert load_config("paper/sit-l-2-256", given).objective.options["layer"] == 6
