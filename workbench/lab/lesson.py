"""What a page says beside its pictures, and lesson files: Markdown, with the rest of a lesson as YAML at its top.

A lesson file begins with a block of YAML between two lines of ``---``; what follows is the introduction. A file without
such a block is an introduction alone.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workbench.config import parse_yaml, refuse_unknown
from workbench.files import read_file

LONGEST = 200_000  # bytes of a lesson file
MOST_STEPS = 30
_STEP = ("text", "state")
_FENCE = "---"


@dataclass(frozen=True)
class Step:
    """A step of a lesson: a text, and the values that it sets, in the form of `View.state`."""

    text: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Lesson:
    """The texts and the initial state of a page, and the view that it shows; `runs` and `view` may be missing."""

    title: str = ""
    introduction: str = ""
    controls: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    view: str = ""
    runs: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, Any]:
        """The texts as arguments of `View.save_html`."""
        return {
            "title": self.title,
            "introduction": self.introduction,
            "controls": self.controls,
            "steps": self.steps,
        }

    @classmethod
    def read(cls, file: str | Path) -> "Lesson":
        """Read a lesson file. ValueError, naming the file, if it cannot be read or has something unknown."""
        raw = read_file(Path(file), LONGEST)
        try:
            text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not valid UTF-8") from error
        head, introduction = _parted(text, str(file))
        given = (parse_yaml(head, str(file)).value if head.strip() else None) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{file} begins with {_kind(given)} between lines of ---; allowed is a mapping")
        known = ("title", "view", "run", "runs", "arguments", "state", "controls", "steps")
        for key in given:
            refuse_unknown(f"{file}: the key", key, known)
        if "run" in given and "runs" in given:
            raise ValueError(f"{file} has run and runs; allowed is one of them")
        return cls(
            title=_text(given.get("title", ""), f"{file}: title"),
            introduction=introduction,
            controls=_texts(given.get("controls", {}), f"{file}: controls"),
            state=state_of(given.get("state", {}), f"{file}: state"),
            steps=steps_of(given.get("steps", []), f"{file}: "),
            view=_text(given.get("view", ""), f"{file}: view"),
            runs=_names(given, str(file)),
            arguments=_mapping(given.get("arguments", {}), f"{file}: arguments"),
        )


def steps_of(given: Any, where: str = "") -> tuple[Step, ...]:
    """Steps, from mappings with `text` and `state`; ValueError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"{where}steps is {_kind(given)}; allowed is a list of steps, each with text and state")
    if len(given) > MOST_STEPS:
        raise ValueError(f"{where}steps has {len(given)} steps; at most {MOST_STEPS} are allowed")
    found = []
    for number, step in enumerate(given, start=1):
        what = f"{where}step {number}"
        if isinstance(step, Step):
            found.append(step)
            continue
        if not isinstance(step, Mapping):
            raise ValueError(f"{what} is {_kind(step)}; allowed is a mapping with text and state")
        for key in step:
            refuse_unknown(f"{what}: the key", key, _STEP)
        text, state = _text(step.get("text", ""), f"{what}: text"), state_of(step.get("state", {}), f"{what}: state")
        if not text.strip() or not state:
            raise ValueError(f"{what} has no {'state' if text.strip() else 'text'}; a step has a text and a state")
        found.append(Step(text, state))
    return tuple(found)


def state_of(given: Any, what: str) -> dict[str, Any]:
    """Values of a state; options have texts, so that an unquoted true of YAML is the option "true"."""
    return {key: str(of).lower() if isinstance(of, bool) else of for key, of in _mapping(given, what).items()}


def check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """ValueError for an argument that the view `make` does not have, or of another type."""
    _, *parameters = inspect.signature(make).parameters.values()
    hints = typing.get_type_hints(make)
    known = [of.name for of in parameters if of.name not in ("progress", "data") and of.kind is not of.VAR_KEYWORD]
    for name, value in arguments.items():
        refuse_unknown(f"{where}: the argument", name, known)
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{where}: the argument {name} is {value!r}; allowed is {_in_words(hints[name])}")


def _parted(text: str, name: str) -> tuple[str, str]:
    """The YAML at the top of a text, and the rest."""
    lines = text.split("\n")
    if lines[0].rstrip() != _FENCE:
        return "", text
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == _FENCE:
            # The empty line in place of the first fence keeps the numbers of lines in messages.
            return "\n".join(["", *lines[1:number]]), "\n".join(lines[number + 1 :]).strip()
    raise ValueError(f"{name} begins with ---, but no second line of --- ends that block")


def _names(given: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if "run" in given:
        return (_text(given["run"], f"{name}: run"),)
    runs = given.get("runs", [])
    if not isinstance(runs, list):
        raise ValueError(f"{name}: runs is {_kind(runs)}; allowed is a list of runs")
    return tuple(_text(run, f"{name}: runs") for run in runs)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_kind(value)}; allowed is text, in quotes where YAML reads it as something else")
    return value


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{what} is {_kind(value)}; allowed is a mapping of names to values")
    return {key: _plain(of) for key, of in value.items()}


def _texts(value: Any, what: str) -> dict[str, str]:
    return {key: _text(of, f"{what}.{key}") for key, of in _mapping(value, what).items()}


def _plain(value: Any) -> Any:
    """Numbers as Python writes them, also inside lists."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, int) else float(value)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin is Literal:
        return value in arguments
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        several = isinstance(value, list | tuple)
        kinds = [kind for kind in arguments if kind is not Ellipsis]
        pair = origin is tuple and Ellipsis not in arguments
        return several and all(_fits(one, kinds[0]) for one in value) and (not pair or len(value) == len(kinds))
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} numbers"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {_in_words(arguments[0])}"
    return {int: "a whole number", float: "a number", str: "text", type(None): "null"}.get(hint, str(hint))


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: repr(value)}
    return names.get(type(value), repr(value)[:60])
