"""HTML page with a view, its data and its script, which works without a kernel and without a network."""

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workbench import __version__
from workbench.lab.definitions import Definition, definitions
from workbench.lab.lesson import Step
from workbench.lab.made import Made
from workbench.lab.prose import to_html
from workbench.runs.store import machine

_HERE = Path(__file__).parent


@cache
def assets() -> tuple[str, str]:
    """The JavaScript bundle and the style sheet of views, which every page contains."""
    script, style = ((_HERE / "static" / name).read_text(encoding="utf-8") for name in ("views.js", "views.css"))
    assert "</script" not in script and "</style" not in style
    return script, style


@dataclass(frozen=True)
class Texts:
    """What a page says: all texts are Markdown except the title; `steps` have the whole states that they lead to."""

    title: str = ""
    introduction: str = ""
    controls: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[tuple[Step, dict[str, Any]]] = ()
    made: Made = ()
    code: str = ""  # or the command that made the page


def page(meta: dict[str, Any], data: bytes, state: dict[str, Any], texts: Texts | None = None) -> str:
    """The page of a view; its content security policy forbids all requests.

    If panes of other packages are shown, their modules are in the page too, and the policy allows it to load them.
    ValueError for a control that the view does not have, and for Markdown that cannot be shown.
    """
    texts = texts or Texts()
    script, style = assets()
    steps = [{"state": reached, "sets": list(step.state)} for step, reached in texts.steps]
    loader = Environment(loader=FileSystemLoader(_HERE), autoescape=False, undefined=StrictUndefined)
    return loader.get_template("page.html.j2").render(
        title=escape(texts.title or meta["title"]),
        heading=escape(texts.title),
        introduction=to_html(texts.introduction, "introduction"),
        steps=[to_html(step.text, f"step {number}") for number, (step, _) in enumerate(texts.steps, start=1)],
        words=_words(meta, texts.controls),
        made=[(escape(name), escape(text)) for name, text in (*texts.made, ("written", _written()))],
        code=escape(texts.code),
        script=script,
        style=style,
        meta=_json({**meta, "offline": True, "steps": steps}),
        state=_json(state),
        modules=bool(meta["scripts"]),
        data=base64.b64encode(zlib.compress(data, 9)).decode(),
    )


def _words(meta: Mapping[str, Any], controls: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The id, the name and the HTML of what a page says about each of its words and controls."""
    known = {one.key: one for one in definitions(meta)}
    for name in (*meta["axes"], *meta["options"]):  # of views of other packages
        known.setdefault(name, Definition(name, meta["axes"].get(name, {}).get("label", name), ""))
    refused = [name for name in controls if name not in known]
    if refused:
        raise ValueError(f"controls has {refused[0]!r}; allowed are {', '.join(known)}")
    found = []
    for name, one in known.items():
        text = " ".join(filter(None, (one.text, controls.get(name, "").strip())))
        if text:
            found.append((re.sub(r"\W+", "-", name), escape(one.term), to_html(text, f"controls.{name}", inline=True)))
    return found


def _written() -> str:
    commit = machine()["commit"]
    day = datetime.now(UTC).date().isoformat()
    return f"{day} by diffusion-workbench {__version__}{f' ({commit})' if commit else ''}"


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
