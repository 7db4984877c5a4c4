"""Configuration of a run: frozen dataclasses filled from presets, YAML files and dotted overrides.

Later layers win: defaults < base preset < preset < overrides. In each layer ``recipe: paper`` or ``recipe: released``
expands to the options that the objective's file lists under ``RECIPES``; options set explicitly in the same layer take
precedence. The result is complete: it has every option of its backbone and objective, so the YAML beside the weights
can be read without the code that wrote it.
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
from workbench.config.older import modern
from workbench.config.paths import with_real_paths
from workbench.config.ranges import OfDepth, OptionError, Range, layers_of
from workbench.config.reading import parse_value, parse_yaml, read_yaml
from workbench.config.records import (
    Config,
    DataConfig,
    DiffusionConfig,
    Plugin,
    SamplingConfig,
    TrainingConfig,
    VaeConfig,
    record_options,
)
from workbench.config.teachers import teacher_overrides

__all__ = [
    "FREE",
    "VaeConfig",
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

# Options that do not decide what is trained: when records are written, and how the same arithmetic is split over steps
# and devices, which only changes rounding. The former are not in the fingerprint. The latter enter it with these
# values, the same for all runs, so that older runs keep their fingerprints.
_UNCOUNTED = ("log_every", "checkpoint_every", "keep", "milestone_every", "sharding", "tracker")
_ROUNDING = {
    "training.accumulation": 1,  # except for an objective that compares the samples of a micro-batch
    "training.compile": False,
    "training.tf32": True,
    "backbone.checkpoint_blocks": False,
}
# Dotted options that may differ when a run is resumed.
FREE = ("data.masks", *(f"training.{key}" for key in _UNCOUNTED), *_ROUNDING)


def load_config(source: str | Path, overrides: str | Iterable[str] = (), *, named: bool = True) -> Config:
    """Read the configuration of a preset or YAML file, with overrides.

    Paths become absolute, so that a run's ``config.yaml`` is valid from any working directory. Modules of plug-ins that
    the configuration names may be imported from here on, except for a ``config.yaml`` in a run folder.

    Args:
        source: Name of a preset, such as "demo/guided", or path of a YAML file.
        overrides: Dotted options, such as "training.steps=500"; a single one may be a string.
        named: False if the overrides come from a file that may be somebody else's, so that their modules are not
            imported.

    Returns:
        The complete configuration; every option of the chosen backbone and objective has its value.

    Raises:
        ValueError: For an unknown preset, key or option, with the closest known name; for a value of the wrong type or
            outside its range; and for ambiguous YAML. The message has file and line if the error is in a file.

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
    """Build and check a configuration from nested dictionaries, such as the content of ``config.yaml``."""
    values: dict[str, Any] = {}
    hints = record_options(Config)
    tree = modern(mapping("a configuration", tree))
    refuse_unknown_keys("", tree, hints)
    for key, value in tree.items():
        if key in PLUGINS:
            values[key] = _plugin(key, value)
        elif is_dataclass(hints[key]):
            values[key] = _section(key, hints[key], value)
        else:
            values[key] = coerce(key, value, hints[key])
    config = Config(**values)
    check_plugin("data", config.data.name)
    backbone, objective = (_plugin(key, flatten(getattr(config, key))) for key in PLUGINS)
    config = replace(config, backbone=backbone, objective=objective)
    _check_layers(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries with the keys of the YAML files."""
    tree = asdict(config)
    for key in PLUGINS:
        tree[key] = flatten(getattr(config, key))
    return tree


def to_yaml(config: Config) -> str:
    """The configuration as the text of ``config.yaml``."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(plugin: Plugin) -> dict[str, Any]:
    """Name and options of a plug-in as one flat dictionary."""
    return {"name": plugin.name, **plugin.options}


def fingerprint(config: Config, teacher: str | None = None) -> str:
    """Sixteen hexadecimal digits, equal for two configurations exactly if they train the same weights.

    ``teacher`` is the fingerprint and step of the teacher's run, used instead of its location. Paths are resolved.
    Name, masks, logging, checkpointing and sampling are ignored, and so are options that only change rounding:
    accumulation (except for an objective whose loss compares the samples of a micro-batch), compilation, TF32,
    activation checkpointing, sharding. A run may be resumed with different values of these; it then equals an
    uninterrupted run up to rounding, not bit for bit.
    """
    tree = to_dict(with_real_paths(config))
    method = plugin_declared("objective", config.objective.name)
    del tree["name"], tree["recipe"], tree["sampling"]
    del tree["data"]["masks"]  # which measures read, and no training
    for key in _UNCOUNTED:
        del tree["training"][key]
    if config.training.optimizer == "adamw":  # so that older runs keep their fingerprints
        del tree["training"]["optimizer"], tree["training"]["momentum"]
    for key, value in _ROUNDING.items():
        section, _, option = key.partition(".")
        if option in tree[section] and not (option == "accumulation" and method.compares_samples):
            tree[section][option] = value
    tree["objective"] = method.deciding(tree["objective"])
    tree["codec"] = tree.pop("vae")  # as the section was called when the first fingerprints were made
    if (config.diffusion.path, config.diffusion.time) == ("cosine", "lognormal"):
        tree["diffusion"]["time"] = "lognormal ratio"  # earlier versions drew other times on this path
    if "teacher" in tree["objective"]:
        tree["objective"]["teacher"] = teacher
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _section(name: str, kind: type, tree: Any) -> Any:
    hints = record_options(kind)
    refuse_unknown_keys(name, mapping(name, tree), hints)
    return kind(**{key: coerce(f"{name}.{key}", value, hints[key]) for key, value in tree.items()})


def _plugin(section: str, tree: Any) -> Plugin:
    """A plug-in with its options checked against the constructor's keyword arguments and filled with defaults."""
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
    """Check that the backbone's size is known and that every layer in the objective's options is within its depth."""
    sizes, size = backbone_sizes(config.backbone.name), config.backbone.options["size"]
    refuse_unknown("backbone.size", size, sizes)
    for key, parameter in plugin_options("objective", config.objective.name).items():
        for layer in layers_of(parameter.annotation, config.objective.options[key]):
            OfDepth().check(f"objective.{key}", layer, sizes[size].depth)
