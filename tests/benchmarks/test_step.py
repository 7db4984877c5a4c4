"""The benchmark: every kind of step really runs, and its sums are right."""

import pytest
from step import _costs, bench_steps, kinds

from workbench import plugins

NANO = {"name": "sit", "size": "nano", "patch": 4}


@pytest.mark.slow
def test_every_kind_is_timed_in_turn():
    rounds = list(bench_steps(NANO, batch=4, repeats=2, every=True))
    assert [(done, total) for done, total, _ in rounds] == [(1, 2), (2, 2)]
    costs = {cost.kind: cost for cost in rounds[-1][2]}
    assert costs.keys() == kinds(256, "ambient", every=True, fast=False).keys()
    assert all(cost.seconds > 0 and cost.memory > 0 for cost in costs.values())
    assert costs["plain"].ratio == 1
    # The teacher is one more model in memory, and the encoder's stored targets are none.
    assert costs["guided, all samples"].memory > costs["plain"].memory


def test_every_method_is_among_the_kinds():
    named = {sections["objective"]["name"] for sections in kinds(8, "ambient", every=True, fast=False).values()}
    assert named == set(plugins.names("objective")) > {"denoise", "repa", "self_transcendence"}


def test_a_schedule_counts_its_teacher_and_its_stop():
    seconds = {"plain": [1.0, 2.0, 3.0], "guided, selected": [3.0, 3.0, 9.0], "vae_align": [2.2], "repa": [2.4]}
    costs = {cost.kind: cost for cost in _costs(seconds, dict.fromkeys(seconds, 1))}
    guided = costs["guided, selected"]
    assert (guided.seconds, guided.ratio) == (3.0, 1.5)
    assert guided.total == pytest.approx(1.05) and guided.total_with_teacher == pytest.approx(1.05 + 0.2 * 1.1)
    assert costs["repa"].total == costs["repa"].total_with_teacher == pytest.approx(1.2)
