"""Values as the types asked for, names among those allowed, and plug-ins found by their file."""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

# Sections whose keys are those of a file found by name, and what each file must export.
PLUGINS = {
    "backbone": ("workbench.backbones", "Backbone"),
    "objective": ("workbench.objectives", "Objective"),
}


def plugin_class(section: str, name: str) -> type:
    """The class that ``workbench/<section>s/<name>.py`` exports: the folder is the registry."""
    package, exported = PLUGINS[section]
    refuse_unknown(f"{section}.name", name, plugin_names(section))
    return getattr(importlib.import_module(f"{package}.{name}"), exported)


def plugin_names(section: str) -> list[str]:
    """What ``backbone.name`` or ``objective.name`` can be: the files that export such a class."""
    package, exported = PLUGINS[section]
    folder = Path(__file__).parent.parent / package.rpartition(".")[2]
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "base")
    return [stem for stem in names if f"class {exported}(" in (folder / f"{stem}.py").read_text()]


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


def plugin_options(section: str, name: str) -> dict[str, inspect.Parameter]:
    """The options of a backbone or objective: keyword arguments of its constructor that the run does not supply."""
    constructor = plugin_class(section, name)
    supplied = getattr(constructor, "SUPPLIED", ())
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(constructor).parameters.values())
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in supplied}


def mapping(section: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{section} must be a section with keys of its own; got {value!r}")
    return value
