"""Costs of the training console: lags, pairs and verdicts by hand, what is skipped, and the whole command, tiny."""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import preloaded
import psutil
import pytest
from console import (
    DRAWN,
    LISTED,
    OPENED,
    SLOWDOWN,
    TrainingConsole,
    _copies,
    _first_state,
    _listing,
    _long_run,
    _skipped,
    bench_console,
    missing_browser,
)
from costs import Block, compared, lags, paired, timed, verdict
from trained import Line, between

from workbench.config import load_config
from workbench.runs.store import find_runs

REPOSITORY = Path(__file__).parents[2]
TINY = (
    *("data.name=digits", "data.source=auto", "data.limit=64", "vae.name=identity", "backbone.patch=16"),
    *("backbone.size=pico", "training.batch=8"),
)
EVERYWHERE = {
    "runs listed, first time": LISTED,
    "runs listed, indexed": LISTED,
    "long run, first state": OPENED,
    "slowdown, kernel": SLOWDOWN,
    "trainer's CPU, kernel": None,
    "panels' CPU, kernel": None,
    "pause answered": 2.0,
    "stop answered": 2.0,
    "control poll": None,
}
BROWSER = {"line to curve drawn": DRAWN, "slowdown, browser": SLOWDOWN, "long run, first paint": OPENED}
MORE = {"trainer's CPU, browser": None, "panels' CPU, browser": None}


def measure(tmp_path: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """The command in a folder of its own, in which it is to leave nothing but the report."""
    environment = {**os.environ, "WORKBENCH_QUEUE": str(tmp_path / "queue"), "OMP_NUM_THREADS": "1", **more}
    # A process that is forked would not be found by its command line below.
    environment |= {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", preloaded.FRESH: "1"}
    command = [sys.executable, str(Path(__file__).with_name("console.py")), *TINY, "--seconds", "1", *arguments]
    # Not in `tmp_path`: Chromium's socket lies there too, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as own:
        environment["TMPDIR"] = own
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=tmp_path)
        left = [path.name for path in Path(own).iterdir() if path.name.startswith("workbench-bench-")]
        training = [one.pid for one in psutil.process_iter(["cmdline"]) if own in " ".join(one.info["cmdline"] or ())]
        assert not left and not training, (left, training)
    return done


def rows_of(done: subprocess.CompletedProcess, report: Path) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert [len(load) for load in found["load"]] == [3, 3] and {"torch", "python"} <= found["versions"].keys()
    assert (found["seconds"], found["logged"], found["listed"], found["overrides"]) == (1, 500, 3, list(TINY))
    rows = {row["what"]: row for row in found["console"]}
    for what in rows:
        assert re.search(rf"^ +{re.escape(what)} ", done.stdout, re.MULTILINE), done.stdout
    return rows


def check(rows: dict[str, dict], goals: dict[str, float | None]) -> None:
    for what, goal in goals.items():
        row = rows[what]
        # An answer may take as long as a step, on a machine that is busy.
        assert row["goal"] == goal or (what.endswith("answered") and row["goal"] > goal), row
        assert (row["met"] == "") == (goal is None) and math.isfinite(row["value"])
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
        if row["unit"] in ("s", "µs"):
            assert row["value"] > 0 and (row["p95"] is None or row["value"] <= row["p95"])


def test_a_line_counts_until_a_picture_has_it_or_a_later_one():
    # Steps 1 and 2 are in the picture of step 2, step 3 in that of step 5, step 6 in none.
    drawn = [(2, 10.5), (5, 11.0)]
    assert lags([(1, 10.0), (2, 10.25), (3, 10.5), (6, 10.75)], drawn).tolist() == [0.5, 0.25, 0.5, math.inf]
    assert lags([(1, 10.0)], []).tolist() == [math.inf]


def test_a_block_is_of_the_steps_between_two_lines():
    # 4 steps in 2 s of 3 CPU seconds: half a second and 0.75 CPU seconds each.
    assert between(Line(10.0, 6, 1.0), Line(12.0, 10, 4.0), True, 0.1) == Block(True, 4, 0.5, 0.75, 0.1)


def blocks(*sides: tuple[bool, float, float, float]) -> list[Block]:
    return [Block(watched, 10, step, cpu, panels) for watched, step, cpu, panels in sides]


def test_neighbours_are_paired_whichever_came_first():
    without, watched, later, earlier = blocks(
        *((one, float(step), 1.0, 0.0) for step, one in enumerate((False, True, True, False), 1))
    )
    assert paired([without, watched, later, earlier]) == [(without, watched), (earlier, later)]


def test_what_panels_cost_by_hand():
    found = blocks((False, 1.0, 2.0, 0.0), (True, 1.01, 2.0, 0.1), (True, 2.06, 4.2, 0.3), (False, 2.0, 4.0, 0.1))
    step, trainer, panels = compared(found, "kernel", 2.0, "2 pairs")
    # 1 % and 3 %: mean 2, and with one degree of freedom t = 12.706, standard error 1.
    assert (step.value, step.low, step.high) == pytest.approx((2, 2 - 12.706, 2 + 12.706), abs=1e-3)
    assert (step.what, step.met, step.goal, step.blocks) == ("slowdown, kernel", "unclear", 2.0, tuple(found))
    assert "a step 1.5e+03 ms" in step.about and "spread by 47.1 % / 48.4 %" in step.about
    assert trainer.value == pytest.approx(2.5) and panels.value == pytest.approx(15.0)  # 0 % and 5 %; 10 % and 20 %
    assert trainer.met == panels.met == "" and not trainer.blocks


def test_a_goal_inside_the_interval_is_unclear():
    assert [verdict(2.0, 1.0, high, low) for low, high in ((0.5, 1.5), (0.0, 2.1), (2.1, 3.0))] == [
        "yes", "unclear", "no",
    ]  # fmt: skip
    assert [verdict(0.5, value) for value in (0.5, 0.51, None)] == ["yes", "no", ""] and verdict(None, 1.0) == ""
    row = timed("pause answered", "s", [1.0, 2.0, 3.0], 2.0, "")
    assert (row.value, row.p95, row.met) == (2.0, pytest.approx(2.9), "yes")
    assert timed("stop answered", "s", [3.0], 2.0, "").p95 is None


def test_made_runs_are_listed_and_opened(tmp_path):
    config = load_config("demo/plain", TINY)
    first, indexed = _listing(config, tmp_path / "many", 4)
    assert len(find_runs(tmp_path / "many")) == len({run.fingerprint for run in find_runs(tmp_path / "many")}) == 4
    assert first.about == indexed.about == "4 runs" and min(first.value, indexed.value) > 0
    run = _long_run(config, tmp_path / "long", 30)
    assert [record["step"] for record in run.metrics] == list(range(1, 31))


def test_a_long_run_is_opened_before_anybody_has_read_it(tmp_path):
    runs = _copies(_long_run(load_config("demo/plain", TINY), tmp_path, 30), 3)
    assert len({run.folder for run in runs}) == 3 and all(len(run.metrics) == 30 for run in runs)
    kept = [run.folder / ".curves" for run in runs]
    assert not any(file.exists() for file in kept)
    row = _first_state(runs)
    assert all(file.exists() for file in kept)  # read now, each once
    assert 0 < row.value <= row.p95 and row.about == "30 logged steps, not read before, 3 times"


def test_what_is_refused(tmp_path):
    for options in ({"seconds": 0.5}, {"logged": 1}, {"listed": 0}):
        with pytest.raises(ValueError, match="allowed are 1 or more, 2 or more, 1 or more"):
            next(bench_console(**options))
    with pytest.raises(ValueError, match="cannot write 'figures.txt'; a report ends in .json"):
        TrainingConsole(report=tmp_path / "figures.txt").execute()


def check_left_out(rows: dict[str, dict]) -> None:
    for what, goal in BROWSER.items():
        assert (rows[what]["value"], rows[what]["goal"], rows[what]["met"]) == (None, goal, "")
        assert "skipped: there is no browser here" in rows[what]["about"]


def test_without_a_browser_its_rows_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    said = missing_browser()
    assert "apt-get install chromium" in said
    rows = {row.what: asdict(row) for row in _skipped(said)}
    assert rows.keys() == BROWSER.keys()
    check_left_out(rows)


@pytest.mark.slow
def test_the_whole_measurement(tmp_path, has_browser):
    report = tmp_path / "console.json"
    done = measure(tmp_path, "--logged", "500", "--listed", "3", "--report", str(report))
    rows = rows_of(done, report)
    assert rows.keys() == EVERYWHERE.keys() | BROWSER.keys() | (MORE.keys() if has_browser else set())
    check(rows, EVERYWHERE | (BROWSER | MORE if has_browser else {}))
    if has_browser:
        assert "chromium" in json.loads(report.read_text())["versions"]
    else:
        check_left_out(rows)
    assert len(rows["slowdown, kernel"]["blocks"]) == 4  # two pairs at least
    assert rows["control poll"]["value"] < 1000
