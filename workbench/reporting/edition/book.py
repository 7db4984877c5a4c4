"""An edition as one PDF, for whoever prints it or sends it on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from fpdf import FPDF
from fpdf.enums import TableBordersLayout
from fpdf.fonts import FontFace
from PIL import Image

from workbench.files import write_atomically
from workbench.lab.palette import PALETTE

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # which knows every sign that the pages use
_MARGIN, _INK, _SOFT = 18, (28, 30, 33), (90, 96, 104)
_ACCENT = tuple(bytes.fromhex(PALETTE[0].removeprefix("#")))
_WIDE_TABLE = 9  # columns from which a table gets a page across


class _Book(FPDF):
    """A4 with page numbers."""

    def footer(self) -> None:
        self.set_y(-12)
        self.set_font("sans", size=8)
        self.set_text_color(*_SOFT)
        self.cell(0, 6, str(self.page_no()), align="C")


def write_book(path: Path, title: str, lead: str, exhibits: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `exhibits`, as `pages` reads them, into one PDF with a table of contents; the pictures are in `folder`."""
    book = _Book(format="A4")
    book.set_title(title)
    book.set_margin(_MARGIN)
    book.set_auto_page_break(True, _MARGIN)
    for style, file in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        book.add_font("sans", style, _FONTS / file)
    book.add_page()
    _text(book, title, 20, "B")
    _text(book, lead, 10, colour=_SOFT)
    book.insert_toc_placeholder(_contents, allow_extra_pages=True)
    for number, exhibit in enumerate(exhibits):
        if number:  # the contents end with a fresh page
            book.add_page(orientation="portrait")
        _exhibit(book, exhibit, folder)
    write_atomically(path, bytes(book.output()))
    return path


def _exhibit(book: _Book, exhibit: Mapping[str, Any], folder: Path) -> None:
    book.start_section(exhibit["title"])
    _text(book, exhibit["title"], 15, "B")
    _text(book, exhibit["caption"], 9, colour=_SOFT)
    for one in exhibit["missing"]:
        _text(book, f"Missing: {one['what']}. {one['command']}", 9)
    for sentence in exhibit["findings"]:
        _text(book, f"•  {sentence}", 9.5)
    for figure in exhibit["figures"]:
        _picture(book, folder / figure["files"]["png"], figure["alt"])
    for table in exhibit["tables"]:
        _table(book, table)


def _text(book: _Book, text: str, size: float | int, style: str = "", colour: tuple[int, int, int] = _INK) -> None:
    book.set_font("sans", style, size)
    book.set_text_color(*colour)
    book.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
    book.ln(2)


def _picture(book: _Book, file: Path, alt: str) -> None:
    """As large as a page allows, on the next one if it does not fit here."""
    with Image.open(file) as picture:
        width, height = picture.size
    scale = min(book.epw / width, 0.7 * book.eph / height)
    if book.will_page_break(scale * height):
        book.add_page(same=True)
    book.image(str(file), w=scale * width, h=scale * height, alt_text=alt)
    book.ln(2)
    _text(book, alt, 8, colour=_SOFT)


def _table(book: _Book, table: Mapping[str, Any]) -> None:
    if len(table["columns"]) >= _WIDE_TABLE:
        book.add_page(orientation="landscape")
    _text(book, table["caption"], 8, colour=_SOFT)
    book.set_font("sans", size=6.5)
    book.set_draw_color(*_SOFT)
    heading = FontFace(emphasis="BOLD", color=_INK)
    left = {*range(table["keys"]), *table["words"]}
    aligned = ["LEFT" if place in left else "RIGHT" for place in range(len(table["columns"]))]
    with book.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES, headings_style=heading, text_align=aligned, line_height=4
    ) as rows:
        for cells in (table["columns"], *table["rows"]):
            rows.row([str(cell) for cell in cells])
    book.ln(3)


def _contents(book: _Book, outline: Sequence[Any]) -> None:
    book.set_font("sans", size=10)
    book.set_x(book.l_margin)
    for section in outline:
        link = book.add_link(page=section.page_number)
        book.set_text_color(*_ACCENT)
        book.cell(book.epw - 12, 7, section.name, link=link)
        book.set_text_color(*_SOFT)
        book.cell(12, 7, str(section.page_number), align="R", link=link, new_x="LMARGIN", new_y="NEXT")
