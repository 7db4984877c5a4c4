"""Configuration of a run: frozen records filled from presets, YAML files and dotted overrides.

A configuration is layered: defaults < base preset < preset < overrides. Inside each layer ``recipe: paper`` or
``recipe: released`` expands to the switches that the objective's own file lists under ``RECIPES``; what the same
layer says explicitly wins. The result is complete: every option of the chosen backbone and objective is present,
so the YAML beside the weights can be read without the code that wrote it.
"""

import hashlib
import inspect
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from workbench.config.checks import (
    PLUGINS,
    coerce,
    mapping,
    plugin_class,
    plugin_options,
    refuse_unknown,
    refuse_unknown_keys,
)
from workbench.config.layers import layered, parse_overrides, presets
from workbench.config.records import (
    CodecConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    Plugin,
    SamplingConfig,
    TrainingConfig,
)

__all__ = [
    "CodecConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "Plugin",
    "SamplingConfig",
    "TrainingConfig",
    "coerce",
    "fingerprint",
    "flatten",
    "from_dict",
    "load_config",
    "parse_overrides",
    "plugin_class",
    "plugin_options",
    "presets",
    "refuse_unknown",
    "to_dict",
    "to_yaml",
]

# What changes neither the weights nor the order of what is computed, so not the fingerprint either.
_FREE = {"training": ("log_every", "checkpoint_every", "keep", "milestone_every", "sharding", "tracker")}


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a preset ("demo/guided") or YAML file, with overrides like "training.steps=500".

    Raises ValueError for an unknown preset, key or option, naming the nearest right one, and for a value of the
    wrong type.
    """
    return from_dict(layered(source, overrides))


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A checked configuration from nested dictionaries, as they are read from ``config.yaml``."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Config)
    refuse_unknown_keys("", tree, hints)
    for key, value in tree.items():
        if key in PLUGINS:
            values[key] = _plugin(key, value)
        elif is_dataclass(hints[key]):
            values[key] = _section(key, hints[key], value)
        else:
            values[key] = coerce(key, value, hints[key])
    config = Config(**values)
    return replace(config, **{key: _plugin(key, flatten(getattr(config, key))) for key in PLUGINS})


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries with the keys of the YAML files."""
    tree = asdict(config)
    for key in PLUGINS:
        tree[key] = flatten(getattr(config, key))
    return tree


def to_yaml(config: Config) -> str:
    """The text of ``config.yaml``."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(plugin: Plugin) -> dict[str, Any]:
    """The name and the options of a plugin as one level of keys."""
    return {"name": plugin.name, **plugin.options}


def fingerprint(config: Config, teacher: str | None = None) -> str:
    """Sixteen hexadecimal digits that two configurations share exactly when they train the same weights.

    ``teacher`` is the fingerprint and step of the teacher's run; it takes the place of the teacher's location.
    Name, logging, checkpointing and sampling do not count.
    """
    tree = to_dict(config)
    del tree["name"], tree["recipe"], tree["sampling"]
    for section, keys in _FREE.items():
        for key in keys:
            del tree[section][key]
    tree["objective"] = plugin_class("objective", config.objective.name).deciding(tree["objective"])
    if (config.diffusion.path, config.diffusion.time) == ("cosine", "lognormal"):
        tree["diffusion"]["time"] = "lognormal ratio"  # it drew other times on this path before
    if "teacher" in tree["objective"]:
        tree["objective"]["teacher"] = teacher
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _section(name: str, kind: type, tree: Any) -> Any:
    hints = typing.get_type_hints(kind)
    refuse_unknown_keys(name, mapping(name, tree), hints)
    return kind(**{key: coerce(f"{name}.{key}", value, hints[key]) for key, value in tree.items()})


def _plugin(section: str, tree: Any) -> Plugin:
    """A plugin whose options are checked against the constructor's keyword arguments and completed."""
    tree = dict(mapping(section, tree))
    name = tree.pop("name", Config.__dataclass_fields__[section].default.name)
    options = plugin_options(section, name)
    refuse_unknown_keys(section, tree, options)
    values = {key: parameter.default for key, parameter in options.items()}
    for key, value in tree.items():
        values[key] = coerce(f"{section}.{key}", value, options[key].annotation)
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"{section} {name!r} needs {section}.{missing[0]}")
    return Plugin(name, values)
