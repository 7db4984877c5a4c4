"""Trackers beside metrics.jsonl: the same numbers, in real event files of TensorBoard."""

import importlib.util
import inspect
import typing

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from workbench.config import fingerprint, load_config
from workbench.config.records import TrainingConfig, record_options
from workbench.runs.store import prepare_run
from workbench.training import tracker
from workbench.training.loop import fit

SMALL = ("data.name=digits", "data.source=auto", "data.limit=16", "vae.name=identity", "backbone.patch=16")
TINY = (*SMALL, "training.steps=4", "training.batch=4", "training.log_every=1", "training.tracker=tensorboard")


def test_event_files_hold_the_records(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    config = load_config("demo/plain", TINY)
    for record in fit(config, tmp_path):  # stopped and resumed: nothing twice
        if record["step"] == 2:
            break
    list(fit(config, tmp_path))
    run = prepare_run(config, tmp_path)
    events = reader.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert {"loss", "denoise", "gradient_norm", "images_per_second"} <= set(events.Tags()["scalars"])
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert [value for _, value in found] == pytest.approx([record["loss"] for record in run.metrics], rel=1e-6)


def test_it_is_no_part_of_the_fingerprint_and_off_by_default(tmp_path):
    config = load_config("demo/plain", SMALL)
    assert config.training.tracker == "none"
    assert fingerprint(config) == fingerprint(load_config("demo/plain", (*SMALL, "training.tracker=tensorboard")))
    with pytest.raises(ValueError, match="'visdom' is not known"):
        load_config("demo/plain", ["training.tracker=visdom"])


def test_without_its_package_it_is_refused_before_a_run_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install .*\[tracking\]"):
        list(fit(load_config("demo/plain", TINY), tmp_path))
    assert not list(tmp_path.glob("*/provenance.json"))


def names() -> tuple[str, ...]:
    return typing.get_args(record_options(TrainingConfig)["tracker"])


def test_every_tracker_of_accelerate_can_be_chosen():
    assert set(names()) == {"none", *LOGGER_TYPE_TO_CLASS}


@pytest.mark.parametrize("name", sorted(LOGGER_TYPE_TO_CLASS))
def test_accelerate_takes_what_it_is_given(tmp_path, name):
    run = prepare_run(load_config("demo/plain", SMALL), tmp_path)
    given = tracker.arguments(name, run, step=0)
    inspect.signature(LOGGER_TYPE_TO_CLASS[name]).bind(**given)
    assert run.name in str(given) or run.fingerprint in str(given)  # by which it is found in the tracker


@pytest.mark.parametrize("name", sorted(set(LOGGER_TYPE_TO_CLASS) - {"tensorboard"}))
def test_a_tracker_without_its_package_is_refused(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=f"training.tracker {name} needs its package: pip install {name}, or use none"):
        list(fit(load_config("demo/plain", (*TINY, f"training.tracker={name}")), tmp_path))
    assert not list(tmp_path.glob("*/provenance.json"))
