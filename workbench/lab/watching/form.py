"""Fields of the launch form, from presets, sizes and signatures of methods, and the configurations they describe."""

import inspect
import json
import typing
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from workbench import plugins
from workbench.config import (
    Config,
    backbone_sizes,
    load_config,
    parse_overrides,
    plugin_options,
    presets,
    teacher_overrides,
)
from workbench.config.layers import layered
from workbench.config.paths import SHIPPED_VAES
from workbench.config.reading import WrittenFloat, WrittenInt
from workbench.config.records import DataConfig, TrainingConfig
from workbench.data.encoders import ENCODERS
from workbench.data.published import PUBLISHED
from workbench.runs.store import Run, find_runs, open_run

TEACHER_STEPS = "teacher.steps"
_TRAINING = ("steps", "batch", "learning_rate", "seed")
# Options that apply to student and teacher, beside those of `teacher_overrides`.
_SHARED = ("diffusion.", "training.batch", "training.learning_rate", "training.seed")
# Options of a method that are always shown; the others are folded.
_FIRST = ("teacher", "encoder", "layer", "teacher_layer", "pairs", "guidance_scale", "weight", "stop_step")
_RUNS = 30  # finished runs that are offered as teachers, beside the presets


def fields(preset: str, changes: Mapping[str, str], root: Path) -> list[dict[str, Any]]:
    """All fields, ready for JSON: key, label, group, text, and "values" where there is a list to choose from.

    Invalid changes give fields too, so that they can be corrected.
    """
    tree = _tree(preset, changes)
    made = [_field("preset", "start from", "Start", preset, presets())]
    data, vae = tree.get("data", {}), tree.get("vae", {})
    made.append(_field("data.name", "images", "Data", data.get("name", "fashion-mnist"), plugins.names("data")))
    if data.get("name") not in (None, "fashion-mnist", "digits", "scenes"):
        made.append(_field("data.path", "folder", "Data", data.get("path")))
    if data.get("name") not in (None, "fashion-mnist", "digits", "cifar10"):
        made.append(_field("data.size", "pixels", "Data", data.get("size", DataConfig.size)))
    made.append(_field("data.limit", "images at most", "Data", data.get("limit")))
    vaes = [*SHIPPED_VAES, "identity", *PUBLISHED]
    made.append(_field("vae.name", "vae", "Data", vae.get("name", "kl-f4"), vaes))
    made += [*_backbone(tree.get("backbone", {})), *_method(tree.get("objective", {}), preset, root)]
    for key in _TRAINING:
        default = TrainingConfig.__dataclass_fields__[key].default
        label = key.replace("_", " ")
        made.append(_field(f"training.{key}", label, "Training", tree.get("training", {}).get(key, default)))
    teacher = tree.get("objective", {}).get("teacher")
    if teacher in presets():
        steps = layered(teacher, ()).tree.get("training", {}).get("steps", TrainingConfig.steps)
        text = changes.get(TEACHER_STEPS, steps)
        made.append(_field(TEACHER_STEPS, "steps of the teacher", "Training", text))
    return made


def changed(preset: str, changes: Mapping[str, str], key: str, text: str, root: Path) -> tuple[str, dict[str, str]]:
    """Preset and changes after setting field ``key`` to ``text``; choosing another plug-in clears its section."""
    if key == "preset":
        return text, {}
    section, _, option = key.partition(".")
    remaining = dict(changes)
    if option == "name" and section in ("objective", "backbone"):
        remaining = {k: v for k, v in remaining.items() if not k.startswith(f"{section}.") and k != TEACHER_STEPS}
    remaining[key] = text
    if key == "objective.name" and text != "denoise":
        options = plugin_options("objective", text)
        if "teacher" in options and "teacher" not in _tree(preset, remaining).get("objective", {}):
            remaining["objective.teacher"] = _teachers(preset, root)[0]
    return preset, remaining


def configs(preset: str, changes: Mapping[str, str], root: Path) -> tuple[Config, Config | None]:
    """The configuration, and its teacher's if the teacher is a preset; ValueError if the form is invalid."""
    config = load_config(preset, overrides(changes))
    reference = config.objective.options.get("teacher")
    if reference is None or reference not in presets():
        if reference is not None:
            open_run(reference, root)
        return config, None
    return config, load_config(reference, _teacher_overrides(config, changes))


def overrides(changes: Mapping[str, str]) -> list[str]:
    """The changes as dotted overrides of the student."""
    return [f"{key}={text or 'null'}" for key, text in changes.items() if key != TEACHER_STEPS]


def code(preset: str, changes: Mapping[str, str], root: Path) -> str:
    """Snippet that plans and launches the same runs."""
    config, teacher = configs(preset, changes, root)
    lines = ["import workbench as wb", "from workbench.training.plan import plan", ""]
    lines.append(f"config = wb.load_config({json.dumps(preset)}, {json.dumps(overrides(changes))})")
    given = "config"
    if teacher is not None:
        reference, options = config.objective.options["teacher"], json.dumps(_teacher_overrides(config, changes))
        lines.append(f"teacher = wb.load_config({json.dumps(reference)}, {options})")
        given = "config, teacher=teacher"
    lines += [f"launched = plan({given}).launch()", "wb.watch(*launched)"]
    return "\n".join(lines) + "\n"


def _teacher_overrides(config: Config, changes: Mapping[str, str]) -> list[str]:
    shared = [f"{key}={text}" for key, text in changes.items() if key.startswith(_SHARED)]
    steps = [f"training.steps={changes[TEACHER_STEPS]}"] if TEACHER_STEPS in changes else []
    return [*teacher_overrides(config, shared), *shared, *steps]


def _tree(preset: str, changes: Mapping[str, str]) -> dict[str, Any]:
    """Values of the form: the preset with the changes or, if that is invalid, with those changes that can be parsed."""
    try:
        return layered(preset, overrides(changes)).tree
    except ValueError:
        tree = layered(preset, ()).tree
    for key, text in changes.items():
        try:
            parsed = parse_overrides([f"{key}={text}"])
        except ValueError:
            continue
        for section, values in parsed.items():
            below = tree.get(section)
            if isinstance(below, dict) and isinstance(values, dict):
                fresh = values.get("name", below.get("name")) != below.get("name")
                tree[section] = values if fresh else {**below, **values}
    return tree


def _backbone(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = tree.get("name", "sit")
    size = tree.get("size", plugin_options("backbone", name)["size"].default)
    shown = {key: f"{key} (depth {s.depth}, width {s.width})" for key, s in backbone_sizes(name).items()}
    patch = tree.get("patch", plugin_options("backbone", name)["patch"].default)
    return [
        _field("backbone.name", "backbone", "Model", name, plugins.names("backbone")),
        _field("backbone.size", "size", "Model", size, list(shown), texts=list(shown.values())),
        _field("backbone.patch", "patch", "Model", patch),
    ]


def _method(tree: Mapping[str, Any], preset: str, root: Path) -> list[dict[str, Any]]:
    name = tree.get("name", "denoise")
    made = [_field("objective.name", "method", "Method", name, plugins.names("objective"))]
    options = plugin_options("objective", name)
    order = [*(key for key in _FIRST if key in options), *(key for key in options if key not in _FIRST)]
    for key in order:
        parameter = options[key]
        default = "" if parameter.default is inspect.Parameter.empty else parameter.default
        values = (
            list(typing.get_args(parameter.annotation)) if typing.get_origin(parameter.annotation) is Literal else None
        )
        values = [True, False] if parameter.annotation is bool else values
        if key == "teacher":
            values = _teachers(preset, root)
        elif key == "encoder":
            values = list(ENCODERS)
        group = "Method" if key in _FIRST else "More of the method"
        label = "guidance scale w" if key == "guidance_scale" else key.replace("_", " ")
        made.append(_field(f"objective.{key}", label, group, tree.get(key, default), values))
    return made


def _teachers(preset: str, root: Path) -> list[str]:
    """Presets of teachers in the same folder, then finished runs."""
    folder = preset.partition("/")[0]
    named = [name for name in presets() if name.endswith("teacher") and name.startswith(f"{folder}/")]
    finished = [run.name for run in reversed(find_runs(root)) if _has_finished(run)]
    return [*(named or [name for name in presets() if name.endswith("teacher")]), *finished[:_RUNS]]


def _has_finished(run: Run) -> bool:
    with suppress(ValueError, OSError):  # a damaged run cannot be a teacher
        return run.status["state"] == "finished"
    return False


def _field(
    key: str, label: str, group: str, value: Any, values: list | None = None, texts: list[str] | None = None
) -> dict[str, Any]:
    text = _text(value)
    field: dict[str, Any] = {"key": key, "label": label, "group": group, "text": text}
    if values is None:
        return field
    options = [_text(one) for one in values]
    shown = texts or options
    if text not in options:  # a folder, or an empty text
        options, shown = [text, *options], [text or "(choose)", *shown]
    return {**field, "values": options, "texts": shown}


def _text(value: Any) -> str:
    """A value as a user would type it in YAML."""
    if isinstance(value, str | WrittenInt | WrittenFloat):
        return str(value)
    plain = yaml.safe_load(yaml.safe_dump([list(value) if isinstance(value, tuple) else value])) if value else [value]
    return yaml.safe_dump(plain[0], default_flow_style=True).splitlines()[0]
