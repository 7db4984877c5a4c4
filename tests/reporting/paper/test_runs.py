"""Runs of rows: found by preset and seed, and missing with a command that does what it says."""

import shlex

import pytest
import tyro

from workbench.__main__ import COMMANDS
from workbench.config import load_config
from workbench.reporting.paper.numbers import paper_numbers
from workbench.reporting.paper.runs import Variant, runs_of
from workbench.reporting.paper.scores import ScoreQuery, common_steps, scores_of
from workbench.reporting.sweep.specification import load_sweep, resolve
from workbench.runs.archive import pack_records, unpack_records
from workbench.runs.store import find_runs, run_fingerprint
from workbench.shipped import shipped


def parsed(command: str) -> list:
    """Each command as the command line understands it; SystemExit if it does not."""
    found = []
    for one in command.split(" && "):
        # What is here as records only is trained in another folder.
        program, *arguments = shlex.split(one.removeprefix("WORKBENCH_RUNS=runs-with-weights "))
        assert program == "workbench"
        found.append(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=program, args=arguments))
    return found


@pytest.mark.slow
def test_runs_are_found_by_preset_and_seed(where):
    rows = {"ours": "sit-nano-2", "plain": "sit-nano-2-plain"}
    found = runs_of("laptop", rows, (0, 1), where["root"], where["overrides"])
    assert {row: list(by_seed) for row, by_seed in found.runs.items()} == {"ours": [0, 1], "plain": [0, 1]}
    assert not found.missing and len(found.all) == 4
    for seed, run in found.runs["ours"].items():
        assert (run.config.name, run.config.training.seed) == ("laptop-sit-nano-2", seed)
    assert found.seed(["ours", "plain"])["ours"].config.training.seed == 0
    assert found.seed(["ours"], 1)["ours"].config.training.seed == 1


@pytest.mark.slow
def test_a_missing_run_comes_with_the_training_of_its_teacher_first(where):
    wanted = {"other": Variant("sit-nano-2", ("objective.guidance_scale=5.0",))}
    found = runs_of("laptop", wanted, (1, 2), where["root"], where["overrides"])
    (one,) = found.missing
    assert not found.runs and "laptop/sit-nano-2 objective.guidance_scale=5.0, seeds 1, 2" in one.what
    trained = parsed(one.command)
    # The teacher of seed 1 is there, that of seed 2 is not.
    assert [c.config for c in trained] == [f"laptop/sit-nano-2{suffix}" for suffix in ("", "-teacher", "")]
    config = load_config(trained[0].config, trained[0].overrides)
    (teacher,) = runs_of("laptop", ["sit-nano-2-teacher"], [1], where["root"], where["overrides"]).all
    assert config.objective.options["teacher"] == teacher.name and config.training.seed == 1
    # What the command trains is the run that was asked for, by the fingerprint by which it is found.
    asked = resolve("laptop/sit-nano-2", wanted["other"].overrides, where["overrides"], 1, where["root"])
    assert run_fingerprint(config, where["root"]) == asked.fingerprint


@pytest.mark.slow
def test_a_run_that_cannot_be_says_so_and_the_others_go_on(where):
    # Its teacher is to have trained 200 steps, of 4.
    rows = {"by": "laptop-ablations/table4-by-plain", "plain": "sit-nano-2-plain"}
    found = runs_of("laptop", rows, (0,), where["root"], where["overrides"])
    assert list(found.runs) == ["plain"]
    assert "200" in found.missing[0].what and parsed(found.missing[0].command)


def test_a_row_of_a_sweep_is_named_as_such(tmp_path):
    asked = {"x": "laptop-ablations/table5-scale-60", "y": "sit-nano-2-vae"}
    found = runs_of("laptop", asked, (0,), tmp_path)
    changes = ("objective.guidance_scale=60",)
    expected = (("laptop/sit-nano-2", changes), ("laptop/sit-nano-2-vae", ()))
    for one, run in zip(found.missing, expected, strict=True):
        (sweep,) = parsed(one.command)
        spec = load_sweep(shipped(sweep.file))
        assert [(row.base, row.overrides) for row in spec.rows if row.name in sweep.only] == [run]


def test_a_row_of_no_sweep_or_of_another_scale_is_refused(tmp_path):
    for row, words in (
        (
            "laptop-ablations/table5-scale-61",
            "row of laptop-ablations.yaml 'table5-scale-61' is not known; did you mean",
        ),
        ("paper-ablations/table5-scale-60", "has the base paper/sit-b-2-256, which is not of laptop scale"),
        ("laptop-ablation/table5-scale-60", "preset 'laptop/laptop-ablation/table5-scale-60' is not known"),
    ):
        with pytest.raises(ValueError, match=words):
            runs_of("laptop", {"x": row}, (0,), tmp_path)


def test_every_preset_of_every_table_has_a_command(tmp_path):
    for name, table in paper_numbers().tables.items():
        for scale in ("laptop", "paper"):
            rows = {row.row: row.presets[scale] for row in table.rows if scale in row.presets}
            for one in runs_of(scale, rows, (1,), tmp_path).missing:
                assert parsed(one.command), (name, one)


@pytest.mark.slow
def test_records_without_weights_are_for_tables_only(where, tmp_path):
    unpack_records(pack_records(find_runs(where["root"]), tmp_path / "runs.zip"), tmp_path / "runs")
    asked = ("laptop", {"ours": "sit-nano-2"}, (0,), tmp_path / "runs", where["overrides"])
    (run,) = runs_of(*asked).all
    assert not run.checkpoints
    found = runs_of(*asked, weights=True)
    (one,) = found.missing
    assert not found.runs and "weights of laptop/sit-nano-2, seed 0: only records are here" in one.what
    assert one.command.count("WORKBENCH_RUNS=runs-with-weights workbench train") == 2  # beside the records, which stay
    teacher, student = parsed(one.command)
    assert (teacher.config, student.config) == ("laptop/sit-nano-2-teacher", "laptop/sit-nano-2")
    assert "only the records" in found.why_missing("a run", ["ours"], "laptop")
    assert "not here yet" in found.why_missing("a run", ["another"], "laptop")
    assert runs_of("laptop", {"ours": "sit-nano-2"}, (0,), where["root"], where["overrides"], weights=True).all


def test_an_unknown_scale_preset_or_option_is_refused(tmp_path):
    for scale, wanted, words in (
        ("labtop", Variant("sit-nano-2"), "laptop"),
        ("laptop", Variant("sit-nano-3"), "sit-nano-2"),
        ("laptop", Variant("sit-nano-2", ("objective.stopstep=3",)), "stop_step"),
    ):
        with pytest.raises(ValueError, match=words):
            runs_of(scale, {"row": wanted}, (0,), tmp_path)


@pytest.mark.slow
def test_scores_are_of_one_protocol_and_what_lacks_it_is_missing(where):
    found = runs_of("laptop", ["sit-nano-2", "sit-nano-2-plain"], (0, 1), where["root"], where["overrides"])
    steps = common_steps(found.runs, dict.fromkeys(found.runs, "all"))
    assert set(steps.values()) == {4}
    scores = scores_of(found.runs, "fid", detector="clf64", steps=steps, query=ScoreQuery())
    assert scores.protocol.samples == 20 and scores.protocol.sampler == "ode" and not scores.missing
    run = found.runs["sit-nano-2"][0]
    record = next(r for r in run.results if r["metric"] == "fd-clf64" and r["step"] == 4)
    assert scores.values["sit-nano-2"][0] == record["value"]
    mean = sum(scores.values["sit-nano-2"].values()) / 2
    assert scores.number("sit-nano-2").value == mean and scores.number("sit-nano-2").n == 2
    for query in (ScoreQuery(guidance_scale=4.0), ScoreQuery(count=10_000)):
        none = scores_of(found.runs, "fid", detector="clf64", steps=steps, query=query)
        assert not none.values and len(none.missing) == 2
        (command, _) = parsed(none.missing[0].command)
        assert command.run == run.name and command.step == 4
    lost = scores_of(found.runs, "fid", detector="clf64", steps=dict.fromkeys(steps, 3), query=ScoreQuery())
    assert "not kept" in lost.missing[0].what and parsed(lost.missing[0].command)
