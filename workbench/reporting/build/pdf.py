"""A report as one PDF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from fpdf import FPDF
from fpdf.enums import TableBordersLayout
from fpdf.fonts import FontFace
from fpdf.outline import OutlineSection
from PIL import Image

from workbench.files import write_atomically
from workbench.lab.palette import PALETTE

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu has every character that the pages use
_MARGIN, _INK, _SOFT = 18, (28, 30, 33), (90, 96, 104)
_ACCENT = tuple(bytes.fromhex(PALETTE[0].removeprefix("#")))
_WIDE_TABLE = 9  # columns from which a table gets a landscape page


class _Pdf(FPDF):
    """A4 with page numbers."""

    def footer(self) -> None:
        self.set_y(-12)
        self.set_font("sans", size=8)
        self.set_text_color(*_SOFT)
        self.cell(0, 6, str(self.page_no()), align="C")


def write_pdf(path: Path, title: str, lead: str, artifacts: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `artifacts`, as read by `pages`, into one PDF with a table of contents; their files are in `folder`."""
    pdf = _Pdf(format="A4")
    pdf.set_title(title)
    pdf.set_margin(_MARGIN)
    pdf.set_auto_page_break(True, _MARGIN)
    for style, file in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        pdf.add_font("sans", style, _FONTS / file)
    pdf.add_page()
    _text(pdf, title, 20, "B")
    _text(pdf, lead, 10, colour=_SOFT)
    pdf.insert_toc_placeholder(_contents, allow_extra_pages=True)
    for number, artifact in enumerate(artifacts):
        if number:  # the contents end with a new page
            pdf.add_page(orientation="portrait")
        _artifact(pdf, artifact, folder)
    write_atomically(path, bytes(pdf.output()))
    return path


def _artifact(pdf: _Pdf, artifact: Mapping[str, Any], folder: Path) -> None:
    pdf.start_section(artifact["title"])
    _text(pdf, artifact["title"], 15, "B")
    _text(pdf, artifact["caption"], 9, colour=_SOFT)
    for one in artifact["missing"]:
        _text(pdf, f"Missing: {one['what']}. {one['command']}", 9)
    for sentence in artifact["findings"]:
        _text(pdf, f"•  {sentence}", 9.5)
    for figure in artifact["figures"]:
        _picture(pdf, folder / figure["files"]["png"], figure["alt"])
    for table in artifact["tables"]:
        _table(pdf, table)


def _text(pdf: _Pdf, text: str, size: float | int, style: str = "", colour: tuple[int, int, int] = _INK) -> None:
    pdf.set_font("sans", style, size)
    pdf.set_text_color(*colour)
    pdf.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
    pdf.ln(2)


def _picture(pdf: _Pdf, file: Path, alt: str) -> None:
    """Place a picture as large as a page allows, on the next page if it does not fit."""
    with Image.open(file) as picture:
        width, height = picture.size
    scale = min(pdf.epw / width, 0.7 * pdf.eph / height)
    if pdf.will_page_break(scale * height):
        pdf.add_page(same=True)
    pdf.image(str(file), w=scale * width, h=scale * height, alt_text=alt)
    pdf.ln(2)
    _text(pdf, alt, 8, colour=_SOFT)


def _table(pdf: _Pdf, table: Mapping[str, Any]) -> None:
    if len(table["columns"]) >= _WIDE_TABLE:
        pdf.add_page(orientation="landscape")
    _text(pdf, table["caption"], 8, colour=_SOFT)
    pdf.set_font("sans", size=6.5)
    pdf.set_draw_color(*_SOFT)
    heading = FontFace(emphasis="BOLD", color=_INK)
    left = {*range(table["keys"]), *table["words"]}
    aligned = ["LEFT" if index in left else "RIGHT" for index in range(len(table["columns"]))]
    with pdf.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES, headings_style=heading, text_align=aligned, line_height=4
    ) as rows:
        for cells in (table["columns"], *table["rows"]):
            rows.row([str(cell) for cell in cells])
    pdf.ln(3)


def _contents(pdf: FPDF, outline: list[OutlineSection]) -> None:
    pdf.set_font("sans", size=10)
    pdf.set_x(pdf.l_margin)
    for section in outline:
        link = pdf.add_link(page=section.page_number)
        pdf.set_text_color(*_ACCENT)
        pdf.cell(pdf.epw - 12, 7, section.name, link=link)
        pdf.set_text_color(*_SOFT)
        pdf.cell(12, 7, str(section.page_number), align="R", link=link, new_x="LMARGIN", new_y="NEXT")
