"""Seconds of training: every step at the median of its phase, whatever a machine that slept has logged."""

import numpy as np
import pytest

from workbench.config import load_config
from workbench.reporting.paper.costs import seconds_at, timed_runs
from workbench.runs.store import prepare_run


def trained(root, *overrides: str, paces: dict[int, float]):
    """A run that has logged every 10 steps, ``paces`` being the seconds of a step up to a step."""
    run = prepare_run(load_config("laptop/sit-nano-2-repa", ["training.steps=100", *overrides]), root)
    seconds = 0.0
    for step in range(10, 101, 10):
        seconds += 10 * next(pace for end, pace in paces.items() if step <= end)
        run.append("metrics.jsonl", {"step": step, "loss": 1.0, "seconds": seconds})
    return run


def test_a_pause_does_not_count(tmp_path):
    run = trained(tmp_path, paces={10: 3.0, 50: 0.5, 60: 90.0, 100: 0.5})  # it is compiled at first
    np.testing.assert_allclose(seconds_at([run], [0, 50, 100]), [0, 25, 50])
    assert timed_runs([run]).total == pytest.approx(50) and timed_runs([run]).rates == pytest.approx((2.0,))


def test_of_runs_that_do_the_same_the_least_disturbed_counts(tmp_path):
    runs = [trained(tmp_path, f"training.seed={seed}", paces={100: pace}) for seed, pace in enumerate((4.0, 1.0, 2.0))]
    np.testing.assert_allclose(seconds_at(runs, [50, 100]), [50, 100])


def test_each_phase_has_its_own_pace(tmp_path):
    run = trained(tmp_path, "objective.stop_step=40", paces={40: 2.0, 100: 1.0})
    timed = timed_runs([run])
    assert timed.steps == (40, 60) and timed.seconds == pytest.approx((80.0, 60.0))
    np.testing.assert_allclose(seconds_at([run], [20, 40, 70]), [40, 80, 110])


def test_a_phase_shorter_than_the_logging_has_the_pace_around_it(tmp_path):
    run = trained(tmp_path, "objective.stop_step=2", paces={10: 2.0, 100: 1.0})
    assert timed_runs([run]).rates == pytest.approx((0.5, 1.0))


def test_a_run_that_was_never_trained_is_named(tmp_path):
    run = prepare_run(load_config("laptop/sit-nano-2-repa"), tmp_path)
    with pytest.raises(ValueError, match=f"{run.name} has no metrics"):
        seconds_at([run], [10])
