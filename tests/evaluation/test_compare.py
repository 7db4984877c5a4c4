"""Runs side by side: grouped by configuration, paired by seed, refused when measured otherwise, said in words."""

import pytest

from workbench.config import load_config
from workbench.evaluation.compare import compare, group, teacher_notes
from workbench.runs.store import Run, prepare_run

HOW = {"n_generated": 300, "sampler": "euler", "sample_seed": 0, "detector_hash": "abc"}
# Differences guided - plain by seed: -1, -2, -3.
PLAIN, GUIDED = {0: 10.0, 1: 20.0, 2: 30.0}, {0: 9.0, 1: 18.0, 2: 27.0}


def score(run: Run, metric: str, value: float, step: int = 420, **more) -> None:
    run.append("results.jsonl", {"metric": metric, "value": value, "step": step, **HOW, **more})


def train(root, preset: str, seed: int, *changes: str) -> Run:
    return prepare_run(load_config(preset, [f"training.seed={seed}", *changes]), root)


def scored(root, preset: str, values: dict[int, float], *changes: str, metric: str = "fd-clf64") -> list[Run]:
    runs = [train(root, preset, seed, *changes) for seed in values]
    for run, value in zip(runs, values.values(), strict=True):
        score(run, metric, value)
    return runs


def guided(root, seed: int, *changes: str, teacher: int | None = None, taught: tuple[str, ...] = ()) -> Run:
    """A guided run and its own teacher, which has the same seed unless told otherwise."""
    master = train(root, "demo/teacher", seed if teacher is None else teacher, *taught)
    return train(root, "demo/guided", seed, f"objective.teacher={master.folder}", *changes)


def test_three_seeds_by_hand(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    found = compare([*plain, *other])
    (row,) = found.rows
    assert (row.first, row.second, row.step) == (PLAIN, GUIDED, 420)
    assert row.paired.differences == {0: -1.0, 1: -2.0, 2: -3.0}
    # t = 4.302653 of two degrees of freedom, s / sqrt(3) = .577350.
    assert (row.paired.interval.low, row.paired.interval.high) == pytest.approx((-4.484138, 0.484138), abs=1e-6)
    assert (row.paired.test.p, row.paired.test.least, row.adjusted) == (0.25, 0.25, 0.25)
    assert row.sentence == (
        "fd-clf64 at step 420: demo-plain (training.batch=64) is lower (better) than demo-plain (training.batch=32) "
        "by 2 on average, in all 3 seeds (95 % t interval -4.48 to 0.484, which includes 0). "
        "Sign-flip p = 0.25; with 3 seeds the smallest possible p is 0.25. "
        "All seeds agree, but there are too few of them for a significant test."
    )
    assert found.how == {"fd-clf64": HOW} and found.notes == ()


def test_swapping_the_groups_mirrors_every_number(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    (row,), (mirrored,) = compare([*plain, *other]).rows, compare([*other, *plain]).rows
    assert mirrored.paired.mean == -row.paired.mean and mirrored.paired.test == row.paired.test
    assert mirrored.paired.interval.low == pytest.approx(-row.paired.interval.high, rel=1e-12)
    assert "higher (worse)" in mirrored.sentence and "lower (better)" in row.sentence


def test_the_order_of_runs_inside_a_group_does_not_count(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    assert compare([*plain, *other]).rows == compare([plain[2], *other[::-1], plain[0], plain[1]]).rows


def test_six_seeds_support_what_three_cannot(tmp_path):
    many = {seed: 10.0 + seed for seed in range(6)}
    plain = scored(tmp_path, "demo/plain", many)
    other = scored(tmp_path, "demo/plain", {s: v - 1 - 0.1 * s for s, v in many.items()}, "training.batch=64")
    (row,) = compare([*plain, *other]).rows
    assert row.paired.test.p == 1 / 32 and row.verdict == "supported"
    assert row.sentence.endswith("the smallest possible p is 0.031. The data support this difference.")
    for run in (*plain, *other):  # three rows more: 4 / 32 is not below 5 %
        for metric in ("kid-clf64", "precision", "recall"):
            score(run, metric, 0.5)
    rows = compare([*plain, *other]).rows
    assert [r.adjusted for r in rows] == [4 / 32, 1.0, 1.0, 1.0] and rows[0].family == 4
    assert [r.verdict for r in rows] == ["consistent", "equal", "equal", "equal"]
    assert "have equal means." in rows[1].sentence and "Holm-adjusted over 4 rows 0.12" in rows[0].sentence


def test_seeds_that_disagree_support_nothing(tmp_path):
    plain = scored(tmp_path, "demo/plain", PLAIN, metric="class-agreement")
    other = scored(tmp_path, "demo/plain", {0: 12.0, 1: 19.0, 2: 34.0}, "training.batch=64", metric="class-agreement")
    (row,) = compare([*plain, *other]).rows
    # Differences 2, -1, 4: |sums| 7, 5, 3, 1, each of two patterns, and 5 and 7 reach 5.
    assert row.paired.test.p == 0.5 and row.agreeing == 2 and row.verdict == "open"
    assert "higher (better)" in row.sentence and "by 1.67 on average, in 2 of 3 seeds" in row.sentence
    assert row.sentence.endswith("The data do not support a difference.")


def test_one_pair_has_no_test(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", {4: 3.0}), scored(tmp_path, "demo/plain", {4: 2.5}, "data.limit=60")
    (row,) = compare([*plain, *other]).rows
    assert row.paired.interval is None and row.adjusted is None and row.verdict == "one seed"
    assert "by 0.5 with seed 4. One pair allows no interval and no test" in row.sentence


def test_teachers_of_other_seeds_make_one_group_and_other_teachers_another(tmp_path):
    runs = [guided(tmp_path, seed) for seed in (0, 1)]
    longer = [guided(tmp_path, seed, taught=("training.steps=350",)) for seed in (0, 1)]
    deeper = [guided(tmp_path, seed, taught=("objective.layer=4",)) for seed in (0, 1)]
    groups = group([*runs, *longer, *deeper])
    assert [list(g.runs.values()) for g in groups] == [runs, longer, deeper] and teacher_notes(groups) == []
    # Both are called demo-guided and no option of their own differs, so fingerprints tell them apart.
    assert [g.label for g in groups] == [f"demo-guided {of[0].fingerprint[:8]}" for of in (runs, longer, deeper)]


def test_names_and_how_a_run_is_kept_make_no_group(tmp_path):
    runs = [train(tmp_path, "demo/plain", 0), train(tmp_path, "demo/plain", 1, "name=other", "training.keep=3")]
    (only,) = group([*runs, train(tmp_path, "demo/plain", 2, "sampling.count=50")])
    assert (only.label, list(only.runs)) == ("demo-plain", [0, 1, 2])


def test_a_teacher_that_moved_with_its_student_is_found(tmp_path):
    before = [guided(tmp_path / "a", seed) for seed in (0, 1)]
    (tmp_path / "a").rename(tmp_path / "b")
    (only,) = group([Run(tmp_path / "b" / run.name) for run in before])
    assert list(only.runs) == [0, 1] and teacher_notes([only]) == []


def test_a_teacher_that_is_gone_is_said(tmp_path):
    run = guided(tmp_path / "a", 0)
    alone = tmp_path / "b" / run.name
    alone.parent.mkdir()
    run.folder.rename(alone)
    for rest in (tmp_path / "a").iterdir():
        rest.rename(tmp_path / f"gone-{rest.name}")
    assert teacher_notes(group([Run(alone)])) == [
        f"the teacher of {run.name} was not found, so teachers were not compared"
    ]


def test_a_teacher_that_all_seeds_share_is_said(tmp_path):
    notes = teacher_notes(group([guided(tmp_path, seed, teacher=5) for seed in (0, 1)]))
    assert notes == ["all seeds of demo-guided share one teacher, so the spread excludes the teacher's seed"]


def test_a_seed_given_twice_is_refused(tmp_path):
    run = train(tmp_path, "demo/plain", 3)
    with pytest.raises(ValueError, match="the same configuration and seed 3; give one"):
        group([run, Run(run.folder)])


def test_each_row_takes_the_last_step_with_the_most_pairs(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    for run in (*plain, *other):
        score(run, "fd-clf64", 50.0, step=280)
    for run in (plain[0], other[0]):  # only one pair has come so far
        score(run, "fd-clf64", 1.0, step=560)
    assert compare([*plain, *other]).rows[0].step == 420
    assert compare([*plain, *other], step=280).rows[0].first == {0: 50.0, 1: 50.0, 2: 50.0}
    late = compare([*plain, *other], step=560)
    assert late.rows[0].verdict == "one seed" and late.notes == (
        "demo-plain (training.batch=64) and demo-plain (training.batch=32) have no pair of seed 1, 2 in fd-clf64",
    )
    with pytest.raises(ValueError, match="no pair of seed 0, 1, 2 in fd-clf64"):
        compare([*plain, *other], step=7)


def test_of_two_scores_measured_alike_the_later_counts(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    score(plain[1], "fd-clf64", 21.0)
    assert compare([*plain, *other]).rows[0].first == {0: 10.0, 1: 21.0, 2: 30.0}


def test_numbers_measured_otherwise_are_refused_or_marked(tmp_path):
    plain, other = scored(tmp_path, "demo/plain", PLAIN), scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")
    odd = train(tmp_path, "demo/plain", 3)
    score(odd, "fd-clf64", 11.0, n_generated=2000)
    partner = train(tmp_path, "demo/plain", 3, "training.batch=64")
    score(partner, "fd-clf64", 10.0)
    runs = [*plain, odd, *other, partner]
    with pytest.raises(ValueError, match=f"measured in different ways; {odd.name}: n_generated is 2000, not 300"):
        compare(runs)
    (row,) = compare(runs, force=True).rows
    assert row.unequal == (f"{odd.name}: n_generated is 2000, not 300",)
    assert (row.verdict, row.adjusted, row.first[3]) == ("unequal", None, 11.0)
    assert row.sentence.endswith(f"Measured in different ways ({row.unequal[0]}), so it supports no conclusion.")
    score(odd, "fd-clf64", 12.0)  # scored again as the others were, it is one of them
    assert compare(runs).rows[0].first[3] == 12.0 and compare(runs).rows[0].unequal == ()


def test_one_column_has_one_protocol_over_all_groups(tmp_path):
    """A baseline scored in two ways does not let its rivals be scored in one way each."""
    base = train(tmp_path, "demo/plain", 0)
    rivals = [train(tmp_path, "demo/plain", 0, f"training.batch={size}") for size in (16, 64)]
    for count, rival in zip((300, 2000), rivals, strict=True):
        score(base, "fd-clf64", 3.0, n_generated=count)
        score(rival, "fd-clf64", 2.0, n_generated=count)
    with pytest.raises(ValueError, match="measured in different ways"):
        compare([base, *rivals])
    assert compare([base, rivals[0]]).how["fd-clf64"]["n_generated"] == 300
    assert compare([base, rivals[1]]).how["fd-clf64"]["n_generated"] == 2000


def test_layers_are_rows_of_their_own_when_asked(tmp_path):
    runs = [train(tmp_path, "demo/plain", 0), train(tmp_path, "demo/plain", 0, "training.batch=64")]
    for run, gain in zip(runs, (0.0, 0.25), strict=True):
        score(run, "fd-clf64", 1.0)
        for layer in (1, 2):
            score(run, "probe", layer / 4 + gain, layer=layer, t=0.3)
    assert [row.metric for row in compare(runs).rows] == ["fd-clf64"]
    rows = compare(runs, metrics=["probe"]).rows
    assert [row.metric for row in rows] == ["probe of layer 1 at t = 0.3", "probe of layer 2 at t = 0.3"]
    assert [row.second[0] for row in rows] == [0.5, 0.75] and "higher (better)" in rows[0].sentence
    with pytest.raises(ValueError, match="metric 'fd-clf' is not known; did you mean 'fd-clf64'"):
        compare(runs, metrics=["fd-clf"])


def test_what_cannot_be_compared_is_refused(tmp_path):
    plain = scored(tmp_path, "demo/plain", PLAIN)
    with pytest.raises(ValueError, match="two configurations or more; got demo-plain"):
        compare(plain)
    with pytest.raises(ValueError, match="got none"):
        compare([])
    bare = [train(tmp_path, "demo/plain", 0, f"training.batch={size}") for size in (16, 64)]
    with pytest.raises(ValueError, match="hold no scores"):
        compare(bare)


def test_numbers_that_are_not_finite_are_left_out_and_said(tmp_path):
    runs = [*scored(tmp_path, "demo/plain", PLAIN), *scored(tmp_path, "demo/plain", GUIDED, "training.batch=64")]
    whole = compare(runs).rows
    for value in ("NaN", "Infinity"):
        with (runs[0].folder / "results.jsonl").open("a") as file:
            file.write(f'{{"metric": "kid-clf64", "step": 420, "value": {value}}}\n')
    found = compare(runs)
    assert found.rows == whole
    name = runs[0].name
    for value in ("nan", "inf"):
        assert f"kid-clf64 of {name} at step 420 is {value}, left out" in found.notes
    with (runs[0].folder / "results.jsonl").open("a") as file:
        file.write('{"metric": "kid-clf64", "value": 1.0}\n')
    with pytest.raises(ValueError, match=rf"{name}/results.jsonl: record 4 lacks step"):
        compare(runs)
