"""Tables refuse what is not comparable, and their files say what they say."""

import csv
import io
import re
from dataclasses import replace

import pytest

from workbench.reporting.paper.table import (
    Column,
    Number,
    Protocol,
    Row,
    Table,
    difference,
    difference_or_none,
    escaped,
    share,
    to_csv,
    to_latex,
    to_markdown,
)

SDE_50K, ODE_50K, SDE_10K = Protocol(50_000, "sde"), Protocol(50_000, "ode"), Protocol(10_000, "sde")
COLUMNS = (Column("row"), Column("FID", "paper", "50K images"), Column("ours", "ours"), Column("less", "difference"))


def row(name: str, paper, ours=None, less=None, quoted: bool = False) -> Row:
    return Row((name, paper, ours, less), quoted)


def test_one_column_holds_one_protocol():
    first = row("a", Number(1.0, protocol=SDE_50K))
    for other, words in ((SDE_10K, "10,000"), (ODE_50K, "ODE"), (replace(SDE_50K, metric="IS"), "IS")):
        with pytest.raises(ValueError, match=words):
            Table("t", COLUMNS, (first, row("b", Number(2.0, protocol=other))))
    # Different columns may differ, and what is quoted has no known protocol.
    quoted = row("q", Number(3.0, protocol=Protocol(50_000, "unstated")), quoted=True)
    Table("t", COLUMNS, (first, quoted, row("c", None, Number(2.0, protocol=ODE_50K))))


def test_differences_only_of_what_was_measured_alike():
    # 18.5 with interval 18 to 19.5, less 20: -1.5 with -2 to -0.5.
    ours, paper = Number(18.5, 2, 18.0, 19.5, 3, SDE_50K), Number(20.0, protocol=SDE_50K)
    found = difference(ours, paper)
    assert (found.value, found.low, found.high, found.n, found.text) == (-1.5, -2.0, -0.5, 3, "\u22121.50")
    for other in (SDE_10K, ODE_50K, None):
        with pytest.raises(ValueError, match="cannot compare"):
            difference(replace(ours, protocol=other), paper)
        assert difference_or_none(replace(ours, protocol=other), paper) is None
    unstated = Protocol(50_000, "unstated")
    with pytest.raises(ValueError, match="cannot compare"):
        difference(replace(ours, protocol=unstated), replace(paper, protocol=unstated))
    assert share(Number(15.0, protocol=SDE_50K), paper) == -0.25
    with pytest.raises(ValueError, match="relate"):
        share(Number(15.0, protocol=SDE_10K), paper)


@pytest.mark.parametrize("cells", [{"ours": Number(1.0)}, {"less": Number(1.0)}])
def test_a_quoted_row_is_never_compared(cells):
    with pytest.raises(ValueError, match="LDM-4 is only quoted"):
        Table("t", COLUMNS, (row("LDM-4", Number(3.6), quoted=True, **cells),))


def test_rows_are_as_long_as_the_heading_and_protocols_are_real():
    with pytest.raises(ValueError, match="2 cells for 4 columns"):
        Table("t", COLUMNS, (Row(("a", None)),))
    for samples, sampler in ((0, "sde"), (10, "euler")):
        with pytest.raises(ValueError, match="allowed are"):
            Protocol(samples, sampler)


def table() -> Table:
    rows = (
        row("LDM-4 & co", Number(3.6), quoted=True),
        row("50_000 %", Number(1234.5, 1), Number(17.25, 2, 16.5, 18.0, 3), Number(-0.5, 1, signed=True)),
    )
    return Table("Scores of {two} rows.", COLUMNS, rows, notes=("A note.",))


def test_csv_read_back_is_the_numbers():
    lines = list(csv.DictReader(io.StringIO(to_csv(table()))))
    assert [line["row"] for line in lines] == ["LDM-4 & co", "50_000 %"]
    assert [line["quoted"] for line in lines] == ["yes", "no"]
    second = lines[1]
    assert [float(second[key]) for key in ("FID (50K images)", "ours", "ours low", "ours high", "less")] == [
        1234.5, 17.25, 16.5, 18.0, -0.5,
    ]  # fmt: skip
    assert lines[0]["ours"] == lines[0]["ours low"] == ""


def test_markdown_has_a_cell_for_each_column():
    lines = to_markdown(table()).splitlines()
    assert lines[0] == "**Scores of {two} rows.**" and lines[-1].strip() == "A note."
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["row", "FID (50K images)", "ours", "less"]
    assert cells[2:] == [["LDM-4 & co (quoted)", "3.60", "–", "–"], ["50_000 %", "1,234.5", "17.25", "\u22120.5"]]


def test_latex_is_a_booktabs_table_without_stray_commands():
    text = to_latex(table(), "fig-x")
    assert re.findall(r"\\(\w+rule)", text) == ["toprule", "midrule", "bottomrule"]
    assert r"LDM-4 \& co (quoted) & 3.60 & -- & -- \\" in text
    assert r"50\_000 \% & 1,234.5 & 17.25 & $-$0.5 \\" in text
    assert r"\caption{Scores of \{two\} rows. A note.}" in text and r"\label{tab:fig-x}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")} == {3}
    assert escaped("a\\b^~≥1") == r"a\textbackslash{}b\textasciicircum{}\textasciitilde{}$\geq$1"


def test_signs():
    assert [Number(x, 1, signed=True).text for x in (1.0, -0.04, -2.0)] == ["+1.0", "0.0", "\u22122.0"]
    assert Number(1.0, 1, 0.5, 1.5).interval == "0.5 to 1.5" and Number(1.0).interval == ""
