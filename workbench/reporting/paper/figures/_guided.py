"""Tables with guidance, for Tables 2 and 3: five metrics, quoted rows first, one table per backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, Missing, distinct
from workbench.reporting.paper.comparison import Compared, compared
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.scores import unique

METRICS = ("fid", "sfid", "is", "precision", "recall")
_SMALL = 1.5  # SiT's own scale, for runs whose configuration has no guidance

Where = tuple[str, Sequence[int], Path | None, Sequence[str]]  # scale, seeds, root, overrides


def guided_table(
    table: str,
    title: str,
    groups: Mapping[str, str],
    claims: Sequence[tuple[str, str, str]],
    where: Where,
    *,
    guidance_scale: float | None,
    evaluate: bool,
) -> Artifact:
    """The artifact of a table with guidance; quoted rows are in the table of the first group."""
    scale = where[0]
    paper = paper_numbers().tables[table]
    wanted = guidance_scale if guidance_scale is not None or scale == "paper" else _SMALL
    sets: dict[str, Compared] = {}
    for number, (group, name) in enumerate(groups.items()):
        rows = [row for row in paper.rows if row.group == group or (row.quoted and number == 0)]
        plain = next(row.row for row in rows if row.method == "plain")
        bases = {row.row: plain for row in rows if not row.quoted}
        sets[name] = compared(
            table, *where, rows=rows, metrics=METRICS, guidance_scale=wanted, evaluate=evaluate, bases=bases
        )
    plotted = {name: of for name, of in sets.items() if any(of.shares(row.row, "fid") for row in of.rows)}
    return Artifact(
        name=table,
        title=title,
        caption=_caption(paper.title, scale, wanted, sets),
        figures={name: of.chart("fid", "plain") for name, of in plotted.items()},
        alts={name: f"Change of the Frechet distance against plain, with guidance: {name}." for name in plotted},
        tables={name: of.wide_table(METRICS, f"{title}, {_named(groups, name)}.") for name, of in sets.items()},
        claims=tuple(
            next(of for of in sets.values() if other in {row.row for row in of.rows}).claim(text, base, other)
            for text, base, other in claims
        ),
        remarks=_remarks(scale, table),
        runs=distinct(run for of in sets.values() for run in of.found.all),
        missing=unique([*(one for of in sets.values() for one in of.missing), *_absent(scale, table)]),
    )


def _caption(title: str, scale: str, wanted: float | None, sets: Mapping[str, Compared]) -> str:
    scales = "each run's own guidance" if wanted is None else f"guidance scale {wanted:g}"
    measured = "; ".join(f"{name}: {of.models}; {of.how}" for name, of in sets.items())
    return (
        f"{title}, the paper's numbers beside ours ({scale} scale, {scales}). {measured}. Rows marked as quoted were "
        "taken by the paper from others; they are not trained here and not compared."
    )


def _remarks(scale: str, table: str) -> tuple[str, ...]:
    if table == "table3" and scale != "paper":
        return (
            f"At {scale} scale there is one resolution, so Table 3 has no counterpart and only the "
            "paper's numbers are shown.",
        )
    return ("The paper does not say which of the other methods' rows its authors trained themselves.",)


def _absent(scale: str, table: str) -> tuple[Missing, ...]:
    if table != "table3" or scale == "paper":
        return ()
    what = f"a second resolution at {scale} scale, which its images do not have; paper scale has one"
    return (Missing(what, "workbench sweep reports/sweeps/paper-guided.yaml --only table3-sit-xl-2-guided"),)


def _named(groups: Mapping[str, str], name: str) -> str:
    return next(group for group, one in groups.items() if one == name)
