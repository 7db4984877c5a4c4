"""Check option values: convert types, refuse unknown names, and look up plug-ins."""

import contextlib
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from workbench import plugins
from workbench.config.declared import Declared, Size, declared
from workbench.config.ranges import OptionError, Range, named, shown
from workbench.config.reading import NUMBER, WrittenFloat, WrittenInt

PLUGINS = ("backbone", "objective")  # sections whose keys are the options of a plug-in
PLUGIN_TEXT = ("name", "size", "teacher", "encoder")  # their options of type str
_LISTED = 20  # longest list of allowed values that a message shows in full
_SINGLE = 3.4028234e38  # largest number in single precision
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def plugin_class(section: str, name: str) -> type:
    """The class of a backbone or objective, from this package, an entry point or a module path.

    Raises OptionError for an unknown name, with the closest known one, and for a module that cannot be used.
    """
    return load_plugin(section, name)


def load_plugin(kind: str, name: str) -> Any:
    """`plugins.load`, but with OptionError, and the closest known name, for an unknown name."""
    with _refusing(kind, name):
        return plugins.load(kind, name)


@contextlib.contextmanager
def _refusing(kind: str, name: str) -> Iterator[None]:
    """Turn errors of `plugins` and `declared` into OptionError."""
    option = plugins.KINDS[kind].option
    try:
        yield
    except plugins.PluginError as error:
        if not plugins.is_known(kind, name):
            refuse_unknown(option, name, plugins.names(kind))
        raise OptionError(option, f"{error}") from error
    except ValueError as error:
        raise OptionError(option, f"{error}") from error


def check_plugin(kind: str, name: str, option: str | None = None) -> None:
    """Raise OptionError for a module path that must not be imported; nothing is imported.

    With the ``option`` that gives the name, also for an unknown name.
    """
    if option and not plugins.is_known(kind, name):
        refuse_unknown(option, name, plugins.names(kind))
    try:
        plugins.check(kind, name)
    except plugins.PluginError as error:
        raise OptionError(plugins.KINDS[kind].option, f"{error}") from error


def refuse_unknown(what: str, value: Any, allowed: Iterable[Any], listed_by: str | None = None) -> None:
    """Raise ValueError, with the closest allowed value, unless ``value`` is allowed.

    The message lists the allowed values if they are few, or else names the command ``listed_by``.
    """
    allowed = [str(option) for option in allowed]
    if isinstance(value, str | int | float) and str(value) in allowed:
        return
    near = difflib.get_close_matches(str(value)[:200], allowed, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if len(allowed) <= _LISTED:
        hint += f" Allowed: {', '.join(allowed) or 'none'}"
    elif listed_by:
        hint += f" {listed_by} lists them"
    elif not near:
        hint += f" There are {len(allowed)} allowed values, such as {', '.join(allowed[:5])}"
    raise OptionError(what, f"{what} {shown(value)} is not known{hint}")


def refuse_unknown_keys(section: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError for the first key of ``given`` that is not allowed in ``section``."""
    allowed = list(allowed)
    for key in given:
        try:
            refuse_unknown(f"option {section}.{named(key)}:" if section else "option", key, allowed)
        except ValueError as error:
            raise OptionError(f"{section}.{key}" if section else str(key), f"{error}") from error


def coerce(what: str, value: Any, hint: Any) -> Any:
    """Convert ``value`` to the type of ``hint``: int to float, list to tuple, a number to the text as written.

    Raises ValueError, with the value and what is allowed, for another type, a number outside the ``Range`` of
    ``hint``, a non-finite number, and empty text.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [item for item in hint.__metadata__ if isinstance(item, Range)]
        try:
            value = coerce(what, value, arguments[0])
        except OptionError as error:
            raise OptionError(what, "; ".join([f"{error}", *(f"allowed: {item}" for item in ranges)])) from error
        for item in ranges:
            item.check(what, value)
        return value
    if origin is Literal:
        value = "no" if value is False and "no" in arguments else value  # YAML 1.1 reads an unquoted no as false
        refuse_unknown(what, value, arguments)
        return next(argument for argument in arguments if str(argument) == str(value))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kind, *others = (argument for argument in arguments if argument is not type(None))
        words = [word for other in others if typing.get_origin(other) is Literal for word in typing.get_args(other)]
        if isinstance(value, str) and value in words:
            return str(value)
        try:
            return coerce(what, value, kind)
        except OptionError as error:
            raise OptionError(what, "; ".join([f"{error}", *(f"also allowed: {word}" for word in words)])) from error
    if origin is tuple:
        return _tuple(what, value, arguments)
    if hint is float:
        return _float(what, value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if hint is str and isinstance(value, str | int | float):
        return _text(what, value)
    if hint is bool and isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if hint not in (int, str) and isinstance(value, hint):
        return value
    raise OptionError(what, f"{what} must be {getattr(hint, '__name__', hint)}; got {shown(value)}")


def _tuple(what: str, value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise OptionError(what, f"{what} must be a list; got {shown(value)}")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(value):
        raise OptionError(what, f"{what} must be a list of {len(kinds)}; got {shown(value)}")
    return tuple(coerce(what, item, kind) for item, kind in zip(value, kinds, strict=True))


def _float(what: str, value: Any) -> float:
    """A finite number, also from a string such as "1e-4", which YAML 1.1 does not read as a number."""
    written = isinstance(value, str) and NUMBER.fullmatch(value)
    if isinstance(value, bool) or not (written or isinstance(value, int | float)):
        raise OptionError(what, f"{what} must be float; got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not abs(number) <= _SINGLE:  # NaN is not
        raise OptionError(what, f"{what} must be a finite number in single precision; got {shown(value)}")
    return number


def _text(what: str, value: str | int | float) -> str:
    """A string; numbers and booleans are converted back to the text as written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value.text if isinstance(value, WrittenInt | WrittenFloat) else str(value)
    if not text.strip():
        raise OptionError(what, f"{what} is empty; leave it out, or give it a value")
    if _CONTROL.search(text):
        raise OptionError(what, f"{what} contains a control character; got {shown(text)}")
    return text


def plugin_options(section: str, name: str) -> Mapping[str, inspect.Parameter]:
    """Options of a backbone or objective: the keyword arguments of its constructor that the run does not supply."""
    options = plugin_declared(section, name).options
    for key, option in options.items():
        if not _is_option_type(option.annotation):
            kinds = "int, float, str, bool, Literal, tuple, Annotated with a Range, or one of these or None"
            raise OptionError(
                f"{section}.{key}", f"{section}.{key} of {name!r} has a type that no option can have; allowed: {kinds}"
            )
    return options


def plugin_declared(section: str, name: str) -> Declared:
    """The declarations of a backbone or objective; OptionError as in `load_plugin`, or if they cannot be read."""
    with _refusing(section, name):
        return declared(section, name)


def backbone_sizes(name: str) -> Mapping[str, Size]:
    """Sizes of a backbone by name; OptionError as in `load_plugin`."""
    return plugin_declared("backbone", name).sizes


def _is_option_type(hint: Any) -> bool:
    """Whether `coerce` supports a type annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _is_option_type(arguments[0])
    if origin in (tuple, types.UnionType, typing.Union):
        return all(item in (type(None), Ellipsis) or _is_option_type(item) for item in arguments)
    return origin is Literal or hint in (int, float, str, bool)


def mapping(section: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(section, f"{section} must be a section (a mapping); got {shown(value)}")
    return value
