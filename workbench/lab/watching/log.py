"""The tail of a log as a terminal shows it, with redrawn progress bars collapsed to one."""

import os
import re
from pathlib import Path

from workbench.files import open_regular

_LINES, _WIDTH = 12, 400
_TAIL = 16_384  # bytes: enough for the lines, and quick to read at every update
# Cursor movement and line erasure, other terminal sequences, and the text between them.
_TOKENS = re.compile(r"\n|\r|\x1b\[(?P<count>\d*)(?P<what>[AK])|\x1b\[[0-9;?]*[A-Za-z]|[^\n\r\x1b]+|\x1b")


def last_shown(file: Path) -> list[str]:
    """The last twelve non-empty lines without colours, at most 400 characters each; none without a log."""
    try:
        with open_regular(file) as log:
            start = max(0, log.seek(0, os.SEEK_END) - _TAIL)
            log.seek(start)
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    if start:  # the first line is cut, unless there is only one
        text = text.partition("\n")[2] or text
    return [line.rstrip()[:_WIDTH] for line in drawn(text) if line.strip()][-_LINES:]


def drawn(text: str) -> list[str]:
    """Lines of a terminal after writing `text`; knows line feed, carriage return, cursor up and erase line."""
    lines, row, column = [""], 0, 0
    for token in _TOKENS.finditer(text):
        if token["what"] == "A":
            row = max(0, row - int(token["count"] or 1))
        elif token["what"] == "K":
            lines[row] = "" if token["count"] == "2" else lines[row][:column]
            column = min(column, len(lines[row]))
        elif token[0] == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif token[0] == "\r":
            column = 0
        elif not token[0].startswith("\x1b"):
            lines[row] = lines[row][:column] + token[0] + lines[row][column + len(token[0]) :]
            column += len(token[0])
    return lines
