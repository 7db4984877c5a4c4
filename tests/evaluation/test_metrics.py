"""The table of metrics: its rows, the names made of them, and a new row followed from scoring to a figure."""

import importlib
from dataclasses import replace

import pytest
import torch

from workbench import plugins
from workbench.cli.sweep import _scores
from workbench.config import load_config
from workbench.evaluation.compare import compare
from workbench.evaluation.frechet import statistics
from workbench.evaluation.metrics import Metric, find_metric, get_metric, in_order, metric_name, metric_title, metrics
from workbench.evaluation.reference import Reference, Seen
from workbench.evaluation.scores.base import measure
from workbench.lab.watching.state import scores_of
from workbench.reporting import figures
from workbench.reporting.report import score_tables
from workbench.runs.index import runs_table
from workbench.runs.store import prepare_run


def seen(n, seed, shift=0.0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    features = torch.randn(n, 6, generator=generator) + shift
    features[:, 0] += 3 * labels
    logits = -(features[:, :1] - 3 * torch.arange(classes)).square()
    return Seen(
        statistics(features), statistics(torch.randn(n, 9, generator=generator) + shift), features, logits, labels
    )


REAL = Reference(seen(600, 0), seen(300, 1), None, "content", "gaussians")


def test_every_row_has_the_interval_and_the_unit_that_it_names():
    found = measure(seen(200, 2, 0.3), REAL, seed=0, classes=True)
    of_images = [metric.kind for metric in metrics().values() if metric.measure]
    assert list(found) == [kind for kind in of_images if kind in found] and set(found) == set(of_images)
    for kind, score in found.items():
        metric = metrics()[kind]
        assert ("low" in score) == ("high" in score) == bool(metric.interval), kind
        assert ("deviation" in score) == (metric.interval == "halves"), kind
        assert metric.unit != "share" or 0 <= score["value"] <= 1, kind
        assert ("floor" in score) == (metric.floor and "spatial" not in metric.needs), kind


def test_real_images_are_better_than_others_in_the_direction_of_the_table():
    near, far = (measure(seen(200, 2, shift), REAL, seed=0, classes=True) for shift in (0.0, 2.0))
    for kind, metric in metrics().items():
        if metric.measure and metric.better:
            lower = near[kind]["value"] < far[kind]["value"]
            assert near[kind]["value"] != far[kind]["value"] and lower == (metric.better == "lower"), kind


def test_a_stored_name_leads_back_to_its_row():
    for detector in plugins.names("detector"):
        for kind, metric in metrics().items():
            if metric.measure:
                assert get_metric(metric_name(detector, kind)) is metric
    assert get_metric("probe") is metrics()["probe"] and find_metric("fd-clf32") is None
    with pytest.raises(ValueError, match="metric 'fd-clf46' is not known; did you mean 'fd-clf64'"):
        get_metric("fd-clf46")
    with pytest.raises(ValueError, match="kind of score 'probe' is not known"):
        metric_name("clf64", "probe")
    titles = {"fd-clf64": "FD-clf64", "fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision"}
    titles |= {
        "kid-clf64": "KID-clf64",
        "class-agreement": "class agreement",
        "probe": "probe accuracy",
        "mine": "mine",
    }
    assert {name: metric_title(name) for name in titles} == titles


def test_names_are_in_the_order_of_the_table():
    names = ["mine", "precision-clf64", "kid", "fid", "fd-clf64", "density-clf64", "class-agreement"]
    assert in_order(names) == ["fd-clf64", "fid", "kid", "precision-clf64", "density-clf64", "class-agreement", "mine"]
    assert in_order(names, detail=2) == ["fd-clf64", "fid", "kid", "precision-clf64", "class-agreement"]
    assert in_order(names, detail=1) == ["fd-clf64", "fid", "kid", "class-agreement"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"better": "smaller"}, "better is 'smaller'; allowed are 'lower', 'higher', ''"),
        ({"better": ""}, "describe a good value in ideal"),
        ({"needs": ("spatal",)}, "need of metric 'New' 'spatal' is not known; did you mean 'spatial'"),
        ({"interval": "bootstrap"}, "interval is 'bootstrap'"),
        ({"unit": "%"}, "unit is '%'"),
        ({"detail": 4}, "detail is 4; allowed are 1, 2, 3"),
        ({"title": ""}, "title is ''; it must be text"),
        ({"measure": 3}, "metric 'New': measure is 3; it must be a function"),
    ],
)
def test_a_row_outside_what_is_allowed_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Metric(**{"title": "New", "better": "lower", "measure": None, **changes})


def test_the_source_says_what_the_module_has():
    for kind, metric in metrics().items():
        module = importlib.import_module(plugins.own_module("score", kind))
        facts = {"kind": kind, "measure": metric.measure}
        assert replace(module.METRIC, **facts) == metric and (module.METRIC.measure is None) == (kind == "probe")


SPREAD = """
from workbench.evaluation.metrics import Metric

def measure(of):
    return {"value": float(of.generated.features.std()), "count": len(of.generated.features)}

METRIC = Metric(title="Spread", better="higher", measure=measure)
"""


def test_a_new_score_is_one_file(monkeypatch, tmp_path):
    (tmp_path / "scores_of_a_test").mkdir()
    (tmp_path / "scores_of_a_test" / "spread.py").write_text(SPREAD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "scores_of_a_test.spread")
    name = metric_name("clf64", "spread")
    runs = {}
    for label, batch, shift in (("plain", 32, 1.0), ("guided", 64, 3.0)):
        run = runs[label] = prepare_run(load_config("demo/plain", [f"training.batch={batch}"]), tmp_path / "runs")
        images = seen(200, 2)
        images = Seen(images.statistics, None, images.features * shift, images.logits, images.labels)
        scores = measure(images, REAL, seed=0)
        assert scores["spread"]["count"] == 200 and scores["spread"]["floor"] == float(REAL.test.features[:200].std())
        for step in (100, 200):
            score = {**scores["spread"], "value": scores["spread"]["value"] * step, "metric": name, "step": step}
            run.append("results.jsonl", {**score, "n_generated": 200})
        run.append("metrics.jsonl", {"step": 200, "loss": 1.0, "seconds": 60.0})
    (row,) = compare(list(runs.values())).rows
    assert "is higher (better) than" in row.sentence
    assert [dict(row.scores)[name] > 0 for row in runs_table(tmp_path / "runs")] == [True, True]
    table = _scores([{"row": "a", "seed": 0, "run": "a", "scores": {name: 1.25, "density-clf64": 2.0}}])
    assert [column.header for column in table.columns] == ["row", "seed", "run", name]
    assert "Spread-clf64" in score_tables(runs)[0].columns
    axis = figures.score_curves(runs, name).axes[0]
    assert axis.get_ylabel() == "Spread-clf64 (higher is better)" and len(axis.lines) >= 2
    assert scores_of(runs["plain"])["metric"] == name


def test_memorisation_has_no_better_side(tmp_path):
    runs = [prepare_run(load_config("demo/plain", [f"training.batch={size}"]), tmp_path) for size in (32, 64)]
    for run, value in zip(runs, (0.5, 0.9), strict=True):
        for metric in ("memorisation-clf64", "somebody-elses"):
            run.append("results.jsonl", {"metric": metric, "step": 1, "value": value})
    first, second = compare(runs).rows
    assert "is higher (0.5 for new images, 1 for copies) than" in first.sentence
    assert "is higher (better or worse is unknown: name its module with --plugin) than" in second.sentence
