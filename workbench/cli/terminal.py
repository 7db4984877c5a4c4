"""What commands print: the text of users as it is, without anything in it that a terminal would obey."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
from rich.status import Status
from rich.text import Text

import workbench

# Control characters but line feed and tab, what turns the direction of text, and halves of characters, as in names of
# files that are not UTF-8.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_LINES = re.compile(r"[\t\n]")


def shown(text: str) -> str:
    """Text for a terminal, on as many lines as it has: control characters are written as escapes such as \\x1b."""
    return _OBEYED.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Text for a cell of a table: line feeds and tabs are escapes too."""
    return _LINES.sub(_escaped, shown(text))


class Console(rich.console.Console):
    """rich's console, for which text is text: square brackets and words between colons are printed as they are."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        return super().status(Text(shown(status)) if isinstance(status, str) else status, **options)


@contextmanager
def warnings_as_sentences() -> Iterator[set[type[Warning]]]:
    """The package's own warnings inside are sentences on stderr, each once; gives the kinds that came."""
    from workbench.runs.checkpoints import FellBack

    came, said, other = set(), set(), warnings.showwarning
    package = str(Path(workbench.__file__).parent)

    def show(message: Any, category: type[Warning], filename: str, *more: Any) -> None:
        came.add(category)
        ours = issubclass(category, FellBack) or (category is UserWarning and filename.startswith(package))
        if not ours:
            other(message, category, filename, *more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"workbench: {shown(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", FellBack)
        warnings.showwarning = show
        yield came


def _escaped(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()
