"""Configuration: layers, types, nearest names, recipes, fingerprints."""

import math
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from workbench import plugins
from workbench.config import (
    Config,
    as_overrides,
    coerce,
    fingerprint,
    from_dict,
    load_config,
    plugin_options,
    presets,
    read_yaml,
    reading,
    record_options,
    to_dict,
    to_yaml,
    written,
)
from workbench.config.checks import PLUGIN_TEXT, PLUGINS
from workbench.config.ranges import OfDepth, Range
from workbench.reporting.demo import demo_configs
from workbench.reporting.sweep.specification import resolve

BASE = "base: demo/plain\n"


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
    with pytest.raises(ValueError, match="objective.window 'no' is not known"):
        load_config("demo/teacher", ["objective.window=no"])
    assert from_dict({"training": {"precision": False}}).training.precision == "no"  # as YAML 1.1 reads it


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.steps"], "an override looks like"),
        (["training.steps=[1"], "the value of training.steps is not valid YAML"),
        (["objective=x", "objective.layer=3"], "objective must be a section"),
        (["objective=5"], "objective must be a section"),
        (["objective="], "the value of objective is empty; write null for none"),
        (["data.path= "], "the value of data.path is empty"),
        (["=5"], "an override looks like"),
        (["training.seed=\udcff"], "the value of training.seed is not valid YAML: .* UTF-8"),
        (["training.seed={a: 1, a: 2}"], "duplicate key 'a'"),
        (["objective.pairs=!!python/name:os.system"], "the tag .* is not supported"),
    ],
)
def test_malformed_overrides(overrides, said):
    with pytest.raises(ValueError, match=said):
        load_config("demo/teacher", overrides)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="there is no configuration file .*mine.yaml"):
        load_config(file)
    for content, said in (("a: [", "mine.yaml, line 2: not valid YAML"), ("- 1", "mine.yaml must hold a mapping")):
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
    by_repa = ["objective.teacher=laptop/sit-nano-2-repa", "objective.teacher_step=200"]
    teacher = resolve("laptop/sit-nano-2", by_repa, root=tmp_path).teacher
    assert teacher.config == load_config("laptop/sit-nano-2-repa")


def test_a_recipe_changes_its_switches_and_leaves_the_placement():
    paper = load_config("paper/sit-xl-2-256").objective.options
    released = load_config("paper/sit-xl-2-256", ["recipe=released"]).objective.options
    changed = {key for key in paper if paper[key] != released[key]}
    assert changed == {"window", "teacher_weights", "teacher_precision"}
    own = load_config("paper/sit-b-2-256", ["objective.weight=0.1", "recipe=released"])
    assert own.objective.options["weight"] == 0.1
    again = load_config("paper/sit-xl-2-256", ["objective.name=self_transcendence"])
    assert again.objective.options == paper


def test_lightningdit_has_its_own_scale_and_stop():
    options = load_config("paper/lightningdit-xl-1-256").objective.options
    assert (options["guidance_scale"], options["stop_step"], options["layer"]) == (10.0, 12_510, 14)


def test_nothing_published_for_a_depth_is_said():
    with pytest.raises(ValueError, match="sit of depth 24: set objective.layer, objective.teacher_layer"):
        load_config("paper/sit-l-2-256", ["objective.name=sra"])
    given = ["objective.name=sra", "objective.layer=6", "objective.teacher_layer=16"]
    assert load_config("paper/sit-l-2-256", given).objective.options["layer"] == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training:\n  batch: 8\ntraining:\n  steps: 20\n", "line 4: duplicate key 'training', first in line 2"),
        ("training: {steps: 1, steps: 2}", "line 2: duplicate key 'steps'"),
        ("objective: {name: repa, x: [{a: 1, a: 1}]}", "line 2: duplicate key 'a'"),
        ("training:\n  seed: 1:30", "line 3: training.seed must be int; got '1:30'; allowed: at least 0 and"),
        ("training: {seed: 0x1F}", "line 2: training.seed must be int; got '0x1F'"),
        ("training: {batch: 1_000}", "line 2: training.batch must be int; got '1_000'"),
        ("training:\n\n  clip: .nan", "line 4: training.clip must be a finite number .*; got .nan; allowed: above"),
        ("training: {clip: inf}", "line 2: training.clip must be float; got 'inf'; allowed: above 0"),
        ("training: {clip: 1e400}", "line 2: training.clip must be a finite number .*; got 1e400"),
        ("training: {stepz: 1}", "line 2: option training.stepz: 'stepz' is not known; did you mean 'steps'"),
        ("trainin: {steps: 1}", "line 2: option 'trainin' is not known; did you mean 'training'"),
        ("training:", "line 2: training must be a section \\(a mapping\\); got None"),
        ("objective: [1]", "line 2: objective must be a section"),
        ("objective:\n  name: repa\n  head_width: 0", "line 4: objective.head_width must be at least 1 and at most"),
        ("objective:\n  name: repa\n  layer: 99", r"line 4: objective.layer 99 is outside 1\.\.12"),
        ("objective: {name: layersync, pairs: [[4, 13]]}", r"line 2: objective.pairs 13 is outside 1\.\.12"),
        ("objective: {name: vae_align, window_low: 0.9}", "line 2: objective.window_low 0.9 must be below .*_high 0.7"),
        ("backbone: {size: huge}", "line 2: backbone.size 'huge' is not known. Allowed: pico, nano"),
        ("name: ''", "line 2: name is empty"),
        ('name: "a\\nb"', "line 2: name contains a control character"),
        ("data: {path: null, limit: [1]}", "line 2: data.limit must be int; got"),
        ("5: 1", "line 2: the key '5' is not a string"),
        ("null: 1", "line 2: the key 'null' is not a string"),
        ("? [a]\n: 1", "line 2: a key must be a string"),
        ("a: &a [*a]", r"line 2: the alias \*a .* its anchor is not defined before it"),
        ("a: !!set {b}", "line 2: the tag .* is not supported"),
        ("---\na: 1", "line 2: a second document starts"),
        ("a: " + "[" * 40 + "]" * 40, "line 2: it is nested more than 32 levels deep"),
        ("a: " + "[" * 5000, "it is nested more than 32 levels deep"),
        ("a: " + "{b: " * 3000, "it is nested more than 32 levels deep"),
        ("#" * reading.MAX_BYTES, "is larger than 1,000,000 bytes"),
        ("name: a\x00b", "not valid YAML: control characters"),
        ("training: {seed: " + "9" * 5000 + "}", "training.seed must be int; got"),
    ],
)  # fmt: skip
def test_what_a_file_says_wrongly_is_refused_with_its_line(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(BASE + text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?s)^{file}.*{said}") as raised:
        load_config(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_aliases_are_counted_as_often_as_they_are_used(tmp_path):
    file = tmp_path / "laughs.yaml"
    lines = ["a0: &a0 [" + ", ".join("1" * 10) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 5: it has more than 100,000 values, aliases included"):
        read_yaml(file)
    file.write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\ne: [*a, *a]\nf: {<<: [{b: 5, g: 6}, *a]}")
    a = {"b": 1, "c": 2}
    assert read_yaml(file).value == {"a": a, "d": {"b": 1, "c": 3}, "e": [a, a], "f": {"b": 5, "g": 6, "c": 2}}


def test_the_reader_without_libyaml_reads_the_same(monkeypatch):
    text = "a: [010, 1e-3, -.5, yes, 'q', ~]\nb: {c: 2024-01-01, d: |\n  x\n}"
    text = "a: [010, 1e-3, -.5, yes, 'q', ~]\nb:\n  c: 2024-01-01\n  d: |\n    x\n"
    expected = {"a": [10, 0.001, -0.5, "yes", "q", None], "b": {"c": "2024-01-01", "d": "x\n"}}
    assert reading.parse_yaml(text, "x").value == expected
    monkeypatch.setattr(reading, "_LOADER", yaml.SafeLoader)
    assert reading.parse_yaml(text, "x").value == expected
    for text, said in (
        ("a: [", "line 1: not valid"),
        ("a: 1\na: 2", "line 2: duplicate key"),
        ("[" * 999, "nested more"),
    ):
        with pytest.raises(ValueError, match=said):
            reading.parse_yaml(text, "x")


@pytest.mark.parametrize("content", ["", "null", "~", "# nothing", "---", "{}", "base: []", "5", "text", "[]"])
def test_a_file_that_says_nothing_does_not_start_a_training(tmp_path, content):
    file = tmp_path / "empty.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match="empty.yaml (must hold a mapping of sections; it holds|is empty)"):
        load_config(file)


def test_bases_are_texts_and_go_round_in_no_circle(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for base in ("5", "", "null", "[[1]]", "{a: b}", "['']", "true"):
        one.write_text(f"name: x\nbase: {base}")
        with pytest.raises(
            ValueError, match="one.yaml, line 2: base must be a preset or a file, or a list of them; got"
        ):
            load_config(one)
    one.write_text(f"base: {one}")
    with pytest.raises(ValueError, match=f"^base files form a cycle: {one} -> {one}$"):
        load_config(one)
    one.write_text(f"base: [demo/plain, {two}]")
    two.write_text(f"base: {one}")
    with pytest.raises(ValueError, match=f"base files form a cycle: {one} -> {two} -> {one}"):
        load_config(one)
    two.write_text("base: demo/plian")
    with pytest.raises(
        ValueError, match="two.yaml, line 1: preset 'demo/plian' is not known; did you mean 'demo/plain'"
    ):
        load_config(one)
    two.unlink()
    with pytest.raises(ValueError, match=f"no configuration file {two}, a base of {one}"):
        load_config(one)
    files = [tmp_path / f"{n}.yaml" for n in range(8)]
    for file, below in zip(files, files[1:], strict=False):
        file.write_text(f"base: [{below}, {below}]")
    files[-1].write_text(BASE)
    with pytest.raises(ValueError, match="has more than 100 base files"):
        load_config(files[0])


def test_yaml_is_utf8_whatever_the_locale(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + f"{BASE}name: größe\n".encode())
    code = f"from workbench.config import load_config; print(ascii(load_config({str(file)!r}).name))"
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **plain}, capture_output=True, text=True)
    assert found.stdout.strip() == r"'gr\xf6\xdfe'", found.stderr
    for content, line in ((f"{BASE}name: größe".encode("latin-1"), 2), ("a: 1".encode("utf-16"), 1)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"mine.yaml, line {line}: it is not valid UTF-8"):
            load_config(file)


def test_what_is_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name, said in (("pipe", "is not a regular file"), ("folder", "is a folder"), ("x" * 300, "File name too long")):
        with pytest.raises(ValueError, match=f"yaml .*{said}|yaml {said}"):
            load_config(tmp_path / f"{name}.yaml")


def test_numbers_are_what_they_look_like():
    for text, value in (("010", 10), ("08", 8), ("+5", 5), ("0", 0)):
        assert load_config("demo/plain", [f"training.seed={text}"]).training.seed == value
    for text, value in (("1e-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("1E2", 100.0), ("'1e-4'", 1e-4), ("2", 2.0)):
        assert load_config("demo/plain", [f"training.learning_rate={text}"]).training.learning_rate == value
    for text in ("0x10", "0o10", "0b1", "1_0", "1:30", "1e2", "1.0", "'3'", "٣", "true", "[1]"):
        with pytest.raises(ValueError, match=r"training.seed must be int; got .*; allowed: at least 0"):
            load_config("demo/plain", [f"training.seed={text}"])
    for word, value in (("yes", True), ("On", True), ("TRUE", True), ("no", False), ("off", False), ("false", False)):
        assert load_config("demo/plain", [f"data.flip={word}"]).data.flip is value


def test_what_can_only_be_text_is_text(tmp_path):
    texts = ("2024", "010", "1.10", "1e5", "true", "null", "~", "no", "2024-01-01", "a: b", "[x", "#1", "@home", ".nan")
    for text in texts:
        assert load_config("demo/plain", [f"name={text}"]).name == text
    for text in texts:
        if text not in ("null", "~"):
            assert load_config("demo/plain", [f"data.path={text}"]).data.path == (
                os.path.abspath(text) if text == "[x" else text
            )
    assert load_config("demo/plain", ["data.path=null"]).data.path is None
    assert load_config("demo/plain", ['name="a b"', "data.path='/x'"]).data.path == "/x"
    assert load_config("demo/guided", ["objective.teacher=2024"]).objective.options["teacher"] == "2024"
    file = tmp_path / "mine.yaml"
    file.write_text(f"{BASE}name: 2024.10\ndata: {{path: 010}}")
    config = load_config(file)
    assert (config.name, config.data.path) == ("2024.10", "010")
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    options = {
        (section, key)
        for section in PLUGINS
        for name in plugins.names(section)
        for key, option in plugin_options(section, name).items()
        if option.annotation in (str, str | None)
    }
    assert {key for _, key in options} <= set(PLUGIN_TEXT)


def test_a_value_written_out_is_read_back():
    for value in ("a: b", "1e5", "😀", None, True, 2, 0.1, [[4, 8]], "2024"):
        assert reading.parse_value(written(value), "x") == value
    assert written(reading.parse_value("1.10", "x")) == "1.10"


def test_one_override_may_be_text():
    # papermill hands `-p overrides training.steps=20` over as one text.
    assert load_config("demo/plain", "training.steps=20").training.steps == 20
    assert as_overrides("a=1") == ("a=1",) and as_overrides(["a=1", "b=2"]) == ("a=1", "b=2")
    assert {config.training.steps for config in demo_configs(0, "training.steps=20").values()} == {20}
    assert resolve("demo/plain", "training.steps=20", "training.batch=8").config.training.steps == 20


def numeric_options() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every option of every record and plug-in with its type, and what else a configuration with it needs."""
    for section, hint in record_options(Config).items():
        if is_dataclass(hint):
            yield from ((f"{section}.{key}", kind, {}) for key, kind in record_options(hint).items())
    for section in PLUGINS:
        for name in plugins.names(section):
            options = plugin_options(section, name)
            needed = {"teacher": "x"} if "teacher" in options else {}
            for key, option in options.items():
                yield f"{section}.{key}", option.annotation, {section: {"name": name, **needed}}


def numbers_in(hint: Any, marks: tuple = ()) -> list[tuple[type, tuple]]:
    """The kinds of number that an annotation allows, each with what is said of it."""
    if typing.get_origin(hint) is Annotated:
        return numbers_in(hint.__origin__, (*marks, *hint.__metadata__))
    if hint in (int, float):
        return [(hint, marks)]
    kinds = [kind for kind in typing.get_args(hint) if kind is not Ellipsis]
    return [
        number for kind in kinds if typing.get_origin(hint) is not typing.Literal for number in numbers_in(kind, marks)
    ]


def wrong_numbers(kind: type, limits: Range | OfDepth) -> list[Any]:
    """Values outside, the first of them as near as can be."""
    wrong = [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, False, "text", "nan", "1_0", "", [1], {"a": 1}]
    if isinstance(limits, OfDepth):
        return [0, 13, -1, 1.5, *wrong]
    one = 1 if kind is int else None

    def beyond(end: float, to: float) -> float:
        return end + int(math.copysign(1, to)) if one else math.nextafter(end, to)

    ends = [(limits.at_least, -math.inf), (limits.at_most, math.inf)]
    wrong += [beyond(end, to) for end, to in ends if end is not None]
    wrong += [end for end in (limits.above, limits.below) if end is not None]
    return [*wrong, *([1.5] if kind is int else [])]


def test_every_number_has_a_range_that_is_kept():
    seen = 0
    for option, hint, needed in numeric_options():
        for kind, marks in numbers_in(hint):
            limits = next((mark for mark in marks if isinstance(mark, Range | OfDepth)), None)
            assert limits is not None, f"{option} has no range"
            if kind is int and isinstance(limits, Range):
                assert limits.at_least is not None and limits.at_most is not None, f"{option} has no upper or lower end"
            section, _, key = option.partition(".")
            for value in wrong_numbers(kind, limits):
                given = [[1, value]] if key == "pairs" else value
                tree = {**needed, section: {**needed.get(section, {}), key: given}}
                with pytest.raises(ValueError) as raised:
                    from_dict(tree)
                said = str(raised.value)
                assert said.startswith(f"{option} ") and "\n" not in said and len(said) < 400, said
                plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
                assert not plain or f"{value}"[:9] in said or f"{float(value)}" in said, said
                if isinstance(limits, Range):
                    assert str(limits) in said, said
                seen += 1
    assert seen > 600


def test_ends_of_ranges_are_allowed_or_not_as_they_say():
    limits = Range(at_least=0, below=1)
    assert 0 in limits and 0.999 in limits and 1 not in limits and -1e-9 not in limits and math.nan not in limits
    assert (
        str(limits) == "at least 0 and below 1"
        and str(Range(above=0, at_most=10**6)) == "above 0 and at most 1,000,000"
    )
    assert 0 not in Range(above=0) and 10**400 in Range(above=0)


def test_records_made_by_hand_are_checked_too():
    config = load_config("demo/plain")
    with pytest.raises(ValueError, match="training.clip must be a finite number"):
        replace(config, training=replace(config.training, clip=math.nan))
    with pytest.raises(ValueError, match="guidance_low 0.9 must be at most sampling.guidance_high 0.5"):
        load_config("demo/plain", ["sampling.guidance_low=0.9", "sampling.guidance_high=0.5"])
    with pytest.raises(ValueError, match="name is longer than 240 bytes"):
        load_config("demo/plain", [f"name={'x' * 300}"])


def test_messages_stay_short():
    with pytest.raises(ValueError) as raised:
        load_config("demo/plain", [f"training.seed={'[' * 20}{'1, ' * 3000}{']' * 20}"])
    assert len(str(raised.value)) < 400
    with pytest.raises(ValueError, match=r"preset 'nothing-like-it' is not known. `workbench presets` lists them$"):
        load_config("nothing-like-it")


def test_a_row_of_a_sweep_that_is_named_as_a_preset_is_answered_with_its_command():
    for name in ("laptop/table5/scale-60", "laptop/table5-scale-60"):
        with pytest.raises(ValueError, match="laptop-ablations.yaml --only table5-scale-60`$"):
            load_config(name)
    with pytest.raises(ValueError, match="did you mean"):
        load_config("laptop/table5/teacher-")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**18),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["010", "1:30", ".nan", "-.inf", "0x1F", "no", "<<", "*a", "&a 1", "!!set", "~", "demo/plain", "x.yaml"]
    ),
)
OPTIONS = sorted({"name", "base", "recipe", *(key for option, _, _ in numeric_options() for key in option.split("."))})
KEYS = st.one_of(st.sampled_from(OPTIONS), st.text(max_size=8))
TREES = st.recursive(
    SCALARS,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(KEYS, below, max_size=4)),
    max_leaves=12,
)
SECTIONS = st.dictionaries(
    st.sampled_from(sorted(record_options(Config)) + ["base"]),
    st.one_of(st.dictionaries(st.sampled_from(OPTIONS), TREES, max_size=4), TREES),
    max_size=4,
)
TEXTS = st.one_of(
    SECTIONS.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
    TREES.map(lambda tree: yaml.safe_dump({"objective": tree})),
    st.text(alphabet="ab:,[]{}&*!|>'\"#%@`-? \n\t<0123456789.eE~\ufeff\x85é", max_size=60),
    st.text(max_size=60),
)


@pytest.mark.fuzz
@given(text=TEXTS, raw=st.binary(max_size=40))
def test_whatever_a_file_holds_only_valueerror_comes_out(tmp_path_factory, text, raw):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    for content in (text.encode("utf-8", "surrogatepass"), text.encode("utf-8", "surrogatepass") + raw):
        file.write_bytes(content)
        try:
            config = load_config(file)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
        else:
            assert from_dict(reading.parse_yaml(to_yaml(config), "again").value) == config


@pytest.mark.fuzz
@given(tree=st.one_of(SECTIONS, st.dictionaries(KEYS, TREES, max_size=4)))
def test_whatever_a_tree_holds_only_valueerror_comes_out(tree):
    try:
        config = from_dict(tree)
    except ValueError:
        return
    assert from_dict(to_dict(config)) == config


@pytest.mark.fuzz
@given(
    overrides=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.tuples(
                st.sampled_from(
                    [f"{option}=" for option, _, _ in numeric_options()] + ["name=", "recipe=", "objective="]
                ),
                st.one_of(SCALARS.map(str), TREES.map(lambda t: yaml.safe_dump(t, default_flow_style=True)), st.text()),
            ).map("".join),
        ),
        max_size=3,
    )
)
def test_whatever_overrides_hold_only_valueerror_comes_out(overrides):
    try:
        config = load_config("demo/plain", overrides)
    except ValueError:
        return
    assert from_dict(reading.parse_yaml(to_yaml(config), "again").value) == config
