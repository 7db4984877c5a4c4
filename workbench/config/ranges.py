"""Ranges of numeric options, given as annotations: ``steps: Annotated[int, Range(at_least=1)]``."""

import reprlib
import typing
from dataclasses import dataclass
from typing import Annotated, Any

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlong = 40


class OptionError(ValueError):
    """An unknown option or an invalid value; ``option`` is the dotted name."""

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Range:
    """Allowed values of an option; bounds are inclusive ("at_least", "at_most") or exclusive ("above", "below")."""

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
        """Raise OptionError, with the range, unless ``value`` is in it; NaN never is."""
        if value not in self:
            raise OptionError(what, f"{what} must be {self}; got {shown(value)}")


@dataclass(frozen=True)
class OfDepth:
    """The range of an option that names a layer: 1 to the depth of the configuration's backbone."""

    def check(self, what: str, value: int, depth: int) -> None:
        if not 1 <= value <= depth:
            raise OptionError(what, f"{what} {shown(value)} is outside 1..{depth}, the layers of the backbone")


def shown(value: Any) -> str:
    """``repr``, shortened to fit into a message."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return "a number of thousands of digits"


def named(key: str) -> str:
    """A key for a message: as it is, or quoted and shortened if it is long or not printable."""
    return key if key.isprintable() and len(key) <= 120 else shown(key)


def layers_of(hint: Any, value: Any) -> list[int]:
    """Layer numbers in an option's value, found by its type annotation."""
    if value is None:
        return []
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        is_layer = any(isinstance(item, OfDepth) for item in hint.__metadata__)
        return [value] if is_layer else layers_of(arguments[0], value)
    if isinstance(value, tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return [layer for kind, item in zip(kinds, value, strict=True) for layer in layers_of(kind, item)]
    return [layer for kind in arguments if kind is not type(None) for layer in layers_of(kind, value)]


# Ranges that several options share. The upper bounds are far beyond realistic values; they catch typing errors.
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
