"""Merge the layers of a configuration: presets, YAML files, recipes and overrides."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import plugins
from workbench.config.checks import (
    PLUGIN_TEXT,
    PLUGINS,
    backbone_sizes,
    coerce,
    mapping,
    plugin_declared,
    plugin_options,
    refuse_unknown,
    refuse_unknown_keys,
)
from workbench.config.older import modern
from workbench.config.ranges import OptionError, named, shown
from workbench.config.reading import NULL, Document, WrittenFloat, WrittenInt, parse_value, read_yaml
from workbench.config.records import Config, record_options
from workbench.shipped import shipped

PRESETS = Path(__file__).parent.parent / "presets"
_MOST_LAYERS = 100
_SENTENCE = re.compile(r"(?<=\.)\s(?=[A-Z])")  # where a description ends
_OF_A_RUN = ("provenance.json", "metrics.jsonl", "checkpoints")  # every run folder has at least one of these


@dataclass(frozen=True)
class Layered:
    """The merged nested dictionaries, and the layers from lowest to highest, overrides last."""

    tree: dict[str, Any]
    layers: tuple[Document, ...]

    def located(self, error: OptionError) -> ValueError:
        """The error, prefixed with file and line if its option was last set in a file."""
        section, _, key = error.option.partition(".")
        for layer in reversed(self.layers):
            value = layer.value.get(section)
            if section in layer.value and (not key or not isinstance(value, dict) or key in value):
                return _at(layer, error)
        return error


def layered(source: str | Path, overrides: str | Iterable[str], named: bool = True) -> Layered:
    """Merge a preset or YAML file with its base files and the overrides.

    Module paths of plug-ins may be imported from here on if the user ``named`` them. Those in a run folder's
    ``config.yaml`` and its base files are not allowed.

    Raises ValueError, with file and line, for errors in a single layer: an unknown section, a value out of range.
    """
    layers = read_layers(source, overrides)
    tree: dict[str, Any] = {}
    if named:
        plugins.allow(*(path for layer in layers if layer.trusted for path in _module_paths(layer.value)))
    for layer in layers:
        try:
            tree = _merge(tree, _expand_recipe(layer.value, tree))
        except OptionError as error:
            raise _at(layer, error) from error
    return Layered(tree, tuple(layers))


def read_layers(source: str | Path, overrides: str | Iterable[str]) -> list[Document]:
    """All files of a configuration, lowest first, then its overrides; checked as far as possible without plug-ins."""
    layers = [*_layers(source), Document("", parse_overrides(overrides))]
    layers = [replace(layer, value=modern(layer.value)) for layer in layers]
    for layer in layers:
        try:
            _check_sections(layer.value)
        except OptionError as error:
            raise _at(layer, error) from error
    return layers


def _module_paths(tree: Mapping[str, Any]) -> list[str]:
    """Module paths of the plug-ins in a layer."""
    sections = [tree.get(kind) for kind in plugins.KINDS]
    names = [section.get("name") for section in sections if isinstance(section, Mapping)]
    return [name for name in names if isinstance(name, str) and plugins.is_path(name)]


def _at(layer: Document, error: OptionError) -> ValueError:
    section, _, key = error.option.partition(".")
    return ValueError(f"{layer.where(section, key)}: {error}") if layer.name else error


def _check_sections(tree: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown section or option or an invalid value, without importing plug-ins."""
    hints = record_options(Config)
    records = {key: hint for key, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    sections = {key: record_options(record) for key, record in records.items()}
    for key in tree:
        inside = [f"{section}.{key}" for section, options in sections.items() if key in options and key not in hints]
        if inside:
            raise OptionError(key, f"option {named(key)} is not known; did you mean {' or '.join(inside)}?")
    refuse_unknown_keys("", tree, hints)
    for key, value in tree.items():
        if key in PLUGINS:
            mapping(key, value)
        elif is_dataclass(hints[key]):
            options = record_options(hints[key])
            refuse_unknown_keys(key, mapping(key, value), options)
            for option, item in value.items():
                coerce(f"{key}.{option}", item, options[option])
        else:
            coerce(key, value, hints[key])


def presets() -> list[str]:
    """Names of the package's presets, such as "demo/guided"; files whose names start with _ are base files only."""
    return sorted(name.removesuffix(".yaml") for name in _shipped() if not name.rpartition("/")[2].startswith("_"))


def preset_description(name: str) -> str:
    """The first sentence of the comment at the top of a preset; without a comment, the names of its base files."""
    comment: list[str] = []
    for line in (PRESETS / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            return _SENTENCE.split(" ".join(comment))[0] if comment else f"as {line.removeprefix('base:').strip(' []')}"
        comment.append(line.removeprefix("#").strip())
    return ""


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    """Preset files, which do not change while the package is imported."""
    return frozenset(path.relative_to(PRESETS).as_posix() for path in PRESETS.rglob("*.yaml"))


def _layers(source: str | Path, chain: tuple[str, ...] = (), found: list[Document] | None = None) -> list[Document]:
    """The file ``source`` after its base files; ``chain`` has the files that lead to it."""
    path = _file(source)
    name, found = str(path), [] if found is None else found
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise ValueError(f"base files form a cycle: {' -> '.join([*chain, name])}")
    try:
        document = read_yaml(path)
    except FileNotFoundError as error:
        needed = f", a base of {chain[-1]}" if chain else ""
        raise ValueError(f"there is no configuration file {path}{needed}") from error
    if not isinstance(document.value, dict):
        raise ValueError(f"{path} must hold a mapping of sections; it holds {_held(document.value)}")
    bases = document.value.pop("base", [])
    if not document.value and bases in ([], {}):
        raise ValueError(f"{path} is empty; name a preset as its base, such as base: demo/plain")
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base.strip() for base in bases):
        where = document.where("base")
        raise ValueError(f"{where}: base must be a preset or a file, or a list of them; got {shown(bases)}")
    for base in bases:
        try:
            _layers(base, (*chain, name), found)
        except OptionError as error:
            raise ValueError(f"{document.where('base')}: {error}") from error
    trusted = not any(map(is_of_a_run, (*chain, name)))
    found.append(replace(document, trusted=trusted))
    if len(found) > _MOST_LAYERS:
        raise ValueError(f"{source} has more than {_MOST_LAYERS} base files")
    return found


def is_of_a_run(file: str) -> bool:
    """Whether a file is in a run folder, which may come from another person."""
    folder = os.path.dirname(os.path.realpath(file))
    return any(os.path.lexists(os.path.join(folder, entry)) for entry in _OF_A_RUN)


def _file(source: str | Path) -> Path:
    """Path of a preset or YAML file; ValueError for an unknown preset."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return path
    if not isinstance(source, str) or f"{source}.yaml" not in _shipped():
        command = _sweep_of(str(source))
        if command:
            raise ValueError(f"preset {shown(source)} is not known, but there is such a row of a sweep: `{command}`")
        refuse_unknown("preset", str(source), presets(), listed_by="`workbench presets`")
    return PRESETS / f"{source}.yaml"


def _sweep_of(name: str) -> str | None:
    """The command for a row of the sweeps that come with the package, such as "laptop/table5/scale-60"; else None."""
    scale, _, row = name.partition("/")
    with contextlib.suppress(ValueError, OSError, AttributeError, TypeError):  # no sweeps here, or a damaged one
        for file in sorted(shipped("reports/sweeps").glob("*.yaml")):
            rows = read_yaml(file).value["rows"] if file.name.startswith(scale) else ()
            if row.replace("/", "-") in [one["name"] for one in rows]:
                return f"workbench sweep reports/sweeps/{file.name} --only {row.replace('/', '-')}"
    return None


def _held(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {shown(value)}"


def as_overrides(overrides: str | Iterable[str]) -> tuple[str, ...]:
    """Overrides as a tuple; a single one may be a string, as papermill's ``-p overrides training.steps=20`` passes it.

    Args:
        overrides: One override as a string, or several.

    Returns:
        The overrides as a tuple of strings.

    Raises:
        ValueError: For anything that is not a string.

    Examples:
        >>> wb.as_overrides("training.steps=20")
        ('training.steps=20',)
    """
    given = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"an override looks like training.steps=500; got {shown(text)}")
    return given


def parse_overrides(overrides: str | Iterable[str]) -> dict[str, Any]:
    """Parse overrides such as "training.steps=500" to nested dictionaries; values are YAML. ValueError if invalid."""
    tree: dict[str, Any] = {}
    for text in as_overrides(overrides):
        key, equals, value = text.removeprefix("--").partition("=")
        if not equals or not key:
            raise ValueError(f"an override looks like training.steps=500; got {shown(text)}")
        section, dot, option = key.partition(".")
        parsed = parse_value(value, named(key), only_text=_only_text(section, option, value))
        if dot:
            if not isinstance(tree.setdefault(section, {}), dict):
                raise ValueError(f"{section} must be a section (a mapping); got {shown(tree[section])}")
            tree[section][option] = parsed
        else:
            tree[section] = parsed
    return tree


def _only_text(section: str, option: str, value: str) -> bool:
    """Whether an option takes this ``value`` as a string only, as far as known without importing plug-ins."""
    if section in PLUGINS:
        return option in PLUGIN_TEXT and value not in NULL
    hint = record_options(Config).get(section)
    if option and isinstance(hint, type) and is_dataclass(hint):
        hint = record_options(hint).get(option)
    return hint is str or (hint == str | None and value not in NULL)


def written(value: Any) -> str:
    """A value as the right side of an override: JSON, which is valid YAML, and numbers as they were written."""
    return value.text if isinstance(value, WrittenInt | WrittenFloat) else json.dumps(value, ensure_ascii=False)


def _expand_recipe(layer: dict[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """``layer`` with the options of its recipe filled in; options that the layer sets itself take precedence.

    The recipe's options apply in a layer that names a recipe, or that changes the objective under a recipe of a lower
    layer. A changed objective also gets the published placement for the backbone. If only the recipe changes, the
    placement stays, as it is the same for both recipes. Naming the current recipe again changes nothing, so overrides
    of lower layers stay in effect, as for a teacher preset that gets its student's recipe.
    """
    merged = _merge(below, {key: mapping(key, layer[key]) if key in PLUGINS else layer[key] for key in layer})
    name = coerce("objective.name", merged.get("objective", {}).get("name", "denoise"), str)
    another = name != below.get("objective", {}).get("name", "denoise")
    recipe = layer.get("recipe", below.get("recipe") if another else None)
    if recipe is None or (recipe == below.get("recipe") and not another):
        return layer
    method = plugin_declared("objective", name)
    recipes = method.recipes
    if not recipes and "recipe" not in layer:  # inherited from a lower layer, but this objective has no recipes
        return layer
    refuse_unknown("recipe", recipe, recipes)
    backbone = coerce("backbone.name", merged.get("backbone", {}).get("name", "sit"), str)
    sizes, options = backbone_sizes(backbone), plugin_options("backbone", backbone)
    size = coerce("backbone.size", merged.get("backbone", {}).get("size", options["size"].default), str)
    refuse_unknown("backbone.size", size, sizes)
    depth = sizes[size].depth
    values = {k: v(depth) if callable(v) else v for k, v in recipes[recipe].items()}
    for key in [key for key in values if key.startswith("backbone.") and key.partition(".")[2] not in options]:
        # An option that is off is dropped for a backbone that does not have it.
        if values.pop(key):
            raise ValueError(f"recipe {recipe!r} turns on {key}, which backbone {backbone!r} does not have")
    if another or below.get("recipe") is None:
        values |= _placement(method.placement, backbone, depth, layer.get("objective", {}))
    return _merge(parse_overrides(f"{key}={written(v)}" for key, v in values.items()), layer)


def placement(table: Mapping[Any, Mapping[str, Any]], backbone: str, depth: int) -> Mapping[str, Any] | None:
    """Options in an objective's ``PLACEMENT`` for a backbone of a given depth; None if there are none.

    Keys are ``(backbone, depth)``, ``depth`` or None. A backbone with keys of its own does not use the ``depth`` keys.
    The key None is the default.
    """
    own = any(isinstance(key, tuple) and key[0] == backbone for key in table)
    return table.get((backbone, depth) if own else depth, table.get(None))


def _placement(
    table: Mapping[Any, Mapping[str, Any]], backbone: str, depth: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Dotted options of the published placement for a backbone; ValueError if it has none and they are not given."""
    options = placement(table, backbone, depth)
    if options is None:
        absent = [key for key in next(iter(table.values())) if key not in given]
        if absent:
            raise ValueError(
                f"there is no published placement for this objective on {backbone} of depth {depth}: "
                f"set {', '.join(f'objective.{key}' for key in absent)}"
            )
        return {}
    return {f"objective.{key}": value for key, value in options.items()}


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``high`` over ``low``; a section with another ``name`` is replaced, as its options do not carry over."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            fresh = "name" in value and "name" in below and value["name"] != below["name"]
            merged[key] = dict(value) if fresh else {**below, **value}
        else:
            merged[key] = value
    return merged
