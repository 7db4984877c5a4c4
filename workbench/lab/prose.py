"""Markdown with formulas as HTML that is safe in a page: no raw HTML, images or scripts; formulas are MathML."""

import html
import re
from collections.abc import Mapping
from functools import cache
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

LONGEST = 100_000  # characters of a text
_LONGEST_FORMULA = 2_000  # characters
_DEEPEST_FORMULA = 50  # open braces
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]*)\)")
_ADDRESS = re.compile(r"(https?://|mailto:|#)", re.IGNORECASE)
# Macros can expand without limit, the others set attributes that a page must not have.
_REFUSED = re.compile(r"\\(def|newcommand|renewcommand|providecommand|href|style|class|cssId)(?![A-Za-z])")
_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
_MATHML = {
    *("math", "menclose", "mi", "mmultiscripts", "mn", "mo", "mpadded", "mphantom", "mprescripts", "mrow", "mspace"),
    *("msqrt", "mstyle", "mtable", "mtd", "mtext", "mtr", "none"),
    *_CHILDREN,
}
_ATTRIBUTES = {
    *("accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle"),
    *("fence", "form", "height", "largeop", "linethickness", "lspace", "mathvariant", "maxsize", "minsize"),
    *("movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy"),
    *("symmetric", "voffset", "width", "xmlns"),
}


def to_html(text: str, name: str, inline: bool = False) -> str:
    """HTML of a Markdown text, called `name` in messages; `inline` for a sentence without paragraphs.

    Formulas stand between dollars, or on lines of their own between double dollars. Raw HTML is shown as text, and
    headings are one level lower, because a page has its own title.

    Raises:
        ValueError: For a text that is too long, an image, and a formula that is not LaTeX or has an unknown command.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{name} has {len(text):,} characters; at most {LONGEST:,} are allowed")
    markdown = _markdown()
    try:
        tokens = markdown.parseInline(text) if inline else markdown.parse(text)
        for token in [*tokens, *(child for one in tokens for child in one.children or ())]:
            # An image whose address is none of the web's is left as text.
            left = _IMAGE.search(token.content) if token.type == "text" else None
            if left or token.type == "image":
                address = left[1] if left else str(token.attrGet("src"))
                raise ValueError(f"the image {address!r} cannot be shown, because a page loads no other files")
            if token.type == "link_open":
                token.attrSet("rel", "noopener noreferrer")
            elif token.type in ("heading_open", "heading_close"):
                token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        return markdown.renderer.render(tokens, markdown.options, {}).strip()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def mathml(latex: str, block: bool = False) -> str:
    """MathML of a formula in LaTeX; ValueError if it cannot be read, or has a command that is unknown or refused."""
    shown = repr(latex if len(latex) <= 60 else f"{latex[:60]} …")
    refused = _REFUSED.search(latex)
    if refused:
        raise ValueError(f"the formula {shown} has {refused[0]}, which is not allowed")
    if len(latex) > _LONGEST_FORMULA or latex.count("{") > _DEEPEST_FORMULA * 4 or _depth(latex) > _DEEPEST_FORMULA:
        raise ValueError(
            f"the formula {shown} is too large; at most {_LONGEST_FORMULA:,} characters and {_DEEPEST_FORMULA} levels "
            "of braces are allowed"
        )
    try:
        tree = Converter(display="block" if block else "inline").convert_to_element(latex)
    except Exception as error:  # of many types, most without a text
        raise ValueError(f"the formula {shown} is not LaTeX that can be read: {_words(error)}") from error
    for element in tree.iter():
        element.text, element.tail = (None if of is None else html.unescape(of) for of in (element.text, element.tail))
        if element.tag not in _MATHML:
            raise ValueError(f"the formula {shown} has <{element.tag}>, which is not allowed")
        if len(element) != _CHILDREN.get(element.tag, len(element)):
            raise ValueError(f"the formula {shown} is not LaTeX that can be read: an argument is missing")
        if re.match(r"\\[A-Za-z]", element.text or ""):
            raise ValueError(f"the formula {shown} has {element.text}, which is not known")
        element.attrib = {key: value for key, value in element.attrib.items() if key in _ATTRIBUTES}
    # The converter's own text is not escaped: \text{<script>} would be a script.
    return ElementTree.tostring(tree, encoding="unicode")


class _Markdown(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return bool(_ADDRESS.match(url))


@cache
def _markdown() -> MarkdownIt:
    def formula(latex: str, how: Mapping[str, Any]) -> str:
        return mathml(latex, how["display_mode"])

    markdown = _Markdown("commonmark", {"html": False}).enable("table")
    return markdown.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        allow_blank_lines=False,
        renderer=formula,
    )


def _depth(latex: str) -> int:
    """Most braces that are open at one place."""
    deepest = now = 0
    for character in latex:
        now += {"{": 1, "}": -1}.get(character, 0)
        deepest = max(deepest, now)
    return deepest


def _words(error: Exception) -> str:
    """The name of an error as words: "missing end"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
