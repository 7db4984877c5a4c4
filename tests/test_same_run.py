"""What is one run: the same data by any spelling of its path, the same arithmetic in another order, one teacher."""

import os
import re
import shlex
from pathlib import Path

import pytest
import tyro

from workbench.__main__ import COMMANDS
from workbench.config import fingerprint, load_config, parse_overrides, presets, teacher_overrides
from workbench.config.paths import NAMED_VAES, SHIPPED_VAES, real_path
from workbench.config.teachers import override
from workbench.data.published import PUBLISHED
from workbench.lab.watching.form import configs
from workbench.reporting.sweep.specification import resolve
from workbench.runs.index import runs_table
from workbench.runs.store import Run, find_runs, find_teacher, prepare_run, run_fingerprint
from workbench.training.launch import _overrides
from workbench.training.plan import _chain

TAUGHT = [name for name in presets() if "teacher" in load_config(name).objective.options]
FOLDER = ["data.name=image-folder", "data.size=64", "vae.name=identity"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home folder, with an image set in it, that is the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "set" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/set")
    return tmp_path


def asked_for(config, root: Path):
    """The configuration of the command that the missing teacher's message prints, as a shell and tyro read it."""
    with pytest.raises(ValueError, match="has not been trained") as error:
        run_fingerprint(config, root)
    program, *arguments = shlex.split(re.search("`(.*)`", str(error.value))[1])
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=program, args=arguments)
    return load_config(command.config, command.overrides)


CHANGES = (
    "recipe=released",
    "data.name=image-folder",
    "data.path=data/a set; 'quoted'",
    "data.limit=9",
    "vae.name=identity",
    "backbone.patch=1",
    "backbone.checkpoint_blocks=true",
    "diffusion.path=cosine",
    "training.precision=bf16",
    "training.accumulation=2",
    "training.compile=true",
    "training.tf32=false",
    "training.batch=6",
    "training.seed=3",
)


def test_the_printed_command_trains_the_teacher_that_every_preset_looks_for(place):
    (place / "data" / "a set; 'quoted'").mkdir()
    trained = {}
    for name in TAUGHT:
        config = load_config(name, CHANGES)
        reference = config.objective.options["teacher"]
        root = place / f"taught by {reference.replace('/', '-')}"
        if reference not in trained:
            trained[reference] = prepare_run(asked_for(config, root), root)
        assert find_teacher(config, root).folder == trained[reference].folder, name


@pytest.mark.parametrize(
    "changes", [(), ("recipe=released",), ("training.batch=5", "training.accumulation=5"), CHANGES]
)
def test_all_who_look_for_a_teacher_follow_one_rule(changes, place):
    name, root = "laptop/sit-nano-2", place / "runs"
    config = load_config(name, changes)
    teacher = prepare_run(asked_for(config, root), root)
    (first, _), (last, _) = _chain(config, root, None)
    assert fingerprint(first) == teacher.fingerprint and last == config
    planned = resolve(name, changes, seed=config.training.seed, root=root)
    same_seed = load_config(planned.teacher.source, (*planned.teacher.overrides, "training.seed=0"))
    assert fingerprint(same_seed) == teacher.fingerprint
    own = ("training.batch", "training.seed", "training.accumulation=5")  # which the form changes for both
    wizard = dict(text.split("=", 1) for text in changes if not text.startswith(own))
    assert fingerprint(configs(name, wizard, root)[1]) == teacher.fingerprint
    student = prepare_run(config, root)
    assert {row.name: row.teacher for row in runs_table(root)}[student.name] == teacher.name


def test_a_preset_without_changes_hands_nothing_on():
    assert TAUGHT and {teacher_overrides(load_config(name)) for name in TAUGHT} == {()}


def test_another_name_starts_its_section_afresh_for_the_teacher_too():
    config = load_config("laptop/sit-nano-2", ["backbone.name=dit", "backbone.size=s", "data.name=digits"])
    teacher = load_config("laptop/sit-nano-2-teacher", teacher_overrides(config))
    assert (teacher.backbone, teacher.data, teacher.vae) == (config.backbone, config.data, config.vae)


def test_an_override_is_read_back_as_its_value():
    for value in ("/a/b c", "2024", "null", "a: b", "# x", "", "'", '"', "é", "=", None):
        assert parse_overrides([override("data.path", value)]) == {"data": {"path": value}}
    for value in (3, 0.5, None, True, [1]):
        assert parse_overrides([override("objective.layer", value)]) == {"objective": {"layer": value}}


def test_what_changes_rounding_alone_is_not_another_run():
    def mark(*overrides: str, preset: str = "demo/plain") -> str:
        return fingerprint(load_config(preset, overrides))

    same = (
        "training.accumulation=2",
        "training.compile=true",
        "training.tf32=false",
        "backbone.checkpoint_blocks=true",
    )
    assert {mark(change) for change in same} == {mark(), mark(*same)}
    assert mark("training.precision=bf16") != mark()
    # Its loss compares the samples of a micro-batch, which accumulation makes smaller.
    dispersive = {"preset": "laptop/sit-nano-2-dispersive"}
    assert mark("training.accumulation=2", **dispersive) != mark(**dispersive) == mark(same[1], **dispersive)


def test_the_same_data_by_another_spelling_of_its_path_is_the_same_run(place):
    spellings = (place / "data/set", "data/set", "data/set/", "./data//set", "data/../data/set", "~/data/set", "link",
                 f"{place}/link/", "~/link")  # fmt: skip
    runs = {
        prepare_run(load_config("demo/plain", [*FOLDER, f"data.path={path}"]), place / "runs") for path in spellings
    }
    assert len(runs) == 1 and len(find_runs(place / "runs")) == 1
    # It is found from another working directory, by its own configuration too.
    os.chdir(place / "data")
    (run,) = runs
    assert run.config.data.path == str(place / "data" / "set")
    assert prepare_run(run.config, place / "runs").folder == run.folder
    again = load_config(run.folder / "config.yaml")
    assert prepare_run(again, place / "runs").folder == run.folder
    other = prepare_run(load_config("demo/plain", [*FOLDER, "data.path=."]), place / "runs")
    assert other.folder != run.folder


def test_patterns_archives_and_autoencoders_have_one_spelling(place):
    (place / "set.zip").touch()
    (place / "data" / "set [2]").mkdir()
    (place / "vae").mkdir()
    for path, real in (
        ("link/../set/train-*.tar", "data/set/train-*.tar"),
        ("~/link/train-?.tar", "data/set/train-?.tar"),
        ("./*/[a-c]/*.tar", "*/[a-c]/*.tar"),
        ("set.zip", "set.zip"),
        ("data/set [2]/", "data/set [2]"),
    ):
        assert real_path(path) == str(place / real)
    assert real_path("imagenet") == "imagenet" and real_path("/no/such/./set/") == "/no/such/set"

    def mark(vae: str) -> str:
        return fingerprint(load_config("demo/plain", [f"vae.name={vae}"]))

    assert mark("vae") == mark("./vae/") == mark(f"{place}/vae") == mark("~/vae") != mark("other")
    # A name stays a name, whatever folder has it.
    assert {*NAMED_VAES} == {*SHIPPED_VAES, "identity", *PUBLISHED}
    before = {name: mark(name) for name in NAMED_VAES}
    for name in NAMED_VAES:
        (place / name).mkdir()
    assert {name: mark(name) for name in NAMED_VAES} == before


def test_a_teacher_given_by_path_is_found_from_another_working_directory(place):
    teacher = prepare_run(load_config("demo/teacher"), place / "runs")
    config = load_config("demo/guided", [f"objective.teacher=runs/{teacher.name}"])
    run = prepare_run(config, place / "runs")
    os.chdir(place / "data")
    assert find_teacher(Run(run.folder).config, place / "elsewhere").folder.samefile(teacher.folder)


def test_a_launch_takes_what_does_not_count_from_who_asks(place):
    config = load_config("demo/plain")
    run = prepare_run(config, place / "runs")
    changes = ["training.keep=5", "training.accumulation=2", "training.tf32=false", "backbone.checkpoint_blocks=true"]
    again = load_config("demo/plain", changes)
    assert prepare_run(again, place / "runs").folder == run.folder
    assert _overrides(again, run, place / "runs") == changes and _overrides(config, run, place / "runs") == []
