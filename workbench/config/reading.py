"""A strict YAML subset for configurations: UTF-8, one document, string keys, decimal numbers, limits on size.

Surprising values of YAML 1.1 are avoided: 010 is ten, and 1:30, 0x1F, 1_000, yes and 2024-01-01 are strings, which
numeric options then refuse. Duplicate keys, tags and a second document are errors.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workbench.config.ranges import shown

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 100_000  # aliases count at every use
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?")
_INTEGER = re.compile(r"[-+]?[0-9]{1,100}")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# libyaml's parser, if PyYAML was built with it, is ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """YAML that cannot be read; the message has the line and the ``problem``."""

    def __init__(self, name: str, line: int, problem: str):
        super().__init__(f"{name}, line {line}: {problem}")
        self.problem = problem


class WrittenInt(int):
    """An integer not written in Python's form, such as 010; ``text`` is the original, for string options."""

    text: str

    def __repr__(self) -> str:
        return self.text


class WrittenFloat(float):
    """A float not written in Python's form, such as 1.10 or 1e-4; ``text`` is the original, for string options."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Document:
    """Content of a YAML text, and the line of each key by its path of keys; keys inside lists have no line.

    ``trusted`` is False for a file in a run folder, which may come from another person.
    """

    name: str
    value: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    trusted: bool = True

    def where(self, *keys: str) -> str:
        """ "FILE, line 3" for the innermost of ``keys`` that exists, or only the file name."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return f"{self.name}, line {self.lines[keys[:end]]}"
        return self.name


def read_yaml(path: Path) -> Document:
    """Read a YAML file; FileNotFoundError if it does not exist, ValueError with file and line for other errors."""
    try:
        # Non-blocking, so that a named pipe does not hang.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a regular file")
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, not a YAML file") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes | str, name: str) -> Document:
    """Parse a YAML text, called ``name`` in messages; ValueError with the line of the error."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES:,} bytes, the limit for YAML")
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
        text.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        before = raw[: error.start]
        line = (before.count(b"\n") if isinstance(before, bytes) else before.count("\n")) + 1
        raise YamlError(name, line, "it is not valid UTF-8") from error
    builder = _Builder(name)
    try:
        return builder.build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, str(error.problem or error.context)
        # libyaml has its own depth limit, which it may reach first.
        problem = _TOO_DEEP if "nesting depth" in problem else f"not valid YAML: {' '.join(problem.split())}"
        raise YamlError(name, mark.line + 1 if mark else builder.line, problem) from error
    except yaml.reader.ReaderError as error:
        raise YamlError(name, builder.line, f"not valid YAML: {error.reason}") from error


def parse_value(text: str, name: str, only_text: bool = False) -> Any:
    """Parse the right side of an override of the option ``name``; ValueError naming it.

    With ``only_text`` the text is used as it is, unless it is quoted.
    """
    if not text.strip():
        raise ValueError(f"the value of {name} is empty; write null for none, or leave {name} out")
    if only_text and text[0] not in "\"'":
        return text
    try:
        value = parse_yaml(text, name).value
    except YamlError as error:
        problem = error.problem.removeprefix("not valid YAML: ")
        raise ValueError(f"the value of {name} is not valid YAML: {text[:60]!r} ({problem})") from error
    return text if only_text and not isinstance(value, str) else value


def plain(value: Any) -> Any:
    """A number as a plain int or float; anything else unchanged."""
    return int(value) if isinstance(value, WrittenInt) else float(value) if isinstance(value, WrittenFloat) else value


@dataclass
class _Open:
    """A mapping or list that has not ended yet."""

    value: dict[str, Any] | list[Any]
    path: tuple[str, ...] | None  # None inside a list
    anchor: str | None
    key: str | None = None  # of a mapping, between reading the key and its value
    merged: list[dict[str, Any]] = field(default_factory=list)
    size: int = 1


class _Builder:
    """Builds values from parser events, without recursion, so that depth and size can be limited."""

    def __init__(self, name: str):
        self.name, self.line = name, 1
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.lines: dict[tuple[str, ...], int] = {}
        self.documents, self.root = 0, None

    def build(self, events: Iterable[yaml.Event]) -> Document:
        for event in events:
            if event.start_mark is not None:
                self.line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self._refuse("a second document starts; a file must have one")
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                anchor = str(event.anchor)
                if self._wants_key() or anchor not in self.anchors:
                    self._refuse(f"the alias *{anchor[:60]} is a key, or its anchor is not defined before it")
                self._place(*self.anchors[anchor])
        return Document(self.name, self.root, self.lines)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if self._wants_key():
            self._refuse("a key must be a string; this one is a list or a mapping")
        self._refuse_tag(event)
        if len(self.stack) == MAX_DEPTH:
            self._refuse(_TOO_DEEP)
        path: tuple[str, ...] | None = ()
        if self.stack:
            above = self.stack[-1]
            path = (*above.path, above.key) if above.path is not None and above.key is not None else None
        value: dict | list = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.stack.append(_Open(value, path, event.anchor))

    def _close(self) -> None:
        done = self.stack.pop()
        value = done.value
        if done.merged and isinstance(value, dict):
            value = {key: item for lower in reversed(done.merged) for key, item in lower.items()} | value
        if done.anchor:
            self.anchors[done.anchor] = (value, done.size)
        self._place(value, done.size)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._refuse_tag(event)
        value = _resolved(event.value) if event.implicit[0] else event.value
        if self._wants_key():
            self._key(event.value, value, event.implicit[0])
            return
        if event.anchor:
            self.anchors[event.anchor] = (value, 1)
        self._place(value, 1)

    def _key(self, text: str, value: Any, bare: bool) -> None:
        top = self.stack[-1]
        if not isinstance(value, str):
            self._refuse(f"the key {shown(text or 'null')} is not a string; put it in quotes if it is intended")
        if value in top.value:
            first = self.lines.get((*top.path, value)) if top.path is not None else None
            self._refuse(f"duplicate key {shown(value)}{f', first in line {first}' if first else ''}")
        top.key = value
        if bare and value == "<<":
            if top.merged:
                self._refuse("duplicate key '<<'; use a list instead")
            return
        top.value[value] = None
        if top.path is not None:
            self.lines[(*top.path, value)] = self.line

    def _place(self, value: Any, size: int) -> None:
        """Add a complete value to the innermost open mapping or list."""
        if not self.stack:
            self.root = value
            return
        top = self.stack[-1]
        top.size += size
        if top.size > MAX_VALUES:
            self._refuse(f"it has more than {MAX_VALUES:,} values, aliases included")
        if isinstance(top.value, list):
            top.value.append(value)
            return
        key, top.key = top.key, None
        if key in top.value:
            top.value[key] = value
        else:  # the merge key "<<"
            top.merged = value if isinstance(value, list) else [value]
            if not top.merged or not all(isinstance(item, dict) for item in top.merged):
                self._refuse("<< takes a mapping or a list of mappings")

    def _wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            self._refuse(f"the tag {shown(event.tag)} is not supported; write the value without a tag")

    def _refuse(self, what: str) -> None:
        raise YamlError(self.name, self.line, what)


def _resolved(text: str) -> Any:
    """The value of an unquoted scalar."""
    if text in NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INTEGER.fullmatch(text):
        return _spelled(int(text), text, WrittenInt)
    if NUMBER.fullmatch(text):
        return _spelled(float(text), text, WrittenFloat)
    if _NOT_FINITE.fullmatch(text):
        return _spelled(float(text.replace(".", "")), text, WrittenFloat)
    return text


def _spelled(number: int | float, text: str, kind: type) -> Any:
    if repr(number) == text:
        return number
    written = kind(number)
    written.text = text
    return written
