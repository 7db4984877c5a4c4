"""The main job, end to end, at a few steps: stopped, gone on with, reported."""

import os
import re
import signal

import pytest

from workbench.config import load_config
from workbench.reporting.demo import demo_configs, estimate_seconds, run_demo
from workbench.runs.store import find_runs
from workbench.training.pace import Pace

TINY = (
    "data.limit=300",
    "training.steps=6",
    "training.batch=8",
    "training.log_every=2",
    "training.checkpoint_every=3",
    "training.milestone_every=3",
    "sampling.steps=2",
    "sampling.count=20",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that is told to stop while the plain run trains, and started again."""
    root = tmp_path_factory.mktemp("demo")
    report = root / "out" / "demo.html"
    stages = []
    for progress in run_demo(root / "runs", report, overrides=TINY):
        stages.append(progress.stage)
        if stages.count("train plain") == 1 and stages[-1] == "train plain":  # a second signal would not be caught
            os.kill(os.getpid(), signal.SIGTERM)
    assert stages[-1] == "train plain" and not report.exists()
    return root, list(run_demo(root / "runs", report, overrides=TINY))


@pytest.mark.slow
def test_goes_on_where_it_stopped(demo):
    root, progress = demo
    stages = {p.stage for p in progress}
    assert "train teacher" not in stages and {"train plain", "train guided", "score", "probe"} <= stages
    runs = find_runs(root / "runs")
    assert [run.config.name for run in runs] == ["demo-teacher", "demo-plain", "demo-guided"]
    assert all(run.status["state"] == "finished" for run in runs)
    assert [r["step"] for r in runs[1].metrics] == [2, 3, 4, 6]


@pytest.mark.slow
def test_report_is_one_file_that_needs_nothing(demo):
    root, _ = demo
    page = (root / "out" / "demo.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    addresses = set(re.findall(r"https?://[\w./-]*", page))
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}  # of languages, which are not loaded
    assert addresses <= names and "<script src" not in page
    assert "FD-clf64" in page and "not FID" in page


@pytest.mark.slow
def test_the_time_is_estimated_from_a_step_with_and_without_the_objective():
    small = (*TINY, "backbone.size=pico")
    guided = load_config("demo/guided", (*small, "objective.head_width=8", "objective.stop_step=4"))
    pace = Pace(aligned=3.0, plain=2.0, memory=0, aligned_operations=None, plain_operations=None, load=0.0, steps=1)
    # Three runs of 6 steps of 2 s, 4 steps with the objective of 1 s more, and at steps 3 and 6 of each run 20 samples
    # in 2 steps, which take a third of a training step of 8 images.
    seconds = 18 * 2 + 4 * 1 + 6 * (20 / 8) * 2 * 2 / 3
    assert estimate_seconds({**demo_configs(0, small), "guided": guided}, pace) == pytest.approx(45 + seconds)
