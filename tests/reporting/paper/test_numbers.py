"""The paper's numbers: against each other, against its own sums, and refused where the schema is broken."""

import pytest
import yaml

from workbench.config import presets
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import preset_of
from workbench.shipped import shipped

NUMBERS = paper_numbers()


def value(table: str, row: str, metric: str = "fid") -> float:
    return NUMBERS.tables[table].row(row).values[metric]


def test_every_table_is_whole():
    # As many as are printed: 28 FIDs, 14 rows of up to five, 7 rows of up to five, 4 x 2, 18 x 2.
    counts = {name: sum(len(row.values) for row in table.rows) for name, table in NUMBERS.tables.items()}
    assert counts == {"table1": 28, "table2": 60, "table3": 32, "table4": 8, "table5": 36}
    assert {name: table.samples for name, table in NUMBERS.tables.items()} == {
        "table1": 50_000, "table2": 50_000, "table3": 50_000, "table4": 10_000, "table5": 10_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "row", "metric", "printed"),
    [
        ("table1", "sit-b-plain-120", "fid", 31.45),
        ("table1", "sit-l-guided", "fid", 8.74),
        ("table1", "sit-xl-layersync", "fid", 8.80),
        ("table1", "lightningdit-xl-guided", "fid", 3.55),
        ("table2", "mdtv2-xl", "is", 314.7),
        ("table2", "sit-xl-layersync", "recall", 0.60),
        ("table2", "lightningdit-xl-guided", "sfid", 4.11),
        ("table3", "vdm", "is", 278.1),
        ("table3", "sit-xl-guided-100", "fid", 2.00),
        ("table4", "by-plain", "is", 63.83),
        ("table5", "teacher-300k", "is", 71.32),
        ("table5", "weight-0.3", "fid", 23.08),
    ],
)
def test_numbers_copied_by_hand(table, row, metric, printed):
    assert value(table, row, metric) == printed


def test_the_text_follows_from_the_tables():
    for size, stated in (("b", "relative reduction of FID, SiT-B/2"), ("xl", "relative reduction of FID, SiT-XL/2")):
        reduction = 1 - value("table1", f"sit-{size}-guided") / value("table1", f"sit-{size}-plain")
        assert round(reduction, 3) == NUMBERS.stated_value("section 4.2", stated)
    # One run in two tables.
    assert value("table4", "guided") == value("table5", "default")
    assert NUMBERS.tables["table4"].row("by-plain").values == NUMBERS.tables["table5"].row("by-plain").values
    # Which the paper contradicts itself in.
    assert NUMBERS.stated_value("section 4.3", "FID at weight 0.5, running text") == value("table5", "default") + 1


def test_hours_follow_from_rates():
    for row in NUMBERS.time:
        assert sum(phase.steps / phase.rate for phase in row.phases) / 3600 == pytest.approx(row.hours, abs=0.011)
    assert {row.row: sum(p.steps for p in row.phases) for row in NUMBERS.time} == {
        "plain": NUMBERS.time_steps, "repa": NUMBERS.time_steps, "guided": NUMBERS.time_steps, "teacher": 200_000,
    }  # fmt: skip


def test_quoted_rows_are_those_nobody_trains_here_and_every_preset_exists():
    quoted = {row.label for table in NUMBERS.tables.values() for row in table.rows if row.quoted}
    assert quoted == {"LDM-4", "U-ViT-H/2", "MDTv2-XL/2", "MaskDiT", "SD-DiT", "DiT-XL/2", "VDM++"}
    named = {
        f"{scale}/{preset_of(scale, preset).preset}"
        for rows in (*(table.rows for table in NUMBERS.tables.values()), NUMBERS.time)
        for row in rows
        for scale, preset in row.presets.items()
    }
    assert named <= set(presets())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["tables"]["table1"]["rows"][0].update(sampler="sdee"), "did you mean 'sde'"),
        (lambda t: t["tables"]["table1"]["rows"][0].update(metod="plain"), "did you mean 'method'"),
        (lambda t: t["tables"]["table1"]["rows"][0]["values"].update(fid="31"), "fid is '31'"),
        (lambda t: t["tables"]["table1"]["rows"][0]["values"].update(fod=3.0), "'fid'"),
        (lambda t: t["tables"]["table1"]["rows"][0].update(quoted=True), "either quoted"),
        (lambda t: t["tables"]["table4"]["rows"].append(t["tables"]["table4"]["rows"][0]), "row plain twice"),
        (lambda t: t["tables"]["table4"].update(samples="10K"), "samples is '10K'"),
        (lambda t: t.pop("time"), "lacks time"),
        (lambda t: t.update(tables=[1]), "tables must be keys with values; got [1]"),
        (lambda t: t.update(metrics=None), "metrics must be keys with values"),
        (lambda t: t["tables"]["table4"].update(rows=5), "table4: rows must be a list; got 5"),
        (lambda t: t["tables"]["table4"].update(guided="maybe"), "table4: guided must be bool"),
        (lambda t: t["tables"]["table4"]["rows"][0].update(presets={"laptop": [3]}), "presets.laptop must be"),
        (lambda t: t["tables"]["table4"]["rows"][0]["values"].update(fid=float("nan")), "fid is .nan"),
        (lambda t: t["time"]["rows"][0].update(phases=[]), "time of plain needs phases"),
        (lambda t: t["time"]["rows"][0].update(phases=[{"steps": 3, "rate": 0.0}]), "a rate above 0"),
        (lambda t: t.update(stated={"a": 1}), "stated must be a list"),
        (lambda t: t.update({5: 1}), "the key '5' is not a string"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_the_place(tmp_path, change, words):
    tree = yaml.safe_load(shipped("reports/paper.yml").read_text())
    change(tree)
    file = tmp_path / "numbers.yml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="numbers.yml") as error:
        paper_numbers(file)
    assert words in str(error.value)


def test_what_is_not_stated_is_refused():
    with pytest.raises(ValueError, match="Fig. 3"):
        NUMBERS.stated_value("Fig. 3", "t")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"- 1", b"a: [", b"[" * 5000, None])
def test_what_is_no_such_file_is_refused_with_its_name(tmp_path, content):
    file = tmp_path / "numbers.yml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"numbers\.yml cannot be used: .+"):
        paper_numbers(file)
