"""Runs and charts of the notebooks."""

import os
import signal

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from workbench.config import load_config
from workbench.data.images import load_images
from workbench.evaluation.probe import linear_probe
from workbench.features.extract import extract
from workbench.reporting.lessons import demo_runs, home, trained
from workbench.reporting.lines import Chart, probe_of_runs, probe_over_training, scores_over_training
from workbench.reporting.lines import versions_over_guidance as versions

TINY = (
    "data.limit=200",
    "training.steps=4",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "training.milestone_every=2",
)
QUIET = {"progress": lambda *_: None}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(root):
    return demo_runs(0, TINY, root, **QUIET)


def lines(chart: Chart) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_ydata()) for line in chart.figure.axes[0].lines}


@pytest.mark.slow
def test_runs_are_trained_once(runs, root):
    assert [run.status["state"] for run in runs.values()] == ["finished"] * 3
    said = []
    again = demo_runs(0, TINY, root, progress=lambda *about: said.append(about))
    assert again == runs and not said


@pytest.mark.slow
def test_an_interrupted_training_goes_on(root):
    config, steps = load_config("demo/plain", (*TINY, "training.seed=1")), []

    def interrupt(stage, done, total):
        if stage.startswith("train"):
            steps.append(done)
            if len(steps) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(ValueError, match="interrupted at step [12]; call again to continue"):
        trained(config, root, progress=interrupt)
    assert trained(config, root, progress=interrupt).status["state"] == "finished"
    assert steps == [*range(1, len(steps) + 1)] and steps[-1] == 4  # no step twice


def test_runs_of_the_command_line_are_one_folder_higher(tmp_path, monkeypatch):
    monkeypatch.delenv("WORKBENCH_RUNS", raising=False)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert home().resolve() == tmp_path / "notebooks" / "runs"
    (tmp_path / "runs").mkdir()
    assert home().resolve() == tmp_path / "runs"
    (tmp_path / "notebooks" / "runs").mkdir()
    assert home().resolve() == tmp_path / "notebooks" / "runs"
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"


@pytest.mark.slow
def test_a_probe_is_that_of_the_features_of_each_step_and_run(runs):
    run = runs["plain"]
    drawn = lines(probe_over_training(run, layers=(0, 8), t=0.5, images=80, **QUIET))
    assert list(drawn) == ["step 2", "step 4"]
    labels = load_images(run.config.data, "train").labels
    rows = [int(np.flatnonzero(labels == label)[turn]) for turn in range(8) for label in range(10)]
    found = extract(run, rows, [8], [0.5], step=4, labels=("null",), pooling="mean", root=run.folder.parent)
    assert drawn["step 4"][1] == linear_probe(found.read(8, 0.5), found.true, seed=0).accuracy
    beside = lines(probe_of_runs({"plain": run, "guided": runs["guided"]}, layers=(0, 8), images=80, **QUIET))
    assert list(beside) == ["plain, step 4", "guided, step 4"]
    assert np.array_equal(beside["plain, step 4"], drawn["step 4"])


@pytest.mark.slow
def test_without_guidance_only_the_labels_differ(runs):
    drawn = lines(versions(runs["teacher"], t=0.5, images=80, scales=(0.0, 1.0, 10.0), **QUIET))
    null = drawn["null label"]
    assert np.all(null == null[0])
    true = next(values for name, values in drawn.items() if name.startswith("true label"))
    assert true[0] == drawn["wrong label, by the true classes"][0] == null[0]
    assert np.all(drawn["chance"] == 0.1)


@pytest.mark.slow
def test_against_a_weak_model_the_run_itself_is_at_one(runs):
    options = {"t": 0.5, "images": 80, "scales": (0.0, 1.0, 10.0), "measure": "silhouette", **QUIET}
    plain, weak = versions(runs["plain"], **options), versions(runs["plain"], weak=2, **options)
    known = {name: values for name, values in lines(plain).items() if "label" in name}
    for name, values in lines(weak).items():
        if "label" in name:
            assert values[1] == pytest.approx(known[name][1], abs=1e-6), name
            assert np.array_equal(values, known[name]) == (name == "null label"), name
    assert weak.figure.axes[0].get_xlabel().endswith(f"against {runs['plain'].name}, step 2)")


@pytest.mark.slow
def test_what_a_guided_run_cost_takes_its_teacher(runs):
    with pytest.raises(ValueError, match="includes its teacher's seconds"):
        scores_over_training({"guided": runs["guided"]}, against="compute", **QUIET)


def test_a_chart_is_saved_on_white(tmp_path):
    chart = Chart(Figure())
    assert np.all(np.asarray(Image.open(chart.save(tmp_path / "chart.png")).convert("RGB")) == 255)
    assert chart.save(tmp_path / "chart.pdf").read_bytes().startswith(b"%PDF")
