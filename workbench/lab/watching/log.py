"""The end of a log as a terminal would show it: bars that draw themselves anew stand there once."""

import os
import re
from pathlib import Path

from workbench.files import open_regular

_LINES, _WIDTH = 12, 400
_TAIL = 16_384  # bytes: enough for the lines, little enough to be read whenever a bar moves
# What moves the cursor or erases a line, other sequences of a terminal, and text between them.
_TOKENS = re.compile(r"\n|\r|\x1b\[(?P<count>\d*)(?P<what>[AK])|\x1b\[[0-9;?]*[A-Za-z]|[^\n\r\x1b]+|\x1b")


def last_shown(file: Path) -> list[str]:
    """The last twelve lines, without colours and empty ones, each of 400 characters at most; none without a log."""
    try:
        with open_regular(file) as log:
            start = max(0, log.seek(0, os.SEEK_END) - _TAIL)
            log.seek(start)
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    if start:  # the first line is not whole, unless all is one
        text = text.partition("\n")[2] or text
    return [line.rstrip()[:_WIDTH] for line in drawn(text) if line.strip()][-_LINES:]


def drawn(text: str) -> list[str]:
    """The lines that `text` leaves on a terminal that knows line feed, return, cursor up and the erasing of a line."""
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
