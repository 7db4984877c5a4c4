"""Ranges of numeric options, as annotations beside the options: ``steps: Annotated[int, Range(at_least=1)]``."""

import reprlib
import typing
from dataclasses import dataclass
from typing import Annotated, Any

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlong = 40


class OptionError(ValueError):
    """An option that is unknown or has a wrong value; ``option`` is its dotted name."""

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Range:
    """The values that an option may have: between two ends, each included ("at") or not ("above", "below")."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None

    def __contains__(self, value: int | float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = {
            "at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below,
        }  # fmt: skip
        return " and ".join(f"{word} {end:,}" for word, end in ends.items() if end is not None)

    def check(self, what: str, value: Any) -> None:
        """OptionError that gives the range, unless ``value`` is in it; NaN is in none."""
        if value not in self:
            raise OptionError(what, f"{what} must be {self}; got {shown(value)}")


@dataclass(frozen=True)
class OfDepth:
    """The range of an option that names a layer: 1 to the depth of the configuration's backbone."""

    def check(self, what: str, value: int, depth: int) -> None:
        if not 1 <= value <= depth:
            raise OptionError(what, f"{what} {shown(value)} is outside 1..{depth}, the layers of the backbone")


def shown(value: Any) -> str:
    """``repr`` cut to a length that fits into a sentence."""
    try:
        return _REPR.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"


def named(key: str) -> str:
    """A key as it is, or in quotes and cut if it would not stand in a sentence."""
    return key if key.isprintable() and len(key) <= 120 else shown(key)


def layers_of(hint: Any, value: Any) -> list[int]:
    """The layers that an option's value names, by its annotation."""
    if value is None:
        return []
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        named = any(isinstance(mark, OfDepth) for mark in hint.__metadata__)
        return [value] if named else layers_of(arguments[0], value)
    if isinstance(value, tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return [layer for kind, item in zip(kinds, value, strict=True) for layer in layers_of(kind, item)]
    return [layer for kind in arguments if kind is not type(None) for layer in layers_of(kind, value)]


# Ranges that several options share. The upper ends lie far beyond what is trained: they stop a slip of the finger.
Steps = Annotated[int, Range(at_least=1, at_most=10**12)]
FromStep = Annotated[int, Range(at_least=0, at_most=10**12)]
Count = Annotated[int, Range(at_least=1, at_most=10**9)]
Seed = Annotated[int, Range(at_least=0, at_most=2**63 - 2)]  # a generator of PyTorch takes 63 bits; heads have seed + 1
Share = Annotated[float, Range(at_least=0, at_most=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Layer = Annotated[int, OfDepth()]
Width = Annotated[int, Range(at_least=1, at_most=65_536)]
Patch = Annotated[int, Range(at_least=1, at_most=1024)]
