"""The browser's side of the panels: the files that views use too, and those of one panel."""

import json
from functools import cache
from pathlib import Path

_JS = Path(__file__).parent.parent / "js"
_SHARED = ("core", "controls", "saving")


@cache
def module(*names: str) -> str:
    """A module in the shape of anywidget: the shared files, then these, the last of which exports `render`."""
    styles = [(_JS / name).read_text() for name in ("style.css", "watching.css")]
    parts = [(_JS / f"{name}.js").read_text() for name in (*_SHARED, *names)]
    return "\n".join([f"const STYLE = {json.dumps(''.join(styles))};", *parts])
