"""Pages of the documentation that are made from the code, as a hook of mkdocs: options, commands and the API.

Nothing that this file makes is committed. `pages` gives the Markdown of each page, for the site and for its tests.
"""

import ast
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import workbench
from workbench import plugins
from workbench.__main__ import COMMANDS
from workbench.cli.arguments import Names, OneOf
from workbench.config import Config, plugin_class, plugin_options, presets, record_options
from workbench.config.checks import PLUGINS
from workbench.config.ranges import OfDepth, Range
from workbench.data.encoders import ENCODERS
from workbench.lab.lesson import Lesson

ROOT = Path(workbench.__file__).parents[1]
PICTURES = (  # of reports/, shown in pages
    "demo/overview.png",
    "scenes/fig1/guides.png",
    "bench/edits-class.png",
    "bench/lens.png",
)
LESSONS = "<!-- lessons -->"  # in lessons.md
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
_DEPTHS = (12, 28)  # of the smaller and the largest backbones, where a recipe depends on the depth
_NAMES = {"data.name": plugins.names("data"), "objective.encoder": ENCODERS}  # text that is one of these
_TWO_WORDS = ("queue", "vae", "classifier")  # commands that are written as two words


def on_config(config: Any) -> Any:
    """Add the page about extensions to the navigation, where there is one."""
    if (Path(config.docs_dir) / "extending.md").is_file():
        listed = any("extending.md" in entry.values() for entry in config.nav if isinstance(entry, dict))
        if not listed:
            config.nav.insert(-3, {"Extending": "extending.md"})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the pictures of the reports."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name in PICTURES:
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(ROOT / "reports" / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the list of lessons into the page about them."""
    return markdown.replace(LESSONS, lessons()) if page.file.src_uri == "lessons.md" else markdown


def pages() -> dict[str, str]:
    """The Markdown of every generated page, by file name."""
    return {"configuration.md": configuration(), "commands.md": commands(), "api.md": api()}


# Lessons


def lessons() -> str:
    """What each lesson is about, with its page if there is one: `workbench lesson` writes it, this hook does not."""
    parts = []
    for file in sorted((ROOT / "docs" / "lessons").glob("*.md")):
        lesson = Lesson.read(file)
        about, page = lesson.introduction.partition("\n\n")[0], file.with_suffix(".html")
        where = f"[Open the lesson](lessons/{page.name})" if page.is_file() else f"`{page.name}`"
        parts.append(f"**{lesson.title}** · {where}\n:   {' '.join(about.split())}")
    command = "`workbench lesson docs/lessons/*.md --into docs/lessons`"
    return "\n\n".join([*parts, f"All pages are made from the shipped runs, without training, by {command}."])


# Configuration


def configuration() -> str:
    """Every option of a configuration: default, allowed values and the reason beside it."""
    parts = [
        "# Configuration reference",
        "A configuration is layered: defaults, then a base preset, a preset or YAML file, and overrides on the command "
        "line. An option is written with its section: `training.steps=500`. `workbench presets` lists the presets, "
        f"of which there are {len(presets())}; a YAML file names its base with `base: demo/plain`.",
        "This page is generated from the records in `workbench/config/records.py` and the constructors of the "
        "backbones and objectives. An unknown option is refused with the nearest known name, and a value outside its "
        "range with the range.",
        "## Top level",
        f"{Config.__doc__}",
        _table(_record_rows(Config, "", but=_sections())),
    ]
    for section, kind in _sections().items():
        parts += [f"## {section}"]
        if section in PLUGINS:
            parts += [f"`{section}.name` chooses the {section}, whose options stand beside it."]
            for name in plugins.names(section):
                parts += _plugin(section, name)
        else:
            parts += [_prose(kind.__doc__), _table(_record_rows(kind, f"{section}."))]
    return "\n\n".join(parts) + "\n"


def _sections() -> dict[str, type]:
    hints = record_options(Config)
    return {key: hint for key, hint in hints.items() if is_dataclass(hint)}


def _record_rows(kind: type, prefix: str, but: Iterable[str] = ()) -> list[tuple[str, ...]]:
    notes, hints = notes_of(kind), record_options(kind)
    rows = []
    for field in fields(kind):
        if field.name not in but:
            default = field.default if field.default is not MISSING else inspect.Parameter.empty
            rows.append((f"{prefix}{field.name}", default, hints[field.name], notes.get(field.name, "")))
    return [_row(*row) for row in rows]


def _plugin(section: str, name: str) -> list[str]:
    kind = plugin_class(section, name)
    module = inspect.getmodule(kind)
    parts = [f"### {section}.name = {name}", _prose(inspect.getdoc(module))]
    if kind.__doc__:
        parts.append(_prose(kind.__doc__))
    notes = notes_of(kind.__init__)
    options = plugin_options(section, name)
    if options:
        rows = [(f"{section}.{key}", one.default, one.annotation, notes.get(key, "")) for key, one in options.items()]
        parts.append(_table([_row(*row) for row in rows]))
    sizes = getattr(kind, "sizes", None)
    if sizes:
        lines = [f"| `{size}` | {one.depth} | {one.width} | {one.heads} |" for size, one in sizes.items()]
        parts.append("\n".join(["| size | depth | width | heads |", "|---|---|---|---|", *lines]))
    recipes = getattr(module, "RECIPES", {})
    for recipe, switches in recipes.items():
        shown = ", ".join(f"`{key}={_switch(value)}`" for key, value in switches.items())
        parts.append(f"`recipe={recipe}` sets {shown}.")
    return parts


def _switch(value: Any) -> str:
    if not callable(value):
        return _value(value)
    return " or ".join(f"{_value(value(depth))} at depth {depth}" for depth in _DEPTHS)


# Commands


def commands() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Command line reference",
        "Overrides are dotted options of the [configuration](configuration.md), such as `training.steps=500`. A run is "
        "named by its folder, its name or the beginning of either, or by the first six digits of its fingerprint.",
        "Exit codes: 0 when all was done, 2 for a mistake, with one sentence on stderr, 3 when an older checkpoint had "
        "to be used, 130 when interrupted.",
        "This page is generated from the commands in `workbench/cli`. `workbench COMMAND --help` says the same.",
    ]
    for name, kind in COMMANDS.items():
        first, _, second = name.partition("-")
        spoken = f"{first} {second}" if second and first in _TWO_WORDS else name
        parts += [f"## workbench {spoken}", _prose(kind.__doc__)]
        rows = _command_rows(kind)
        if rows:
            parts.append(_table(rows, what="argument"))
    return "\n\n".join(parts) + "\n"


def _command_rows(kind: type) -> list[tuple[str, str, str, str]]:
    import tyro

    notes, hints = notes_of(kind), typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in fields(kind):
        hint = hints[field.name]
        written = field.name.replace("_", "-")
        shown = f"{written.upper()}" if _marked(hint, tyro.conf.Positional) else f"--{written}"
        default = field.default if field.default is not MISSING else inspect.Parameter.empty
        rows.append(_row(shown, default, hint, notes.get(field.name, "")))
    return rows


def _marked(hint: Any, mark: Any) -> bool:
    """Whether an annotation carries ``mark``, which tyro writes as ``Annotated[kind, mark]``."""
    marks = getattr(mark, "__metadata__", (mark,))
    if typing.get_origin(hint) is Annotated:
        return any(one in marks for one in hint.__metadata__) or _marked(typing.get_args(hint)[0], mark)
    return False


# API


def api() -> str:
    """One entry for each public name, read from the source by mkdocstrings."""
    parts = [
        "# Python API",
        "`import workbench as wb` is quick: each name is imported when it is first used. Conventions: time is the "
        "paper's (t = 0 is data, t = 1 is noise), layers count from 1 and 0 is the patch embedding, and axes are "
        "`b` batch, `c` channels, `h w` latent grid, `n` images or tokens, `d` width. Every example runs as a test.",
    ]
    for name, module in workbench._PUBLIC.items():
        options = f"::: {module}.{name}\n    options:\n      heading: wb.{name}"
        if name[0].isupper():  # a class: its own methods too
            methods = vars(getattr(workbench, name))
            public = [method for method in methods if inspect.isfunction(methods[method]) and method[0] != "_"]
            options += f"\n      members: [{', '.join(public)}]"
        parts.append(options)
    return "\n\n".join(parts) + "\n"


# Notes, values and types


@cache
def notes_of(thing: type | Callable[..., Any]) -> Mapping[str, str]:
    """What the source says about each field of a class or each argument of a function.

    That is the text below a field, or else the comment behind it and the lines of comment right above it.
    """
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return {}
    tree = ast.parse(source).body[0]
    behind, alone = _comments(source)
    found = {}
    if isinstance(tree, ast.ClassDef):
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = after.value.value if _is_text(after) else _comment_of(node, behind, alone)
                found[node.target.id] = " ".join(text.split())
    elif isinstance(tree, ast.FunctionDef):
        for node in (*tree.args.args, *tree.args.kwonlyargs):
            found[node.arg] = _comment_of(node, behind, alone)
    return {key: text for key, text in found.items() if text}


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those behind code, and those that are a line of their own."""
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own = not token.line[: token.start[1]].strip()
            (alone if own else behind)[token.start[0]] = token.string.lstrip("# ")
    return behind, alone


def _comment_of(node: ast.AST, behind: Mapping[int, str], alone: Mapping[int, str]) -> str:
    above, line = [], node.lineno - 1
    while line in alone:
        above.insert(0, alone[line])
        line -= 1
    return " ".join([*above, *([behind[node.end_lineno]] if node.end_lineno in behind else [])])


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _row(name: str, default: Any, hint: Any, note: str) -> tuple[str, str, str, str]:
    shown = "required" if default is inspect.Parameter.empty else f"`{_value(default)}`"
    one_of = " or ".join(f"`{one}`" for one in _NAMES.get(name, ()))
    return f"`{name}`", shown, one_of or allowed(hint), note


def _table(rows: Iterable[tuple[str, ...]], what: str = "option") -> str:
    lines = [f"| {what} | default | allowed | note |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _prose(text: str | None) -> str:
    """A docstring as Markdown."""
    return inspect.cleandoc(text or "").replace("``", "`")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return str(value) if str(value) else '""'


def allowed(hint: Any) -> str:
    """The values that an annotation allows, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([allowed(arguments[0]), *filter(None, map(_mark, hint.__metadata__))])
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if one is type(None) else allowed(one) for one in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list, each: {allowed(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(allowed(one) for one in arguments)}]"
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _mark(mark: Any) -> str:
    if isinstance(mark, Range):
        return str(mark)
    if isinstance(mark, OfDepth):
        return "1 to the depth of the backbone"
    if isinstance(mark, OneOf):
        return "one of " + ", ".join(f"`{one}`" for one in mark.allowed)
    return f"of a {mark.value}" if isinstance(mark, Names) else ""
