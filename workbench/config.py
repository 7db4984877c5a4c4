"""Configuration of a run: frozen records filled from presets, YAML files and dotted overrides.

A configuration is layered: defaults < base preset < preset < overrides. Inside each layer ``recipe: paper`` or
``recipe: released`` expands to the switches that the objective's own file lists under ``RECIPES``; what the same
layer says explicitly wins. The result is complete: every option of the chosen backbone and objective is present,
so the YAML beside the weights can be read without the code that wrote it.
"""

import difflib
import hashlib
import importlib
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class DataConfig:
    """Which images. ``size`` and ``crop`` matter for folders and archives only; the other sets have one size."""

    name: str = "fashion-mnist"
    source: str = "auto"  # fashion-mnist: embedded subset, full set, or the full set when there is one
    path: str | None = None
    size: int = 256
    crop: Literal["adm", "none"] = "adm"
    limit: int | None = None  # so many images: the first, or evenly spread where they are listed class by class
    flip: bool = False  # mirrored images too, each drawn half the time: SiT and LightningDiT do, REPA's family not
    precision: Literal["float32", "float16"] = "float32"  # of stored latents; half as much disk is half as exact


@dataclass(frozen=True)
class CodecConfig:
    """Pixels to latents and back: a name of `data.codecs.load_codec`, or a folder with an autoencoder's weights."""

    name: str = "kl-f4"


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise path and what is drawn for each training sample."""

    path: Literal["linear", "cosine"] = "linear"
    time: Literal["uniform", "lognormal"] = "uniform"
    label_dropout: float = 0.1  # share of samples that see the null class (SiT, REPA and the paper)
    cosine_weight: float = 0.0  # of LightningDiT's 1 - cos(v_hat, v) along the channels; its own default is 1


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation recipe; defaults are those of SiT (methods of Table 1)."""

    steps: int = 400_000
    batch: int = 256  # over all processes and accumulation steps
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the published recipes use none
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float | None = 1.0  # REPA and Self-Transcendence; SiT itself does not clip
    ema: float = 0.9999
    precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    tf32: bool = True  # single-precision products on a GPU in TF32, as every published code has it
    sharding: Literal["ddp", "fsdp"] = "ddp"  # a copy in each process, or a share of parameters and optimizer
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 10_000
    keep: int = 2  # newest checkpoints that can be resumed from
    milestone_every: int | None = 50_000  # checkpoints whose weights are kept for ever, for looking at


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn when the run is scored."""

    sampler: Literal["euler", "heun", "euler-maruyama"] = "euler-maruyama"
    steps: int = 250
    last_step: float = 0.04
    shift: float = 1.0  # LightningDiT's timestep shift: below 1 spends more steps near noise
    guidance_scale: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_channels: int | None = None  # 3 guides the first three channels only, as original SiT
    weights: Literal["ema", "raw"] = "ema"
    count: int = 50_000
    seed: int = 0


@dataclass(frozen=True)
class Plugin:
    """A backbone or an objective: the name of its file and every option of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run computes, and how it is scored by default."""

    name: str = "run"
    recipe: Literal["paper", "released"] | None = None
    data: DataConfig = DataConfig()
    codec: CodecConfig = CodecConfig()
    backbone: Plugin = Plugin("sit")
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: Plugin = Plugin("denoise")
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        training = self.training
        for key in ("steps", "batch", "accumulation", "log_every", "checkpoint_every", "keep"):
            if getattr(training, key) < 1:
                raise ValueError(f"training.{key} must be at least 1; got {getattr(training, key)}")
        for key in ("learning_rate", "clip", "milestone_every"):
            value = getattr(training, key)
            if value is not None and value <= 0:
                raise ValueError(f"training.{key} must be above 0; got {value}")
        for key in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(training, key) < 1:
                raise ValueError(f"training.{key} must be in [0, 1); got {getattr(training, key)}")
        if self.sampling.count < 1:
            raise ValueError(f"sampling.count must be at least 1; got {self.sampling.count}")
        if self.data.limit is not None and self.data.limit < 1:
            raise ValueError(f"data.limit must be at least 1; got {self.data.limit}")
        if training.batch % training.accumulation:
            raise ValueError(
                f"training.batch {training.batch} is not divisible by training.accumulation {training.accumulation}"
            )
        if not 0 <= self.diffusion.label_dropout < 1:
            raise ValueError(f"diffusion.label_dropout must be in [0, 1); got {self.diffusion.label_dropout}")


# Sections whose keys are those of a file found by name, and what each file must export.
_PLUGINS = {
    "backbone": ("workbench.backbones", "Backbone"),
    "objective": ("workbench.objectives", "Objective"),
}

# What changes neither the weights nor the order of what is computed, so not the fingerprint either.
_FREE = {"training": ("log_every", "checkpoint_every", "keep", "milestone_every", "sharding")}


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a preset ("demo/guided") or YAML file, with overrides like "training.steps=500".

    Raises ValueError for an unknown preset, key or option, naming the nearest right one, and for a value of the
    wrong type.
    """
    layers = [*_layers(source), parse_overrides(overrides)]
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = _merge(tree, _expand_recipe(layer, tree))
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A checked configuration from nested dictionaries, as they are read from ``config.yaml``."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Config)
    refuse_unknown_keys("", tree, hints)
    for key, value in tree.items():
        if key in _PLUGINS:
            values[key] = _plugin(key, value)
        elif is_dataclass(hints[key]):
            values[key] = _section(key, hints[key], value)
        else:
            values[key] = coerce(key, value, hints[key])
    config = Config(**values)
    return replace(config, **{key: _plugin(key, flatten(getattr(config, key))) for key in _PLUGINS})


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries with the keys of the YAML files."""
    tree = asdict(config)
    for key in _PLUGINS:
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
    if "teacher" in tree["objective"]:
        tree["objective"]["teacher"] = teacher
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def presets() -> list[str]:
    """Names of the presets that come with the package, such as "demo/guided"; files with _ are only built upon."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("[!_]*.yaml"))


def plugin_class(section: str, name: str) -> type:
    """The class that ``workbench/<section>s/<name>.py`` exports: the folder is the registry."""
    package, exported = _PLUGINS[section]
    folder = Path(__file__).parent / package.rpartition(".")[2]
    names = sorted(path.stem for path in folder.glob("*.py"))
    available = [stem for stem in names if f"class {exported}(" in (folder / f"{stem}.py").read_text()]
    available = [stem for stem in available if stem != "base"]
    refuse_unknown(f"{section}.name", name, available)
    return getattr(importlib.import_module(f"{package}.{name}"), exported)


def refuse_unknown(what: str, value: Any, allowed: Iterable[Any]) -> None:
    """ValueError that names the nearest allowed value and all of them, unless ``value`` is one."""
    allowed = [str(option) for option in allowed]
    if str(value) in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{what} {value!r} is not known{hint} Allowed: {', '.join(allowed) or 'none'}")


def refuse_unknown_keys(section: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """ValueError for the first key of ``given`` that is not allowed in ``section``."""
    allowed = list(allowed)
    for key in given:
        refuse_unknown(f"option {section}.{key}:" if section else "option", key, allowed)


def coerce(what: str, value: Any, hint: Any) -> Any:
    """``value`` as the type that ``hint`` asks for (int to float, list to tuple); ValueError naming both otherwise."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        value = "no" if value is False and "no" in arguments else value  # YAML reads a bare no as false
        refuse_unknown(what, value, arguments)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return coerce(what, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{what} must be a list; got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{what} must be a list of {len(kinds)}; got {value!r}")
        return tuple(coerce(what, item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:  # YAML reads 1e-4 as text
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{what} must be {getattr(hint, '__name__', hint)}; got {value!r}")


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
    changes, for there the two do not differ.
    """
    merged = _merge(below, {key: _mapping(key, layer[key]) if key in _PLUGINS else layer[key] for key in layer})
    name = merged.get("objective", {}).get("name", "denoise")
    another = name != below.get("objective", {}).get("name", "denoise")
    recipe = layer.get("recipe", below.get("recipe") if another else None)
    if recipe is None:
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


def _mapping(section: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{section} must be a section with keys of its own; got {value!r}")
    return value


def _section(name: str, kind: type, tree: Any) -> Any:
    hints = typing.get_type_hints(kind)
    refuse_unknown_keys(name, _mapping(name, tree), hints)
    return kind(**{key: coerce(f"{name}.{key}", value, hints[key]) for key, value in tree.items()})


def _plugin(section: str, tree: Any) -> Plugin:
    """A plugin whose options are checked against the constructor's keyword arguments and completed."""
    tree = dict(_mapping(section, tree))
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


def plugin_options(section: str, name: str) -> dict[str, inspect.Parameter]:
    """The options of a backbone or objective: keyword arguments of its constructor that the run does not supply."""
    constructor = plugin_class(section, name)
    supplied = getattr(constructor, "SUPPLIED", ())
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(constructor).parameters.values())
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in supplied}


assert {field_.name for field_ in fields(Config)} >= _PLUGINS.keys()
