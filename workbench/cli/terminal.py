"""Console output of the commands: text from users and files is escaped so that it cannot control the terminal."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import rich.console
from rich.status import Status
from rich.text import Text

import workbench

# Control characters except line feed and tab, direction marks of bidirectional text, and surrogates, as in file names
# that are not UTF-8.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_LINES = re.compile(r"[\t\n]")


def shown(text: str) -> str:
    """Escape control characters, such as \\x1b, but keep line feeds and tabs."""
    return _CONTROL.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Escape control characters, line feeds and tabs, as for a cell of a table."""
    return _LINES.sub(_escaped, shown(text))


class Console(rich.console.Console):
    """rich's console without markup or emoji codes, which escapes control characters."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        return super().status(Text(shown(status)) if isinstance(status, str) else status, **options)


@contextmanager
def warnings_as_sentences() -> Iterator[set[type[Warning]]]:
    """Print the package's own warnings to stderr, each once; yields the set of categories that occurred."""
    from workbench.runs.checkpoints import FellBack

    categories: set[type[Warning]] = set()
    printed: set[str] = set()
    before = warnings.showwarning
    package = str(Path(workbench.__file__).parent)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        categories.add(category)
        ours = issubclass(category, FellBack) or (category is UserWarning and filename.startswith(package))
        if not ours:
            before(message, category, filename, lineno, file, line)
        elif str(message) not in printed:
            printed.add(str(message))
            print(f"workbench: {shown(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", FellBack)
        warnings.showwarning = show
        yield categories


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
