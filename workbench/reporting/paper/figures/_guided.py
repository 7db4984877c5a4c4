"""What Tables 2 and 3 share: five metrics with guidance, quoted rows first, a table a backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.reporting.paper.artifact import Artifact, Missing, distinct
from workbench.reporting.paper.comparison import Compared, compared
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.scores import condensed

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
    """The artifact of a table with guidance: quoted rows stand in the first group's table."""
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
    drawn = {name: of for name, of in sets.items() if any(of.shares(row.row, "fid") for row in of.rows)}
    return Artifact(
        name=table,
        title=title,
        caption=_caption(paper.title, scale, wanted, sets),
        figures={name: of.chart("fid", "plain") for name, of in drawn.items()},
        alts={name: f"Change of the Frechet distance against plain, with guidance: {name}." for name in drawn},
        tables={name: of.wide_table(METRICS, f"{title}, {_named(groups, name)}.") for name, of in sets.items()},
        claims=tuple(
            next(of for of in sets.values() if other in {row.row for row in of.rows}).claim(text, base, other)
            for text, base, other in claims
        ),
        said=_said(scale, table),
        made_of=distinct(run for of in sets.values() for run in of.found.all),
        missing=condensed([*(one for of in sets.values() for one in of.missing), *_absent(scale, table)]),
    )


def _caption(title: str, scale: str, wanted: float | None, sets: Mapping[str, Compared]) -> str:
    scales = "each run's own guidance" if wanted is None else f"guidance scale {wanted:g}"
    measured = "; ".join(f"{name}: {of.models}; {of.how}" for name, of in sets.items())
    return (
        f"{title}, the paper's numbers beside ours ({scale} scale, {scales}). {measured}. Rows marked as quoted were "
        "taken by the paper from others, are not trained here and are compared with nothing."
    )


def _said(scale: str, table: str) -> tuple[str, ...]:
    if table == "table3" and scale != "paper":
        return (
            f"At {scale} scale there is one resolution, 32 x 32 pixels, so Table 3 has no counterpart: the paper's "
            "numbers stand alone.",
        )
    return ("Which of the rows of others the paper's authors trained themselves the paper does not say.",)


def _absent(scale: str, table: str) -> tuple[Missing, ...]:
    if table != "table3" or scale == "paper":
        return ()
    what = f"a second resolution at {scale} scale, which its images do not have; at paper scale it is there"
    return (Missing(what, "workbench sweep reports/sweeps/paper-guided.yaml --only table3-sit-xl-2-guided"),)


def _named(groups: Mapping[str, str], name: str) -> str:
    return next(group for group, one in groups.items() if one == name)
