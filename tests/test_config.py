"""Configuration: layers, types, nearest names, recipes, fingerprints."""

import pytest
import yaml

from workbench.config import coerce, fingerprint, from_dict, load_config, to_yaml


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


def test_yaml_round_trip():
    config = load_config("demo/guided")
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_fingerprint_counts_what_trains_and_nothing_else():
    def mark(*overrides: str) -> str:
        return fingerprint(load_config("demo/guided", overrides), "teacher@3")

    assert mark() == mark("name=other", "training.log_every=3", "sampling.steps=7", "training.keep=5")
    changed = [mark("training.seed=1"), mark("objective.weight=0.3"), mark("data.limit=9"), mark("backbone.size=s")]
    assert len({mark(), *changed}) == 5
    assert mark() != fingerprint(load_config("demo/guided"), "teacher@4")


def test_values_out_of_range():
    for override in ("training.steps=0", "training.accumulation=5", "diffusion.label_dropout=1", "training.ema=1"):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            load_config("demo/plain", [override])
