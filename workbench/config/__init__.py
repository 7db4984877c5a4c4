"""Configuration of a run: frozen records filled from presets, YAML files and dotted overrides.

A configuration is layered: defaults < base preset < preset < overrides. Inside each layer ``recipe: paper`` or
``recipe: released`` expands to the switches that the objective's own file lists under ``RECIPES``; what the same
layer says explicitly wins. The result is complete: every option of the chosen backbone and objective is present,
so the YAML beside the weights can be read without the code that wrote it.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from workbench.config.checks import (
    PLUGINS,
    backbone_sizes,
    check_plugin,
    coerce,
    load_plugin,
    mapping,
    plugin_class,
    plugin_declared,
    plugin_options,
    refuse_unknown,
    refuse_unknown_keys,
)
from workbench.config.layers import as_overrides, is_of_a_run, layered, parse_overrides, presets, written
from workbench.config.paths import with_real_paths
from workbench.config.ranges import OfDepth, OptionError, Range, layers_of
from workbench.config.reading import parse_value, parse_yaml, read_yaml
from workbench.config.records import (
    CodecConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    Plugin,
    SamplingConfig,
    TrainingConfig,
    record_options,
)
from workbench.config.teachers import teacher_overrides

__all__ = [
    "FREE",
    "CodecConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "Plugin",
    "SamplingConfig",
    "TrainingConfig",
    "Range",
    "as_overrides",
    "backbone_sizes",
    "check_plugin",
    "coerce",
    "fingerprint",
    "flatten",
    "from_dict",
    "is_of_a_run",
    "load_config",
    "load_plugin",
    "parse_overrides",
    "parse_value",
    "parse_yaml",
    "plugin_class",
    "plugin_options",
    "presets",
    "read_yaml",
    "record_options",
    "refuse_unknown",
    "teacher_overrides",
    "to_dict",
    "to_yaml",
    "written",
]

# What does not decide what is trained: when records are written, and how the same arithmetic is spread over time and
# machines, which changes its rounding alone. The first are not in the fingerprint. The others are in it with these
# values, which every preset has, so that runs that were made before they left it keep their fingerprints.
_UNCOUNTED = ("log_every", "checkpoint_every", "keep", "milestone_every", "sharding", "tracker")
_ROUNDING = {
    "training.accumulation": 1,  # but for an objective that compares the samples of a micro-batch
    "training.compile": False,
    "training.tf32": True,
    "backbone.checkpoint_blocks": False,
}
# Dotted options that may change between two starts of one run.
FREE = (*(f"training.{key}" for key in _UNCOUNTED), *_ROUNDING)


def load_config(source: str | Path, overrides: str | Iterable[str] = (), *, named: bool = True) -> Config:
    """Read the configuration of a preset or YAML file, with overrides.

    Paths in it become absolute, so that a run's ``config.yaml`` is right from any working directory. The module of a
    plug-in that it names may be imported from here on, which one in a run folder's ``config.yaml`` may not.

    Args:
        source: Name of a preset, such as "demo/guided", or path of a YAML file.
        overrides: Dotted options, such as "training.steps=500"; one alone may be text.
        named: False if the overrides were read from a file of others: no module that they name is imported then.

    Returns:
        The complete configuration; every option of the chosen backbone and objective has its value.

    Raises:
        ValueError: For an unknown preset, key or option, with the nearest known name; for a value of the wrong type or
            outside its range; and for YAML that is ambiguous. With file and line where it is in a file.

    Examples:
        >>> config = wb.load_config("demo/plain", ["training.steps=20", "backbone.size=pico"])
        >>> config.training.steps, config.backbone.options["size"]
        (20, 'pico')
    """
    layers = layered(source, overrides, named)
    try:
        return with_real_paths(from_dict(layers.tree))
    except OptionError as error:
        raise layers.located(error) from error


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A checked configuration from nested dictionaries, as they are read from ``config.yaml``."""
    values: dict[str, Any] = {}
    hints = record_options(Config)
    refuse_unknown_keys("", mapping("a configuration", tree), hints)
    for key, value in tree.items():
        if key in PLUGINS:
            values[key] = _plugin(key, value)
        elif is_dataclass(hints[key]):
            values[key] = _section(key, hints[key], value)
        else:
            values[key] = coerce(key, value, hints[key])
    config = Config(**values)
    check_plugin("data", config.data.name)
    config = replace(config, **{key: _plugin(key, flatten(getattr(config, key))) for key in PLUGINS})
    _check_layers(config)
    return config


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

    ``teacher`` is the fingerprint and step of the teacher's run; it takes the place of the teacher's location. Paths
    count as the places they lead to. Name, logging, checkpointing and sampling do not count, nor does what changes
    results by rounding alone: accumulation (but for an objective whose loss compares the samples of a micro-batch),
    compilation, TF32, recomputed activations, sharding. So a run can go on with another of these, and then equals one
    that was never interrupted up to rounding, not bit for bit.
    """
    tree = to_dict(with_real_paths(config))
    method = plugin_declared("objective", config.objective.name)
    del tree["name"], tree["recipe"], tree["sampling"]
    for key in _UNCOUNTED:
        del tree["training"][key]
    for key, value in _ROUNDING.items():
        section, _, option = key.partition(".")
        if option in tree[section] and not (option == "accumulation" and method.compares_samples):
            tree[section][option] = value
    tree["objective"] = method.deciding(tree["objective"])
    if (config.diffusion.path, config.diffusion.time) == ("cosine", "lognormal"):
        tree["diffusion"]["time"] = "lognormal ratio"  # it drew other times on this path before
    if "teacher" in tree["objective"]:
        tree["objective"]["teacher"] = teacher
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _section(name: str, kind: type, tree: Any) -> Any:
    hints = record_options(kind)
    refuse_unknown_keys(name, mapping(name, tree), hints)
    return kind(**{key: coerce(f"{name}.{key}", value, hints[key]) for key, value in tree.items()})


def _plugin(section: str, tree: Any) -> Plugin:
    """A plugin whose options are checked against the constructor's keyword arguments and completed."""
    tree = dict(mapping(section, tree))
    name = coerce(f"{section}.name", tree.pop("name", Config.__dataclass_fields__[section].default.name), str)
    options = plugin_options(section, name)
    refuse_unknown_keys(section, tree, options)
    values = {key: parameter.default for key, parameter in options.items()}
    for key, value in tree.items():
        values[key] = coerce(f"{section}.{key}", value, options[key].annotation)
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise OptionError(section, f"{section} {name!r} needs {section}.{missing[0]}")
    for low in (key for key in values if key.endswith("_low")):
        high = f"{low.removesuffix('_low')}_high"
        if values[low] >= values[high]:
            both = f"{section}.{low} {values[low]} must be below {section}.{high} {values[high]}"
            raise OptionError(f"{section}.{low}", both)
    return Plugin(name, values)


def _check_layers(config: Config) -> None:
    """Every layer that an option names is one of the backbone's, which has a size that is listed."""
    sizes, size = backbone_sizes(config.backbone.name), config.backbone.options["size"]
    refuse_unknown("backbone.size", size, sizes)
    for key, parameter in plugin_options("objective", config.objective.name).items():
        for layer in layers_of(parameter.annotation, config.objective.options[key]):
            OfDepth().check(f"objective.{key}", layer, sizes[size].depth)
