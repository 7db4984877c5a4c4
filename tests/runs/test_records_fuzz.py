"""Generated content in every file of a run: every reader ends well or with a ValueError, and the other run is whole."""

import json
import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from workbench.cli.runs import _cells
from workbench.cli.terminal import on_one_line
from workbench.cli.watch import view
from workbench.config import load_config
from workbench.lab.watching.state import panel_state
from workbench.lab.watching.table import table_rows
from workbench.runs.curves import follow
from workbench.runs.history import read_history, settings_of
from workbench.runs.index import runs_table
from workbench.runs.shelf import read_notes
from workbench.runs.store import Run, find_runs, prepare_run
from workbench.training.mailbox import Mailbox, last_number

KEYS = [
    "step",
    "loss",
    "seconds",
    "metric",
    "value",
    "layer",
    "what",
    "option",
    "new",
    "command",
    "processes",
    "devices",
    "fingerprint",
    "created",
    "latents",
    "origin",
    "state",
    "host",
    "steps",
    "rate",
    "answer",
    "number",
    "result",
    "updated",
    "tags",
    "notes",
    "commands",
    "by",
    "time",
    "options",
    "objective",
    "backbone",
    "training",
    "name",
    "size",
    "seed",
]
FILES = [
    "config.yaml",
    "provenance.json",
    "status.json",
    "metrics.jsonl",
    "history.jsonl",
    "results.jsonl",
    "notes.json",
]
OTHERS = ["control.json", ".curves"]
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**400, 1e308, 0.5])
WORDS = ["running", "finished", "set", "log_every", "00112233445566aa", "\ud800", "[/b]", "\x1b"]
TEXTS = st.text(max_size=6) | st.sampled_from(WORDS)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=8),
    max_leaves=20,
)
RECORDS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=10)


def written(value: object) -> bytes:
    return json.dumps(value).encode()


@st.composite
def contents(draw) -> bytes:
    """Lines of JSON, most of them mappings with keys that a run has, perhaps cut short or with a byte changed."""
    lines = draw(st.lists((RECORDS | VALUES).map(written), max_size=4))
    content = b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))
    if content and draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(content) - 1))
        content = content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 5)) :]
    return content


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    made = [prepare_run(load_config("demo/plain", [f"training.seed={seed}"]), root) for seed in (0, 1)]
    for run in made:
        run.append("metrics.jsonl", {"step": 5, "loss": 0.5, "seconds": 3.0})
    return made, {name: (made[0].folder / name).read_bytes() for name in FILES if (made[0].folder / name).is_file()}


@pytest.mark.fuzz
@given(data=st.data())
def test_generated_files_end_well_or_with_a_value_error(runs, data):
    (bad, other), whole = runs
    follower, mailbox = follow(bad), Mailbox(bad.folder, 0)
    changed = data.draw(st.dictionaries(st.sampled_from([*FILES, *OTHERS]), contents(), min_size=1, max_size=3))
    for name in [*FILES, *OTHERS]:
        content = changed.get(name, whole.get(name))
        (bad.folder / name).unlink(missing_ok=True)
        if content is not None:
            (bad.folder / name).write_bytes(content)
    index = data.draw(st.none() | st.dictionaries(st.sampled_from(FILES), VALUES, max_size=3))
    if index is not None:
        found = os.stat(bad.folder / "provenance.json")
        mark = [found.st_mtime_ns, found.st_size, found.st_ino]
        kept = {name: {"mark": mark, "value": value} for name, value in index.items()}
        (bad.folder.parent / ".index.json").write_text(json.dumps({"version": 2, "runs": {bad.name: kept}}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = {row.name: row for row in runs_table(bad.folder.parent)}
        assert not rows[other.name].damage and rows[other.name].loss == 0.5
        for row in rows.values():
            assert "\x1b" not in "".join(map(on_one_line, _cells(row, [])))
        assert other in find_runs(bad.folder.parent)
        fresh = Run(bad.folder)
        for read in (
            lambda: settings_of(load_config("demo/plain"), read_history(bad.folder)).at(10),
            lambda: read_notes(bad),
            lambda: fresh.rewind(3),
            lambda: (fresh.metrics, fresh.results),
            lambda: (fresh.status, fresh.provenance, fresh.config),
            follower.new,
        ):
            try:
                read()
            except ValueError as error:
                assert "\n" not in str(error)
        mailbox.new()
        last_number(bad.folder)
        console = Console(width=100, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
        console.print(view([fresh, other], 100))
        assert "step 0 of" in console.export_text()
        sent = [table_rows(bad.folder.parent), *(panel_state(run) for run in (fresh, other))]
        json.dumps(sent, allow_nan=False, ensure_ascii=False).encode()
