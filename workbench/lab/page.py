"""The browser's side of a view: the module that draws it, and a page that holds module and data and needs no kernel."""

import base64
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent
_SCATTER = ("points", "markers", "plot", "tip", "gestures", "table", "picture")
_HEAT = ("cells", "colours", "grid", "scale", "picture")
_ORDER = (
    *("core", "controls", "saving", "linear", "components", "maps", "samples"),
    *(f"scatter_{part}" for part in _SCATTER),
    "scatter",
    *(f"heat_{part}" for part in _HEAT),
    "heat",
    "main",
)
_EXPORT = "export default { render };"


@cache
def module() -> str:
    """The widget's module, in the shape of anywidget: its files in their order, the styles as a constant."""
    style = json.dumps((_HERE / "js" / "style.css").read_text())
    parts = [(_HERE / "js" / f"{name}.js").read_text() for name in _ORDER]
    return "\n".join([f"const STYLE = {style};", *parts])


def page(meta: dict[str, Any], data: bytes, state: dict[str, Any]) -> str:
    """One HTML file in which a view works offline; its policy forbids every request."""
    script = module().rstrip()
    assert script.endswith(_EXPORT) and "</script" not in script
    loader = Environment(loader=FileSystemLoader(_HERE), autoescape=False, undefined=StrictUndefined)
    return loader.get_template("page.html.j2").render(
        title=_escaped(meta["title"]),
        script=script.removesuffix(_EXPORT),
        meta=_json({**meta, "offline": True}),
        state=_json(state),
        data=base64.b64encode(zlib.compress(data, 9)).decode(),
    )


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
