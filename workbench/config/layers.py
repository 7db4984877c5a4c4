"""Layers of a configuration: presets and YAML files over each other, overrides, recipes."""

import inspect
import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from workbench.config.checks import PLUGINS, mapping, plugin_class, refuse_unknown

PRESETS = Path(__file__).parent.parent / "presets"


def layered(source: str | Path, overrides: Iterable[str]) -> dict[str, Any]:
    """The nested dictionaries of a preset or YAML file with everything it builds on, and overrides on top."""
    tree: dict[str, Any] = {}
    for layer in [*_layers(source), parse_overrides(overrides)]:
        tree = _merge(tree, _expand_recipe(layer, tree))
    return tree


def presets() -> list[str]:
    """Names of the presets that come with the package, such as "demo/guided"; files with _ are only built upon."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("[!_]*.yaml"))


def _layers(source: str | Path) -> list[dict[str, Any]]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{source}.yaml"
        if not path.is_file():
            refuse_unknown("preset", source, presets())
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise ValueError(f"there is no configuration file {path}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a mapping of sections; it holds {type(tree).__name__}")
    base = tree.pop("base", [])
    bases = [base] if isinstance(base, str) else base
    return [*(layer for name in bases for layer in _layers(name)), tree]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Nested dictionaries from texts like "training.steps=500", the values read as YAML; ValueError otherwise."""
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"an override looks like training.steps=500; got {text!r}")
        section, dot, option = key.partition(".")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"the value of {key} is not valid YAML: {value!r}") from error
        if dot:
            if not isinstance(tree.setdefault(section, {}), dict):
                raise ValueError(f"{section} must be a section with keys of its own; got {tree[section]!r}")
            tree[section][option] = parsed
        else:
            tree[section] = parsed
    return tree


def _expand_recipe(layer: dict[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """``layer`` with what the recipe in force says filled in underneath what it says itself.

    A layer that names the recipe, or another objective under a recipe named earlier, brings the recipe's switches in;
    another objective also the placement that is published for the backbone. Placement stays when only the recipe
    changes, for there the two do not differ. To name the recipe that is in force already changes nothing: what layers
    below said otherwise since holds, as for a preset whose student hands its own recipe on.
    """
    merged = _merge(below, {key: mapping(key, layer[key]) if key in PLUGINS else layer[key] for key in layer})
    name = merged.get("objective", {}).get("name", "denoise")
    another = name != below.get("objective", {}).get("name", "denoise")
    recipe = layer.get("recipe", below.get("recipe") if another else None)
    if recipe is None or (recipe == below.get("recipe") and not another):
        return layer
    module = inspect.getmodule(plugin_class("objective", name))
    refuse_unknown("recipe", recipe, module.RECIPES)
    backbone = merged.get("backbone", {}).get("name", "sit")
    kind = plugin_class("backbone", backbone)
    size = merged.get("backbone", {}).get("size", "nano")
    refuse_unknown("backbone.size", size, kind.sizes)
    depth = kind.sizes[size].depth
    values = {k: v(depth) if callable(v) else v for k, v in module.RECIPES[recipe].items()}
    if another or below.get("recipe") is None:
        values |= _placement(module, backbone, depth, layer.get("objective", {}))
    return _merge(parse_overrides(f"{key}={json.dumps(v)}" for key, v in values.items()), layer)


def _placement(module: types.ModuleType, backbone: str, depth: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted options that an objective's file lists for a backbone; ValueError if it lists none for this one."""
    table = getattr(module, "PLACEMENT", {None: {}})
    found = table.get((backbone, depth), table.get(None))
    if found is None:
        absent = [key for key in next(iter(table.values())) if key not in said]
        if absent:
            raise ValueError(
                f"nothing is published for this objective on {backbone} of depth {depth}: "
                f"state {', '.join(f'objective.{key}' for key in absent)}"
            )
        return {}
    return {f"objective.{key}": value for key, value in found.items()}


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``; another ``name`` in a section starts that section afresh, its options do not carry."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            fresh = "name" in value and "name" in below and value["name"] != below["name"]
            merged[key] = dict(value) if fresh else {**below, **value}
        else:
            merged[key] = value
    return merged
