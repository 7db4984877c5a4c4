"""The main job: its report, and that killed or stopped and started again it ends with the same numbers."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from workbench.config import load_config
from workbench.reporting.demo import demo_configs, estimate_seconds, run_demo
from workbench.runs.store import Run, find_runs
from workbench.training.pace import Pace

TINY = (
    "data.limit=120",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=8",
    "training.optimizer=adamw",
    "training.steps=12",
    "training.batch=4",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.milestone_every=6",
    "sampling.steps=2",
    "sampling.count=20",
)
# In training after the first checkpoint is complete, but well before the last one. The plain run is asked to stop.
STOPPED = "train plain"
MOMENTS = {"train teacher": (4, 8), "train plain": (4, 8), "train guided": (4, 8), "score": (0, 3)}
PROGRESS = re.compile(r"(?P<stage>[a-z ]+): (?P<done>\d+)/\d+")


def start(root: Path) -> subprocess.Popen:
    environment = {**os.environ, "WORKBENCH_RUNS": str(root / "runs"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["WORKBENCH_QUEUE"] = f"{root}-queue"  # with the pace that was measured, which is no file of the demo
    command = [sys.executable, "-m", "workbench", "demo", *TINY, "--report", str(root / "out" / "demo.html")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def told(process: subprocess.Popen, until: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """The stages and counts that a demo prints, up to the count ``until`` of a stage or to its end."""
    lines, found = [], []
    for line in process.stdout:
        lines.append(line)
        match = PROGRESS.match(line)
        if match:
            found.append((match["stage"], int(match["done"])))
            if until and found[-1][0] == until[0] and found[-1][1] >= until[1]:
                return found
    assert until is None and process.wait() == 0, "".join(lines)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of threads sums in another order
    with threadpool_limits(1):
        list(run_demo(root / "runs", root / "out" / "demo.html", overrides=TINY))
    torch.set_num_threads(before)
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, dict[str, int], list[list[tuple[str, int]]]]:
    """Where a demo was ended once in each stage and then left alone, at which counts, and what each start told."""
    root = tmp_path_factory.mktemp("killed")
    counts, starts = {stage: random.randint(*span) for stage, span in MOMENTS.items()}, []
    for moment in counts.items():
        process = start(root)
        starts.append(told(process, moment))
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGTERM if moment[0] == STOPPED else signal.SIGKILL)
        process.stdout.read()
        assert process.wait() == (130 if moment[0] == STOPPED else -signal.SIGKILL), moment
    return root, counts, [*starts, told(start(root))]


def training(run: Run) -> list[dict]:
    clock = ("images_per_second", "seconds")
    return [{key: value for key, value in record.items() if key not in clock} for record in run.metrics]


def scores(run: Run) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key != "machine"}
        for record in run.results
        if record["metric"] != "probe"
    ]


def probes(run: Run) -> dict[tuple, float]:
    return {(r["step"], r["layer"]): r["value"] for r in run.results if r["metric"] == "probe"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_numbers_are_those_of_an_undisturbed_demo(undisturbed, killed):
    root, counts, _ = killed
    expected, found = ({run.name: run for run in find_runs(place / "runs")} for place in (undisturbed, root))
    names = ["demo-teacher", "demo-plain", "demo-guided"]
    assert [run.config.name for run in expected.values()] == names and found.keys() == expected.keys()
    for name, run in expected.items():
        assert len(scores(run)) == 20 and len(probes(run)) == 13  # ten at each of two steps; one for each layer
        assert training(found[name]) == training(run), (name, counts)
        assert scores(found[name]) == scores(run), (name, counts)
        assert probes(found[name]) == probes(run), (name, counts)
        assert found[name].status["state"] == "finished"


@pytest.mark.slow
def test_no_partial_file_is_left(undisturbed, killed):
    root, counts, _ = killed
    # A file of samples has the hash of the weights in its name, so equal names are equal weights.
    assert files(root) == files(undisturbed), counts


@pytest.mark.slow
def test_each_start_goes_on_where_the_last_one_was_killed(killed):
    _, counts, starts = killed
    for before, (stage, count), after in zip(starts, counts.items(), starts[1:], strict=False):
        stages = {name for name, _ in after}
        assert not {name for name, _ in before if name.startswith("train") and name != stage} & stages, counts
        first = next(done for name, done in after if name == stage)
        assert first > 3 if stage.startswith("train") else first == 0, counts
        assert count <= max(done for name, done in before if name == stage)


@pytest.mark.slow
def test_report_is_one_file_that_needs_nothing(undisturbed):
    page = (undisturbed / "out" / "demo.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    addresses = set(re.findall(r"https?://[\w./-]*", page))
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}  # of languages, which are not loaded
    assert addresses <= names and "<script src" not in page
    assert "FD-clf64" in page and "not FID" in page


@pytest.mark.slow
def test_the_time_is_estimated_from_a_step_with_and_without_the_objective():
    guided = load_config("demo/guided", (*TINY, "objective.head_width=8", "objective.stop_step=4"))
    pace = Pace(aligned=3.0, plain=2.0, memory=0, aligned_operations=None, plain_operations=None, load=0.0, steps=1)
    # Three runs of 12 steps of 2 s, 4 steps with the objective of 1 s more, and at steps 6 and 12 of each run
    # 20 samples in 2 steps, which take a third of a training step of 4 images.
    seconds = 36 * 2 + 4 * 1 + 6 * (20 / 4) * 2 * 2 / 3
    assert estimate_seconds({**demo_configs(0, TINY), "guided": guided}, pace) == pytest.approx(45 + seconds)
