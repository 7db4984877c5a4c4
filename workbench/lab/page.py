"""HTML page with a view, its data and its script, which works without a kernel and without a network."""

import base64
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent


@cache
def assets() -> tuple[str, str]:
    """The JavaScript bundle and the style sheet of views, which every page contains."""
    script, style = ((_HERE / "static" / name).read_text(encoding="utf-8") for name in ("views.js", "views.css"))
    assert "</script" not in script and "</style" not in style
    return script, style


def page(meta: dict[str, Any], data: bytes, state: dict[str, Any]) -> str:
    """The page of a view; its content security policy forbids all requests.

    If panes of other packages are shown, their modules are in the page too, and the policy allows it to load them.
    """
    script, style = assets()
    loader = Environment(loader=FileSystemLoader(_HERE), autoescape=False, undefined=StrictUndefined)
    return loader.get_template("page.html.j2").render(
        title=_escaped(meta["title"]),
        script=script,
        style=style,
        meta=_json({**meta, "offline": True}),
        state=_json(state),
        modules=bool(meta["scripts"]),
        data=base64.b64encode(zlib.compress(data, 9)).decode(),
    )


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
