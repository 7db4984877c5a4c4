"""A table as CSV for programs, Markdown for readers, and LaTeX (booktabs) for a paper."""

import csv
import io
from typing import Any

from workbench.reporting.paper.table import Number, Table

_QUOTED = "quoted"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "–": "--",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "\u202f": r"\,",
    "’": "'",
}


def to_csv(table: Table) -> str:
    """Numbers in full, absent ones empty; with an interval also low and high; the last column says whether quoted."""
    wide = [any(_ranged(row.cells[place]) for row in table.rows) for place in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [
        name
        for heading, ranged in zip(table.headings, wide, strict=True)
        for name in ([heading, f"{heading} low", f"{heading} high"] if ranged else [heading])
    ]
    writer.writerow([*names, _QUOTED])
    for row in table.rows:
        cells = [one for cell, ranged in zip(row.cells, wide, strict=True) for one in _plain(cell, ranged)]
        writer.writerow([*cells, "yes" if row.quoted else "no"])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table under its caption; notes below it."""
    keys, others = table.keys, len(table.columns) - table.keys
    lines = [f"**{table.caption}**", "", _piped(table.headings)]
    lines.append("|" + "---|" * keys + "---:|" * others)
    lines += [_piped(row) for row in table.texts]
    if table.notes:
        lines += ["", *(f"{note}  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table, label: str) -> str:
    """A table environment for ``\\usepackage{booktabs}``; names to the left, numbers to the right."""
    aligned = "l" * table.keys + "r" * (len(table.columns) - table.keys)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(' '.join([table.caption, *table.notes]))}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        " & ".join(map(escaped, table.headings)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escaped, row)) + r" \\" for row in table.texts),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text in which LaTeX sees no command; signs that its fonts lack are spelt."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _piped(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ranged(cell: Any) -> bool:
    return isinstance(cell, Number) and cell.low is not None


def _plain(cell: Any, ranged: bool) -> list[Any]:
    if isinstance(cell, Number):
        known = [cell.value, cell.low, cell.high] if ranged else [cell.value]
        return ["" if value is None else repr(float(value)) for value in known]
    text = "" if cell is None else cell
    return [text, "", ""] if ranged else [text]
